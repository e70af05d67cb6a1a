"""The study of the coded downlink: what is sent both ways, and what is learned from it.

``python -m experiments.studies.both_ways`` prints the tables of docs/both-ways.md, in a quarter of
an hour; ``python -m experiments.studies.both_ways phone`` prints one; so do ten, hundred, longer,
few, attacks, shares. Results are kept in experiments/results, and a study that was killed resumes
there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from flwr.serverapp.strategy import FedAvg, Strategy

from experiments.studies.commands import show_tables
from experiments.studies.federation import ATTACKS, Setting, simulate
from experiments.studies.jobs import Result, run_jobs
from experiments.studies.peers import Codec, Decoding, Eden, Half, compress
from experiments.studies.random_basis import HOSTILE, late, unseeded
from experiments.studies.tables import make_table
from fedmedian import Adam, CodedSteps, Momentum
from fedmedian.clients import perturb
from fedmedian.rules.optimizers import Optimizer
from fedmedian.strategies import MedianSGD, SignSGD

RESULTS = Path(__file__).resolve().parents[1] / "results" / "both-ways"

TARGET = 0.95
"""The share of FedAvg's accuracy at the end up to which bytes are counted."""

LAST = 10
"""The number of rounds, the last, whose bytes are also compared by themselves."""

OURS: dict[str, Callable[..., Strategy]] = {
    "SignSGD()": SignSGD,
    "SignSGD(downlink=CodedSteps())": partial(SignSGD, downlink=CodedSteps()),
    "MedianSGD()": MedianSGD,
    "MedianSGD(downlink=CodedSteps())": partial(MedianSGD, downlink=CodedSteps()),
}
"""This package's strategies, with and without the downlink, by their names in tables."""

CODECS: dict[str, Codec] = {"FedAvg, float16": Half(), "EDEN, one bit": Eden()}
"""Peers that send an update in fewer bits, and are sent the whole model in 32."""

STRATEGIES: dict[str, Callable[..., Strategy]] = {
    "FedAvg": partial(unseeded, FedAvg),
    **{name: partial(unseeded, partial(Decoding, codec)) for name, codec in CODECS.items()},
    **OURS,
}
"""All strategies that are compared, by their names in tables."""

PARTITIONS: dict[str, dict[str, Any]] = {
    "iid": {"partition": "iid"},
    "Dirichlet(.3)": {"alpha": 0.3},
    "Dirichlet(.1)": {"alpha": 0.1},
    "one class each": {"partition": "classes"},
}
"""Ways to split the data, from alike clients to unlike ones."""

DIGITS = Setting("digits", learning_rate=0.1, rounds=60)
"""Ten clients, all of them in each round."""

ATTACKED = replace(DIGITS, rounds=40)
"""The same, of which some are hostile."""

# Digits have too few examples for a hundred clients that hold unlike data.
SAMPLED = Setting(
    num_clients=100,
    fraction=0.1,
    examples=60_000,
    local_steps=8,
    learning_rate=0.1,
    rounds=60,
)
"""A hundred clients, a tenth of them in each round, on Fashion-MNIST."""

LONGER = replace(SAMPLED, rounds=100)
"""The same for as many rounds as there are clients, so that the first whole models weigh less."""

WHOLE = 32
"""The bits per parameter of a whole model, which is also the number of coded steps that fit in."""

PHONE_DOWN, PHONE_UP = 1e6, 0.2e6
"""The bits per second that a phone's line carries."""


@dataclass(frozen=True)
class AtServer:
    """Arguments of a strategy at the server, where they are not the defaults.

    Parameters
    ----------
    optimizer : Optimizer or None (default: None)
        The optimizer.
    learning_rate : float or None (default: None)
        The learning rate, or None for the optimizer's own.
    downlink : CodedSteps or None (default: None)
        The downlink, or None for the strategy's own.
    """

    optimizer: Optimizer | None = None
    learning_rate: float | None = None
    downlink: CodedSteps | None = None

    def __str__(self) -> str:
        """Return what names jobs."""
        rate = "" if self.learning_rate is None else f", learning_rate {self.learning_rate}"
        downlink = "" if self.downlink is None else f", {self.downlink}"
        return f"{self.optimizer}{rate}{downlink}"


