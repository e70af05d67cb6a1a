"""Replies that are mutated at random, half of each cohort: no strategy may give way to them.

``python -m tests.tools.fuzz`` sends a million of them to strategies of both of Flower's
APIs, and prints what came of it; ``python -m tests.tools.fuzz 20000 7`` sends fewer, of
another seed. ``python -m tests.tools.fuzz policy`` is for the clients' side: see
`tests.tools.policies`.
"""

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from struct import pack
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import Code, FitRes, Parameters, Status
from flwr.server import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy

from experiments.studies.jobs import process_pool
from experiments.studies.progress import tracked
from experiments.studies.tables import make_table
from fedmedian import (
    Adaptive,
    Agreement,
    ClippedMean,
    Counts,
    Gaussian,
    Laplace,
    Layout,
    Majority,
    SmoothedMedian,
)
from fedmedian.clients import InProcessGrid
from fedmedian.model.layout import Arrays
from fedmedian.records import arrays_to_parameters, parameters_to_arrays, to_arrays, to_record
from fedmedian.rules.optimizers import Adam
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.strategies import MedianSGD, SignSGD, legacy
from fedmedian.wire.npy import write_npy
from tests.tools import policies
from tests.tools.apis import protocol_of

COHORT = 40
HOSTILE = COHORT // 2
PIECES = 8
ROUNDS = 5
"""The rounds of a run, which begins with a model of its own."""

STRATEGIES: dict[str, tuple[str, dict[str, Any]]] = {
    "SignSGD()": ("SignSGD", {}),
    "SignSGD(Gaussian(Adaptive(3.0)), rotation=None)": (
        "SignSGD",
        {"noise": Gaussian(Adaptive(3.0)), "rotation": None},
    ),
    "SignSGD(Laplace(0.1), Majority(), 0.01, rotation=None)": (
        "SignSGD",
        {
            "noise": Laplace(0.1),
            "aggregator": Majority(),
            "learning_rate": 0.01,
            "rotation": None,
        },
    ),
    "SignSGD(optimizer=Adam())": ("SignSGD", {"optimizer": Adam()}),
    "MedianSGD()": ("MedianSGD", {}),
    "MedianSGD(noise_at='server')": ("MedianSGD", {"noise_at": "server"}),
    "MedianSGD(aggregator=SmoothedMedian())": ("MedianSGD", {"aggregator": SmoothedMedian()}),
    "MedianSGD(None, rotation=None)": ("MedianSGD", {"noise": None, "rotation": None}),
    "SignSGD(aggregator=Agreement(Counts()))": ("SignSGD", {"aggregator": Agreement(Counts())}),
    "MedianSGD(None, Agreement(ClippedMean()))": (
        "MedianSGD",
        {"noise": None, "aggregator": Agreement(ClippedMean())},
    ),
}

Outcomes = Counter[str]
ACCEPTED, REFUSED = "accepted", "refused"
"""What may come of a mutated reply; whatever else is counted is a defect."""

_EXTREMES = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e30, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan]
_LARGEST = 2**63 - 1
_TEXTS = ["", "signs", "vector", "gaussian", "laplace", "\n\x1b[2Jforged", "x" * 3000]


@dataclass
class Sent:
    """What a client sends, in either API.

    Parameters
    ----------
    tensors : list of bytes
        Its arrays, as the bytes of ``.npy`` files.
    scalars : dict
        What comes with them: the scalars of a payload, and its own.
    examples : object
        The number of its examples.
    metrics : dict of str to float
        Its metrics.
    twist : str
        What is wrong with the message around them, if anything.
    """

    tensors: list[bytes]
    scalars: dict[str, Any]
    examples: Any = 100
    metrics: dict[str, Any] = field(default_factory=lambda: {"loss": 1.0})
    twist: str = ""

    def copy(self) -> "Sent":
        """Return a copy that can be changed."""
        return replace(
            self,
            tensors=list(self.tensors),
            scalars=dict(self.scalars),
            metrics=dict(self.metrics),
        )


