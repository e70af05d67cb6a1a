"""Rounds from end to end: the server's part alone, and simulation with and without Ray."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any, cast

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedMedian
from flwr.simulation import run_simulation

from benchmarks.timing import Case, Timing
from fedmedian import Agreement, ClippedMean, CodedSteps, Counts
from fedmedian.clients import InProcessGrid
from fedmedian.model.layout import Layout
from fedmedian.steps.downlink import HELD, is_in, version_of_whole
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.strategies import MedianSGD, SignSGD
from fedmedian.wire.scalars import PREFIX

STRATEGIES: dict[str, Callable[..., FedAvg]] = {
    "SignSGD": SignSGD,
    "SignSGD, coded downlink": partial(SignSGD, downlink=CodedSteps()),
    "SignSGD, agreement": partial(SignSGD, aggregator=Agreement(Counts())),
    "MedianSGD": MedianSGD,
    "MedianSGD, clipped mean": partial(MedianSGD, None, ClippedMean()),
    "MedianSGD, agreement": partial(MedianSGD, None, Agreement(ClippedMean())),
    "FedAvg": FedAvg,
    "FedMedian": FedMedian,
}
SIZES = ((10, 10**6), (100, 10**6), (1000, 10**5), (10, 10**7))


class ServerRound:
    """A strategy with its clients' replies at hand, ready for any number of rounds.

    Each begins with the model that the one before has made, and has the same replies. Where clients
    hold the model, they say that they hold what they were sent.
    """

    def __init__(self, strategy: str, clients: int, dim: int) -> None:
        self._grid = InProcessGrid(ClientApp(), clients)
        self._model = ArrayRecord({"w": Array(np.zeros(dim, np.float32))})
        self._strategy = STRATEGIES[strategy](min_train_nodes=clients, min_available_nodes=clients)
        self._round, rng = 0, np.random.default_rng(0)
        for _ in range(2):  # the first round asks for more than those after it
            self._replies = [_reply(message, dim, rng) for message in self._ask()]
            self._hear({})

    def __call__(self) -> int:
        """Do the server's part of a round, and return the new model's size in bytes."""
        config = cast(ConfigRecord, self._ask()[0].content["config"])
        if not Instruction.is_in(config):
            return self._hear({})
        return self._hear({f"{PREFIX}round": self._round, **_held(config)})

    def _ask(self) -> list[Message]:
        self._round += 1
        asked = self._strategy.configure_train(self._round, self._model, ConfigRecord(), self._grid)
        return list(asked)

    def _hear(self, own: Mapping[str, str | int]) -> int:
        if own:
            for reply in self._replies:
                reply.content.config_records["fedmedian"].update(own)
        # FedMedian takes the replies apart.
        replies = [
            Message(content=_copy(reply.content), metadata=reply.metadata)  # type: ignore[call-overload]
            for reply in self._replies
        ]
        arrays, _ = self._strategy.aggregate_train(self._round, replies)
        assert arrays is not None
        self._model = arrays
        return sum(array.numpy().nbytes for array in arrays.values())


def round_cases() -> Iterator[Case]:
    """Yield one server round, from configure_train to the new model."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    for clients, dim in SIZES:
        yield Case(
            f"server round, M = {clients}, d = {dim:,}",
            {name: ServerRound(name, clients, dim) for name in STRATEGIES},
            0,
            lambda ours, theirs: ours == theirs,
        )


def grid_timings(clients: int = 10, dim: int = 8_000) -> list[Timing]:
    """Time rounds of FedAvg in `InProcessGrid` and in Flower's simulation on Ray."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict(
            {"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})}
        )
        return Message(content=content, reply_to=message)

    def rounds(grid: Grid, num_rounds: int) -> list[float]:
        ends: list[float] = []

        def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            ends.append(time.perf_counter())
            return MetricRecord({"seen": 1})

        FedAvg(fraction_evaluate=0.0).start(
            grid=grid,
            initial_arrays=ArrayRecord({"w": Array(np.zeros(dim, np.float32))}),
            num_rounds=num_rounds,
            evaluate_fn=note,
        )
        # The first round waits for Ray's workers to start.
        return [end - start for start, end in pairwise(ends[1:])]

    server, taken = ServerApp(), []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        taken.extend(rounds(grid, 21))

    run_simulation(
        server, app, num_supernodes=clients, backend_config={"client_resources": {"num_cpus": 1}}
    )
    ours, theirs = median(rounds(InProcessGrid(app, clients), 101)), median(taken)
    case = f"simulated round, {clients} clients, d = {dim:,}"
    return [
        Timing(case, "InProcessGrid", ours, 100, None, 0.0, True),
        Timing(case, "Ray", theirs, 20, theirs / ours, 0.0, True),
    ]


def _copy(content: RecordDict) -> RecordDict:
    """Return a copy whose arrays can be taken out."""
    arrays = ArrayRecord(dict(content.array_records["arrays"]))
    return RecordDict({**content, "arrays": arrays})


def _held(config: ConfigRecord) -> dict[str, str]:
    """Return what clients reply that hold the model of a message with a config."""
    if not is_in(config):
        return {}
    version = version_of_whole(config)
    if version is None:
        versions = json.loads(cast(str, config["fedmedian.model.versions"]))
        version = [cast(str, config["fedmedian.model.base"]), *versions][-1]
    return {HELD: version}


def _reply(message: Message, dim: int, rng: np.random.Generator) -> Message:
    update = rng.standard_normal(dim, dtype=np.float32)
    metrics = MetricRecord({"num-examples": int(rng.integers(10, 1000))})
    records: dict[str, Any] = {"arrays": ArrayRecord({"w": Array(update)}), "metrics": metrics}
    config = message.content["config"]
    if Instruction.is_in(config):
        layout = Layout.of_model({"w": update})
        payload = perturb_update(Instruction.decode(config), layout, update, {}, rng)
        arrays, scalars = payload.encode()
        records["arrays"] = ArrayRecord({str(i): Array(one) for i, one in enumerate(arrays)})
        records["fedmedian"] = ConfigRecord(cast(Any, scalars))
    return Message(RecordDict(records), reply_to=message)