USUAL = AtServer()

Key = tuple[str, Setting, int, AtServer]
"""A strategy's name, a federation, a seed, and the server's arguments."""


def run_setting(name: str, setting: Setting, seed: int, at_server: AtServer = USUAL) -> Result:
    """Train a federation with a strategy; see `STRATEGIES`."""
    mods = [compress(CODECS[name]) if name in CODECS else perturb]
    given = {field: value for field, value in vars(at_server).items() if value is not None}
    return simulate(partial(STRATEGIES[name], **given), setting, seed, mods)


def run_all(keys: Iterable[Key]) -> dict[Key, Result]:
    """Train federations, unless their results are there already."""
    jobs = {key: (" | ".join(map(str, key)), partial(run_setting, *key)) for key in keys}
    return run_jobs(jobs, RESULTS)


def megabytes_to(result: Result, accuracy: float) -> float | None:
    """Return what all clients have sent and been sent when a run is first at an accuracy."""
    for server_round, reached in enumerate(result["accuracy"], 1):
        if reached >= accuracy:
            return float(sum(result["sent"][:server_round])) / 1e6
    return None


def bytes_table(setting: Setting, names: Sequence[str] = tuple(STRATEGIES)) -> str:
    """Compare accuracy at the end, megabytes to the target, and bytes of all and of late rounds."""
    settings = [replace(setting, **changes) for changes in PARTITIONS.values()]
    found = run_all((name, one, 0, USUAL) for one in settings for name in names)

    def saved(name: str, rounds: slice) -> str:
        reference, sent = (
            sum(sum(found[who, one, 0, USUAL]["sent"][rounds]) for one in settings)
            for who in ("FedAvg", name)
        )
        return f"{reference / sent:.1f}"

    rows = []
    for name in names:
        row = [name]
        for one in settings:
            own, fedavg = (found[who, one, 0, USUAL] for who in (name, "FedAvg"))
            needed = megabytes_to(own, TARGET * late([fedavg]))
            row.append(f"{late([own]):.3f} / {'–' if needed is None else f'{needed:.1f}'}")
        rows.append([*row, saved(name, slice(None)), saved(name, slice(-LAST, None))])
    heads = ("times fewer bytes", f"last {LAST} rounds")
    return make_table(["accuracy / MB both ways", *PARTITIONS, *heads], rows)


def few_table() -> str:
    """Compare accuracy at the end: few clients, and optimizers at the server."""
    usual = replace(DIGITS, alpha=0.3)
    federations = {
        "two clients": (replace(usual, num_clients=2), USUAL),
        "three clients": (replace(usual, num_clients=3), USUAL),
        "five clients": (replace(usual, num_clients=5), USUAL),
        "ten clients": (usual, USUAL),
        "ten clients, optimizer=Momentum(0.9)": (usual, AtServer(Momentum(0.9))),
        "ten clients, optimizer=Adam()": (usual, AtServer(Adam())),
        "ten clients, optimizer=Adam(), learning_rate=0.003": (usual, AtServer(Adam(), 0.003)),
        "ten clients, optimizer=Adam(), two bits down": (
            usual,
            AtServer(Adam(), downlink=CodedSteps(bits=2)),
        ),
    }
    names = ["FedAvg", *OURS]
    keys = {
        (label, name): (name, setting, 0, at_server)
        for label, (setting, at_server) in federations.items()
        for name in names
        if (name in OURS or at_server == USUAL)
        and (at_server.downlink is None or "downlink" in name)
    }
    found = run_all(keys.values())

    def cell(label: str, name: str) -> str:
        key = keys.get((label, name))
        return "" if key is None else f"{late([found[key]]):.3f}"

    rows = [[label, *(cell(label, name) for name in names)] for label in federations]
    return make_table(["federation", *names], rows)


