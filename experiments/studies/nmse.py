"""The error of one round's decoded mean update, against EDEN's, at one bit per parameter.

``python -m experiments.studies.nmse`` prints the table of docs/noise.md: ‖ĝ − ū‖²/‖ū‖² of lognormal
updates. "Alike" ones are equal, "spread" ones share half of their energy, and of "one alone" all
but one are zero.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from experiments.studies.commands import show_tables
from experiments.studies.peers import Eden
from experiments.studies.tables import make_table
from fedmedian import Adaptive, Counts, Gaussian, Instruction, Layout, Noise, Rotation, TopUp
from fedmedian.aggregators.base import Aggregator, Answers
from fedmedian.aggregators.medians import Median
from fedmedian.model.blocks import Blocks
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.instruction import perturb_update
from fedmedian.steps.noise import AddNoise, Measure, TopUpNoise

Updates = NDArray[np.float32]

DIM = 65_536
ROUNDS = 3
"""The number of independent rounds that a mean error is taken over."""


def draw_updates(kind: str, clients: int, rng: np.random.Generator) -> Updates:
    """Return lognormal updates, (M, d), of a root mean square of about 1 unless they are 0."""
    rows = rng.lognormal(size=(clients + 1, DIM)) * rng.choice([-1, 1], (clients + 1, DIM))
    common, *own = (rows.T / np.sqrt(np.mean(rows**2, axis=1))).T.astype(np.float32)
    if kind == "alike":
        return np.tile(common, (clients, 1))
    if kind == "one alone":
        return np.concatenate([common[None], np.zeros((clients - 1, DIM), np.float32)])
    return np.asarray((common + np.stack(own)) / np.float32(np.sqrt(2)))


def one_round(
    noise: Noise, rotation: Rotation | None, is_vote: bool, updates: Updates, seed: int
) -> Updates:
    """Return the mean that a server decodes in its second round, when it knows the clients' sizes.

    Parameters
    ----------
    noise : Noise
        The noise, with its scale rule.
    rotation : Rotation or None
        The rotation.
    is_vote : bool
        Whether clients send signs, which are counted, or vectors, whose median is taken.
    updates : (M, d) float32
        The clients' updates.
    seed : int
        The seed of the noise and of the rotation.

    Returns
    -------
    (d,) float32
        The estimate of the mean update.
    """
    clients, layout = len(updates), Layout.of_model({"x": updates[0]})
    magnitudes = np.sqrt(np.mean(np.square(updates, dtype=np.float64), axis=1))[:, None]
    scales = np.asarray(noise.rule.following(np.full(1, np.nan), magnitudes), dtype=np.float32)
    steps: list[ClientStep] = [] if rotation is None else [replace(rotation, seed=seed)]
    add = TopUpNoise if noise.rule.tops_up else AddNoise
    steps += [Measure("rms"), add(noise, scales), Signs() if is_vote else Vector()]
    instruction = Instruction(tuple(steps), 2, None, layout.exact_positions)
    payloads = [
        perturb_update(instruction, layout, update.copy(), {}, np.random.default_rng((seed, i)))
        for i, update in enumerate(updates)
    ]
    blocks, rng = instruction.blocks(layout), np.random.default_rng(seed)
    told = zip(*(instruction.sizes_of(one, blocks) for one in payloads), strict=True)
    used, sizes = map(np.stack, told)
    rule: Aggregator = Counts() if is_vote else Median()
    weights, bodies = np.full(clients, 1 / clients), [one.body for one in payloads]
    direction = rule.direction(
        Answers(bodies, weights, blocks, noise, used, sizes.astype(np.float64)), rng
    )
    return instruction.undo(direction, layout)


def eden(updates: Updates, seed: int) -> Updates:
    """Return the mean of what EDEN decodes from each client."""
    codec, blocks = Eden(), Blocks((DIM,))
    decoded = [
        codec.decode(codec.encode_from(seed + client, update), blocks)
        for client, update in enumerate(updates)
    ]
    return np.asarray(np.mean(decoded, axis=0))


METHODS: dict[str, Callable[[Updates, int], Updates]] = {
    "EDEN": eden,
    "SignSGD()": partial(one_round, Gaussian(TopUp()), Rotation(), True),
    "SignSGD, parameters' basis": partial(one_round, Gaussian(Adaptive(3.0)), None, True),
    "MedianSGD(), 32 bits": partial(one_round, Gaussian(TopUp()), Rotation(), False),
}
"""The ways to estimate the mean update, by their names in the table."""


def error(method: Callable[[Updates, int], Updates], kind: str, clients: int) -> float:
    """Return the mean squared error of an estimate over the energy of the mean."""
    errors = []
    for seed in range(ROUNDS):
        updates = draw_updates(kind, clients, np.random.default_rng(seed))
        mean = updates.mean(axis=0)
        off = method(updates, 1000 * (seed + 1)) - mean
        errors.append(np.mean(np.square(off)) / np.mean(np.square(mean)))
    return float(np.mean(errors))


CASES = tuple((kind, clients) for clients in (10, 100) for kind in ("alike", "spread", "one alone"))


def measure() -> dict[str, list[float]]:
    """Return the errors of all methods, by their names, for each of `CASES`."""
    return {
        name: [error(method, kind, clients) for kind, clients in CASES]
        for name, method in METHODS.items()
    }


def error_table(errors: dict[str, list[float]]) -> str:
    """Return errors as a table."""
    rows = [[name, *(f"{value:.4f}" for value in row)] for name, row in errors.items()]
    return make_table(["method", *(f"M = {clients}, {kind}" for kind, clients in CASES)], rows)


if __name__ == "__main__":
    show_tables("nmse", {"errors": lambda: error_table(measure())})