Mutation = Callable[[np.random.Generator, Sent, list[Sent]], None]


def mutate(rng: np.random.Generator, honest: Sent, earlier: list[Sent]) -> Sent:
    """Return an honest client's reply with one to three things changed.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws what is changed.
    honest : Sent
        The reply.
    earlier : list of Sent
        Replies of earlier rounds.

    Returns
    -------
    Sent
        The mutated reply.
    """
    sent = honest.copy()
    # Most of what breaks the form is refused at once: half keep it, and say what they like.
    mutations = USABLE if rng.random() < 0.5 else (*USABLE, *BREAKING)
    for _ in range(rng.integers(1, 4)):
        mutations[rng.integers(len(mutations))](rng, sent, earlier)
    return sent


def _claim_numbers(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Claim another noise scale or magnitude, of one block or of all."""
    key = f"fedmedian.reports.{rng.choice(['noise', 'top-up', 'measure', 'tied'])}"
    if not isinstance(sent.scalars.get(key), bytes):
        return
    values = np.frombuffer(sent.scalars[key][: len(sent.scalars[key]) // 4 * 4], "<f4").copy()
    with np.errstate(over="ignore", invalid="ignore"):
        values[_some(rng, values.size)] = rng.choice(_EXTREMES)
    sent.scalars[key] = values.tobytes()


def _change_values(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Change entries of an array, which stays one of the same kind."""
    for index in _some(rng, len(sent.tensors)):
        data = bytearray(sent.tensors[index])
        start = min(128, len(data))  # behind the header
        if rng.random() < 0.5:
            extreme = pack("<f", _float32(rng.choice(_EXTREMES)))
            count = (len(data) - start) // 4
            for place in _some(rng, count):
                data[start + 4 * place : start + 4 * place + 4] = extreme
        else:
            data[start:] = rng.bytes(len(data) - start)
        sent.tensors[index] = bytes(data)


def _damage_bytes(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Flip bits of an array's bytes, its header's among them, cut them or make them up."""
    if not sent.tensors:
        return
    index = rng.integers(len(sent.tensors))
    data = bytearray(sent.tensors[index])
    match rng.integers(3):
        case 0 if data:
            for place in rng.integers(len(data), size=3):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:
            del data[rng.integers(len(data) + 1) :]
        case _:
            data = bytearray(rng.bytes(int(rng.integers(200))))
    sent.tensors[index] = bytes(data)


def _change_type(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Send an array of another type or shape."""
    array = np.asarray(
        [
            np.zeros(3),
            np.full((5, 7), 1e300),
            np.ones(40, np.complex64),
            np.zeros((0, 4), np.float32),
            np.full(100, np.nan, np.float16),
            np.array([_LARGEST, -_LARGEST]),
            np.array(["text"]),
            np.zeros(13, np.bool_),
        ][rng.integers(8)]
    )
    for index in _some(rng, len(sent.tensors)):
        sent.tensors[index] = write_npy(array)


def _change_count(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Send an array less, or one twice."""
    if not sent.tensors:
        return
    index = rng.integers(len(sent.tensors))
    if rng.random() < 0.5:
        del sent.tensors[index]
    else:
        sent.tensors.append(sent.tensors[index])


def _change_scalar(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Replace a scalar by one of any type, leave one out, or add one."""
    values = [
        _integer(rng),
        _float(rng),
        rng.choice(_TEXTS).item(),
        rng.bytes(int(rng.integers(40))),
    ]
    key = rng.choice([*sent.scalars, "fedmedian.later", "own"]).item()
    if rng.random() < 0.2:
        sent.scalars.pop(key, None)
    else:
        sent.scalars[key] = values[rng.integers(len(values))]


def _claim_examples(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Claim another number of examples."""
    sent.examples = _integer(rng)


def _change_metrics(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Send other metrics, or many."""
    for number in range(rng.choice([1, 2, 100])):
        sent.metrics["loss" if number == 0 else f"metric {rng.integers(10**9)}\n"] = _float(rng)


def _replay(rng: np.random.Generator, sent: Sent, earlier: list[Sent]) -> None:
    """Send an earlier round's reply."""
    if earlier:
        old = earlier[rng.integers(len(earlier))].copy()
        sent.tensors, sent.scalars = old.tensors, old.scalars


def _twist(rng: np.random.Generator, sent: Sent, _: list[Sent]) -> None:
    """Break the message itself, or send it twice."""
    sent.twist = rng.choice(["twice", "failed", "empty", "doubled", "lies about arrays"]).item()


USABLE: tuple[Mutation, ...] = (_claim_numbers, _change_values, _claim_examples, _change_metrics)
"""Mutations that keep a reply's form."""

BREAKING: tuple[Mutation, ...] = (
    _damage_bytes,
    _change_type,
    _change_count,
    _change_scalar,
    _replay,
    _twist,
)
"""Mutations after which few replies can be read."""


class Cohort(Protocol):
    """A strategy of one of Flower's APIs, and the clients that it asks."""

    strategy: Any

    def ask(self, server_round: int, model: Arrays) -> dict[str, Any]:
        """Configure a round, and return the config that all clients are sent."""

    def hear(self, server_round: int, sent: list[Sent]) -> tuple[Arrays | None, dict[str, Any]]:
        """Aggregate what each client sends, and return the new model and the report."""


class MessageCohort:
    """The clients of a strategy of the Message API."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        self.strategy = {"SignSGD": SignSGD, "MedianSGD": MedianSGD}[kind](
            min_available_nodes=COHORT, **options
        )
        self._grid = InProcessGrid(ClientApp(), COHORT)
        self._asked: list[Message] = []

    def ask(self, server_round: int, model: Arrays) -> dict[str, Any]:
        """Configure a round, and return the config that all clients are sent."""
        messages = self.strategy.configure_train(
            server_round, to_record(model), ConfigRecord(), self._grid
        )
        self._asked = list(messages)
        return dict(self._asked[0].content["config"])

    def hear(self, server_round: int, sent: list[Sent]) -> tuple[Arrays | None, dict[str, Any]]:
        """Aggregate what each client sends, and return the new model and the report."""
        replies: list[Message] = []
        for message, one in zip(self._asked, sent, strict=True):
            reply = (
                Message(Error(1, "\nfailed"), reply_to=message)
                if one.twist == "failed"
                else Message(self._content(one), reply_to=message)
            )
            replies += [reply] * (2 if one.twist == "twice" else 1)
        record, metrics = self.strategy.aggregate_train(server_round, replies)
        return None if record is None else to_arrays(record), dict(metrics)

    @staticmethod
    def _content(sent: Sent) -> RecordDict:
        if sent.twist == "empty":
            return RecordDict()
        lies = sent.twist == "lies about arrays"
        dtype, shape = ("complex128", (2**40, -1)) if lies else ("float32", ())
        arrays = ArrayRecord(
            {
                str(position): Array(dtype, shape, "numpy.ndarray", one)
                for position, one in enumerate(sent.tensors)
            }
        )
        metrics = MetricRecord({"num-examples": sent.examples, **sent.metrics})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        content["fedmedian"] = ConfigRecord(sent.scalars)
        if sent.twist == "doubled":
            content["again"] = arrays
        return content


class LegacyCohort:
    """The clients of a strategy of the older API."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        self.strategy = getattr(legacy, kind)(min_available_clients=COHORT, **options)
        self._manager = SimpleClientManager()
        grid = InProcessGrid(ClientApp(), COHORT)
        for node in grid.get_node_ids():
            self._manager.register(GridClientProxy(node, grid, 1))
        self._asked: list[Any] = []

    def ask(self, server_round: int, model: Arrays) -> dict[str, Any]:
        """Configure a round, and return the config that all clients are sent."""
        asked = self.strategy.configure_fit(
            server_round, arrays_to_parameters(model), self._manager
        )
        self._asked = [client for client, _ in asked]
        return dict(asked[0][1].config)

    def hear(self, server_round: int, sent: list[Sent]) -> tuple[Arrays | None, dict[str, Any]]:
        """Aggregate what each client sends, and return the new model and the report."""
        results, failures = [], []
        for client, one in zip(self._asked, sent, strict=True):
            result = (client, self._result(one))
            if one.twist == "failed":
                failures.append(result)
            else:
                results += [result] * (2 if one.twist == "twice" else 1)
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, failures)
        model = None if parameters is None else parameters_to_arrays(parameters)
        return model, dict(metrics)

    @staticmethod
    def _result(sent: Sent) -> FitRes:
        code = Code.FIT_NOT_IMPLEMENTED if sent.twist == "failed" else Code.OK
        kind = "\n" if sent.twist == "lies about arrays" else "numpy.ndarray"
        tensors = [] if sent.twist == "empty" else sent.tensors * (1 + (sent.twist == "doubled"))
        own = {**sent.metrics, **sent.scalars}
        return FitRes(Status(code, "\nfailed"), Parameters(tensors, kind), sent.examples, own)


APIS: dict[str, Callable[[str, dict[str, Any]], Cohort]] = {
    "Message API": MessageCohort,
    "older API": LegacyCohort,
}


def play(api: str, name: str, rounds: int, seed: int) -> Outcomes:
    """Play rounds with a cohort of which half sends mutated replies.

    Parameters
    ----------
    api, name : str
        The API and the strategy, among `APIS` and `STRATEGIES`.
    rounds : int
        The number of rounds; after each `ROUNDS` another run begins.
    seed : int
        All follows from it.

    Returns
    -------
    Counter
        What came of the mutated replies, and each defect by its description.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    rng, outcomes = np.random.default_rng([seed, *map(ord, name)]), Outcomes()
    kind, options = STRATEGIES[name]
    cohort = APIS[api](kind, {**options, "seed": seed})
    model: Arrays = {}
    earlier: list[Sent] = []
    for played in range(rounds):
        server_round = played % ROUNDS + 1
        if server_round == 1:
            model, earlier = start_of(rng), []
        try:
            honest = _honest_replies(rng, cohort.ask(server_round, model), model, name)
            mutated = [mutate(rng, one, earlier) for one in islice(cycle(honest), HOSTILE)]
            sent = [*islice(cycle(honest), COHORT - HOSTILE), *mutated]
            after, report = cohort.hear(server_round, sent)
        except Exception as error:
            outcomes[f"raised {type(error).__name__}: {error}"] += 1
            model, earlier = start_of(rng), []
            continue
        accepted = report["replies-accepted"] - (COHORT - HOSTILE)
        outcomes += Outcomes({ACCEPTED: accepted, REFUSED: HOSTILE - accepted})
        for defect in _defects(cohort, after, accepted):
            outcomes[defect] += 1
        earlier += honest
        model = model if after is None else dict(zip(model, after.values(), strict=True))
    return outcomes


def start_of(rng: np.random.Generator) -> Arrays:
    """Return a model of every kind of array: 105 voted on, five that are not."""
    return {
        "weight": rng.standard_normal((8, 5), dtype=np.float32),
        "bias": rng.standard_normal(60),
        "half": rng.standard_normal(5).astype(np.float16),
        "norm.running_var": np.ones(4, dtype=np.float32),
        "steps": np.array(3),
    }


def _honest_replies(
    rng: np.random.Generator, config: dict[str, Any], model: Arrays, name: str
) -> list[Sent]:
    """Return what two honest clients send, whose updates differ."""
    instruction = Instruction.decode(config)
    layout = Layout.with_exact_positions(model, instruction.exact)
    replies = []
    for _ in range(2):
        after = {
            key: (array - 0.01 * rng.standard_normal(array.shape)).astype(array.dtype)
            for key, array in model.items()
        }
        if "server" in name:
            replies.append(Sent([write_npy(array) for array in after.values()], {}))
        else:
            update = layout.difference(model, after)
            bodies, scalars = perturb_update(instruction, layout, update, after, rng, {}).encode()
            replies.append(Sent([write_npy(body) for body in bodies], scalars))
    return replies


def _defects(cohort: Cohort, after: Arrays | None, accepted: int) -> Iterator[str]:
    """Yield what is wrong after a round."""
    if accepted < 0:
        yield "an honest reply was dropped"
    if after is not None and not all(np.isfinite(array).all() for array in after.values()):
        yield "the model is not finite"
    states = protocol_of(cohort.strategy)._models._known[-1].state.arrays.values()
    # NaN is a scale that clients choose.
    if any(state.scale > float(np.finfo(np.float32).max) for state in states):
        yield "a noise scale is not finite"


def main() -> None:
    """Print what comes of as many mutated replies, or instructions, as the command line says."""
    if sys.argv[1:2] == ["policy"]:
        print(policies.play_in_processes(*_numbers("instructions", 100_000, sys.argv[2:])))
        return
    replies, seed = _numbers("replies", 1_000_000, sys.argv[1:])
    # Pieces that take the same time, many for each process.
    pairs = [(api, name) for name in STRATEGIES for api in APIS]
    rounds = -(-replies // (HOSTILE * len(pairs) * PIECES))
    every = [(api, name, seed + piece) for api, name in pairs for piece in range(PIECES)]
    totals = {pair: Outcomes() for pair in pairs}
    with process_pool() as pool:
        runs = [pool.submit(play, api, name, rounds, own) for api, name, own in every]
        for (api, name, _), run in zip(every, tracked(runs, "piece"), strict=True):
            totals[api, name] += run.result()
    rows = []
    for (api, name), outcomes in totals.items():
        defects = {
            what: times for what, times in outcomes.items() if what not in (ACCEPTED, REFUSED)
        }
        told = "; ".join(f"{what} ({times})" for what, times in defects.items()) or "none"
        rows.append([name, api, f"{outcomes[ACCEPTED]:,}", f"{outcomes[REFUSED]:,}", told])
    print(make_table(["strategy", "API", "mutated and accepted", "refused", "defects"], rows))


def _numbers(what: str, usual: int, arguments: list[str]) -> tuple[int, int]:
    """Return how many of something the command line asks for, and of which seed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.fuzz",
        epilog="Mutates replies to strategies; with policy as the first word, it sends random "
        "instructions to clients with a policy.",
    )
    parser.add_argument(
        what, type=int, nargs="?", default=usual, help=f"how many (default: {usual:,})"
    )
    parser.add_argument(
        "seed", type=int, nargs="?", default=0, help="of the random numbers (default: 0)"
    )
    found = parser.parse_args(arguments)
    return getattr(found, what), found.seed


def _some(rng: np.random.Generator, size: int) -> list[int]:
    """Return some of the first integers: one, about half, or all."""
    if size == 0:
        return []
    match rng.integers(3):
        case 0:
            return [int(rng.integers(size))]
        case 1:
            return np.flatnonzero(rng.random(size) < 0.5).tolist()
        case _:
            return list(range(size))


def _integer(rng: np.random.Generator) -> int:
    return [0, 1, -1, 10**9, _LARGEST, -_LARGEST, int(rng.integers(1000))][rng.integers(7)]


def _float(rng: np.random.Generator) -> float:
    return float(rng.choice(_EXTREMES))


def _float32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


if __name__ == "__main__":
    main()