def attacks_table() -> str:
    """Compare what two hostile clients of ten do."""
    settings = {"none": ATTACKED}
    settings |= {name: replace(ATTACKED, attack=name, num_hostile=HOSTILE) for name in ATTACKS}
    found = run_all((n, s, 0, USUAL) for s in settings.values() for n in OURS)
    rows = []
    for name in OURS:
        ends = [late([found[name, one, 0, USUAL]]) for one in settings.values()]
        rows.append([name, *(f"{end:.3f}" for end in [*ends, min(ends[1:])])])
    return make_table(["strategy", *settings, "worst"], rows)


def seconds(bits_down: float, bits_up: float, dim: float) -> float:
    """Return how long a phone's line is busy with a round.

    Parameters
    ----------
    bits_down, bits_up : float
        The bits per parameter that the phone is sent and sends.
    dim : float
        The number of parameters.
    """
    return dim * (bits_down / PHONE_DOWN + bits_up / PHONE_UP)


def mean_steps(share: float) -> float:
    """Return how many coded steps a client is sent that is drawn with a chance in each round.

    A client that was away for longer than `WHOLE` rounds is sent the whole model, which is as long
    as `WHOLE` steps.
    """
    return sum((1 - share) ** missed for missed in range(WHOLE))


def mean_bits_down(share: float, rounds: int) -> float:
    """Return the bits per parameter of a message down, over rounds from the first.

    A client is sent the whole model when it is drawn for the first time.
    """
    return fmean(
        WHOLE * (1 - share) ** (now - 1)
        + sum(share * (1 - share) ** (gap - 1) * min(gap, WHOLE) for gap in range(1, now))
        for now in range(1, rounds + 1)
    )


def phone_table() -> str:
    """Compute how long a phone waits for a round: arithmetic, headers left out."""
    ways = {
        "FedAvg": (WHOLE, WHOLE),
        "SignSGD()": (WHOLE, 1),
        "SignSGD(downlink=CodedSteps()), in each round": (1, 1),
        "SignSGD(downlink=CodedSteps()), in every tenth round": (10, 1),
    }
    rows = [
        [name, f"{down:g}", f"{up:g}", *(f"{seconds(down, up, dim):,.0f}" for dim in (1e6, 1e8))]
        for name, (down, up) in ways.items()
    ]
    heads = ("seconds for 10⁶ parameters", "for 10⁸ parameters")
    return make_table(["strategy", "bits down", "bits up", *heads], rows)


def shares_table() -> str:
    """Compute what a downlink saves where some clients are in a round: arithmetic."""
    rows = []
    for share in (1.0, 0.5, 0.2, 0.1, 0.05, 0.02):
        later = mean_steps(share)
        factors = [
            2 * WHOLE / (bits + 1)
            for bits in (later, *(mean_bits_down(share, n) for n in (1000, 100)))
        ]
        rows.append(
            [f"{share:g}", f"{later:.2f}", f"{later / WHOLE:.2f}", *(f"{f:.1f}" for f in factors)]
        )
    saved = "times fewer bytes"
    heads = ("coded steps per message", "of the whole model", f"{saved}, later")
    totals = (f"{saved}, 1,000 rounds", f"{saved}, 100 rounds")
    return make_table(["share of clients in a round", *heads, *totals], rows)


TABLES: dict[str, Callable[[], str]] = {
    "ten": partial(bytes_table, DIGITS),
    "hundred": partial(bytes_table, SAMPLED),
    "longer": partial(bytes_table, LONGER, ["FedAvg", *list(OURS)[:2]]),
    "few": few_table,
    "attacks": attacks_table,
    "phone": phone_table,
    "shares": shares_table,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that the command line names, or all."""
    show_tables("both_ways", TABLES, arguments)


if __name__ == "__main__":
    main()
