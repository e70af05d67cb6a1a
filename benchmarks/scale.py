"""The server's part of one round, to 10⁴ clients and to 10⁹ parameters: time, memory, bytes."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.rounds import STRATEGIES
from benchmarks.timing import in_new_processes
from fedmedian.clients import InProcessGrid
from fedmedian.kernels.signs import packed_size
from fedmedian.kernels.threads import usual_threads
from fedmedian.model.layout import ArraySpec, Layout
from fedmedian.records import to_record
from fedmedian.steps.encodings import Signs
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.steps.payload import Payload
from fedmedian.wire.npy import NewArray

NAMES = ("SignSGD", "MedianSGD")
CLIENTS = (10, 100, 1_000, 10_000)
DIMS = (100, 10_000, 1_000_000, 10_000_000, 100_000_000)
_LONG_SECONDS = 3.0
_RUNS = 3
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RoundCost:
    """The cost of one round to the server. Times but one are the processor's, on one thread.

    Parameters
    ----------
    strategy : str
        The strategy.
    clients, dim : int
        M and d.
    ask_seconds : float
        The time in which the messages to the clients are made.
    carry_seconds : float
        The time in which an `InProcessGrid` carries them and the replies, its clients' answers
        being ready. It has a Message of Flower's for each and serializes it to count its bytes,
        as Flower's other engines do to send it.
    aggregate_seconds : float
        The time in which the replies become a model.
    all_cores_seconds : float
        The same by the clock, on as many threads as are usual.
    peak_mebibytes : float
        The most memory that the server's process takes for model, replies and aggregation.
    to_aggregate_mebibytes : float
        The part of it that aggregation takes, with the new model.
    up_bytes, down_bytes : float
        The size of a reply, and of a message to a client.
    """

    strategy: str
    clients: int
    dim: int
    ask_seconds: float
    carry_seconds: float
    aggregate_seconds: float
    all_cores_seconds: float
    peak_mebibytes: float
    to_aggregate_mebibytes: float
    up_bytes: float
    down_bytes: float


def round_costs(clients: Iterable[int] = CLIENTS, dims: Iterable[int] = DIMS) -> list[RoundCost]:
    """Measure a round over M and over d, each point in its own process.

    Parameters
    ----------
    clients : iterable of int
        The numbers of clients, of a model of the first d.
    dims : iterable of int
        The numbers of parameters, for the first number of clients.

    Returns
    -------
    list of RoundCost
        The costs.
    """
    clients, dims = tuple(clients), tuple(dims)
    sizes = [*((number, dims[0]) for number in clients), *((clients[0], dim) for dim in dims[1:])]
    return in_new_processes(measure_round, [(name, *size) for name in NAMES for size in sizes])


def billion_costs(clients: int = 4, dim: int = 10**9) -> list[RoundCost]:
    """Measure a round of votes on a billion parameters."""
    return in_new_processes(measure_round, [("SignSGD", clients, dim)])


@dataclass(frozen=True)
class MessageCost:
    """The cost of a model in Flower's messages.

    Parameters
    ----------
    dim, arrays : int
        The numbers of its parameters and of its arrays, all of one size.
    objects : int
        The number of objects that it is sent as.
    largest_bytes : int
        The size of the largest object.
    send_seconds, receive_seconds : float
        The processor's time to make and name the objects, and to make a model of them.
    receive_models : float
        The most memory that the receiver takes, with all objects, in models.
    """

    dim: int
    arrays: int
    objects: int
    largest_bytes: int
    send_seconds: float
    receive_seconds: float
    receive_models: float


def message_costs(dim: int = 10**8, arrays: Iterable[int] = (1, 10)) -> list[MessageCost]:
    """Measure the messages of models of several numbers of arrays, each in its own process."""
    return in_new_processes(measure_messages, [(dim, number) for number in arrays])


def measure_messages(dim: int, arrays: int) -> MessageCost:
    """Measure a model's messages; their memory only in a process that has done nothing else."""
    record, begin = _model(dim, arrays), time.process_time()
    objects = get_all_nested_objects(record)
    contents = {name: one.deflate() for name, one in objects.items()}
    send_seconds, number = time.process_time() - begin, len(contents)
    largest, name = max(map(len, contents.values())), record.object_id
    del record, objects
    before = _mebibytes("VmRSS") - sum(map(len, contents.values())) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    begin = time.process_time()
    received = inflate_object_from_contents(name, contents)
    receive_seconds = time.process_time() - begin
    assert received.object_id == name
    models = (_mebibytes("VmHWM") - before) * 2**20 / (4 * dim)
    return MessageCost(dim, arrays, number, largest, send_seconds, receive_seconds, models)


def message_rows(costs: Iterable[MessageCost]) -> list[list[str]]:
    """Return the costs as a table's rows, under `MESSAGE_COLUMNS`."""
    return [
        [
            f"{cost.dim:,}",
            str(cost.arrays),
            f"{cost.objects:,}",
            f"{cost.largest_bytes:,}",
            f"{1e3 * cost.send_seconds:.1f}",
            f"{1e3 * cost.receive_seconds:.1f}",
            f"{cost.receive_models:.1f}",
        ]
        for cost in costs
    ]


MESSAGE_COLUMNS = [
    *("d", "arrays", "objects", "bytes of the largest", "ms to send", "ms to receive"),
    "models in the receiver's memory",
]


def measure_round(name: str, clients: int, dim: int) -> RoundCost:
    """Measure one round; its memory only in a process that has done nothing else."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    before = _mebibytes("VmRSS")
    grid, model = InProcessGrid(ClientApp(), clients), _model(dim)
    one_thread, all_cores = (
        STRATEGIES[name](min_train_nodes=clients, min_available_nodes=clients, threads=threads)
        for threads in (1, usual_threads())
    )

    def ask(strategy: FedAvg = one_thread) -> list[Message]:
        return list(strategy.configure_train(1, model, ConfigRecord(), grid))

    contents = _contents(ask()[0], clients, dim)
    ask_seconds, messages = _timed(ask)
    replies = [
        Message(content=content, reply_to=message)
        for content, message in zip(contents, messages, strict=True)
    ]

    def aggregate(strategy: FedAvg, clock: Callable[[], float]) -> float:
        # A round is aggregated once, so each timing asks again.
        ready = partial(ask, strategy)
        seconds, (arrays, metrics) = _timed(
            lambda: strategy.aggregate_train(1, replies), ready, clock
        )
        assert arrays is not None
        assert metrics is not None
        assert metrics["replies-accepted"] == clients
        return seconds

    held = _mebibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    all_cores_seconds = aggregate(all_cores, time.perf_counter)
    peak = _mebibytes("VmHWM")
    aggregate_seconds = aggregate(one_thread, time.process_time)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = contents[cast(int, context.node_config["partition-id"])]
        return Message(content=content, reply_to=message)

    carrying = InProcessGrid(app, clients)
    begin = time.process_time()
    carried = len(list(carrying.send_and_receive(messages)))
    carry_seconds = time.process_time() - begin
    assert carried == clients
    return RoundCost(
        *(name, clients, dim, ask_seconds, carry_seconds, aggregate_seconds, all_cores_seconds),
        *(peak - before, peak - held, carrying.bytes_up / clients, carrying.bytes_down / clients),
    )


def plot_round_costs(costs: Iterable[RoundCost], path: Path) -> None:
    """Plot time and memory over M and over d.

    Parameters
    ----------
    costs : iterable of RoundCost
        The costs, as `round_costs` returns them.
    path : Path
        Where the figure goes.
    """
    costs = list(costs)
    fewest, least = min(cost.clients for cost in costs), min(cost.dim for cost in costs)
    with mpl.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(9, 6.5), layout="constrained")
        axes = figure.subplots(2, 2, sharex="col", sharey="row")
        for name, color in zip(NAMES, ("C0", "C1"), strict=True):
            own = [cost for cost in costs if cost.strategy == name]
            over_clients = [cost for cost in own if cost.dim == least]
            over_dims = [cost for cost in own if cost.clients == fewest]
            for column, (points, ticks) in enumerate(
                (
                    (over_clients, [cost.clients for cost in over_clients]),
                    (over_dims, [cost.dim for cost in over_dims]),
                )
            ):
                lines: tuple[tuple[int, str, str, list[float]], ...] = (
                    (0, "o-", "from replies to model", [one.aggregate_seconds for one in points]),
                    (0, "x:", "Flower's messages", [one.carry_seconds for one in points]),
                    (1, "o-", "peak", [one.peak_mebibytes for one in points]),
                    (1, "x:", "replies alone", [_replies_mebibytes(one) for one in points]),
                )
                for row, style, what, values in lines:
                    label = f"{name}: {what}"
                    axes[row, column].plot(ticks, values, style, color=color, label=label)
        for column, (label, title) in enumerate(
            (("clients M", f"d = {least:,}"), ("parameters d", f"M = {fewest}"))
        ):
            axes[0, column].set_title(title)
            axes[1, column].set_xlabel(label)
            for row in (0, 1):
                axes[row, column].set(xscale="log", yscale="log")
        axes[0, 0].set_ylabel("processor's time, s")
        axes[1, 0].set_ylabel("memory, MiB")
        for row in (0, 1):
            axes[row, 0].legend(fontsize="small")
        figure.savefig(path, dpi=150)


def cost_rows(costs: Iterable[RoundCost]) -> list[list[str]]:
    """Return the costs as a table's rows, under `COST_COLUMNS`."""
    return [
        [
            cost.strategy,
            f"{cost.clients:,}",
            f"{cost.dim:,}",
            f"{1e3 * cost.ask_seconds:.1f}",
            f"{1e3 * cost.carry_seconds:.1f}",
            f"{1e3 * cost.aggregate_seconds:.1f}",
            f"{1e3 * cost.all_cores_seconds:.1f}",
            f"{cost.peak_mebibytes:.0f}",
            f"{cost.to_aggregate_mebibytes:.0f}",
            f"{_replies_mebibytes(cost):.0f}",
            f"{cost.up_bytes:,.0f}",
            f"{cost.down_bytes:,.0f}",
        ]
        for cost in costs
    ]


COST_COLUMNS = [
    "strategy",
    "M",
    "d",
    "ms to ask",
    "ms in messages",
    "ms to aggregate",
    "on all cores",
    "peak MiB",
    "MiB to aggregate",
    "replies MiB",
    "bytes up",
    "bytes down",
]


def _replies_mebibytes(cost: RoundCost) -> float:
    return cost.clients * cost.up_bytes / 2**20


def _model(dim: int, arrays: int = 1) -> ArrayRecord:
    """Return a model of arrays of one size, in no more memory than its own."""
    rng, size = np.random.default_rng(1), dim // arrays
    model = {}
    for number in range(arrays):
        new = NewArray((size,), np.dtype(np.float32))
        for start in range(0, size, _CHUNK):
            stop = min(start + _CHUNK, size)
            # Not zeros: Flower sends equal stretches of an array once.
            new.flat[start:stop] = rng.standard_normal(stop - start, dtype=np.float32)
        model[f"w{number}"] = new.finish()
    return to_record(model)


def _contents(message: Message, clients: int, dim: int) -> list[RecordDict]:
    """Return the contents of the clients' replies to a message, with bodies of random numbers."""
    rng = np.random.default_rng(0)
    instruction = Instruction.decode(message.content["config"])
    spec = ArraySpec("w0", (dim,), np.dtype(np.float32), exact=False)
    blocks = instruction.blocks(Layout((spec,)))
    ones, none = np.ones(len(blocks), dtype=np.float32), np.empty(0, dtype=np.uint8)
    sized = (step for step in instruction.steps if isinstance(step, Measure | AddNoise))
    reports = {step.name: ones for step in sized}
    contents = []
    for _ in range(clients):
        body: NDArray[Any]
        if isinstance(instruction.encoding, Signs):
            body = np.frombuffer(rng.bytes(packed_size(blocks.dim)), dtype=np.uint8)
        else:
            body = rng.standard_normal(blocks.dim, dtype=np.float32)
        payload = Payload(instruction.encoding.name, body, none, 1, None, reports)
        arrays, scalars = payload.encode()
        contents.append(
            RecordDict(
                {
                    "arrays": to_record({str(index): one for index, one in enumerate(arrays)}),
                    "fedmedian": ConfigRecord(cast(Any, scalars)),
                    "metrics": MetricRecord(
                        {"num-examples": int(rng.integers(10, 1000)), "loss": 0.5}
                    ),
                }
            )
        )
    return contents


def _timed(
    run: Callable[[], Any],
    prepare: Callable[[], Any] = bool,
    clock: Callable[[], float] = time.process_time,
) -> tuple[float, Any]:
    """Return the median time of some runs, or that of one long run, and the last result.

    What prepares each of them is not part of the time.
    """
    times: list[float] = []
    while len(times) < _RUNS and max(times, default=0.0) < _LONG_SECONDS:
        result = None  # whose memory the next one may take
        prepare()
        start = clock()
        result = run()
        times.append(clock() - start)
    return median(times), result


def _mebibytes(what: str) -> float:
    """Return the memory of this process, VmRSS, or the most that it has had, VmHWM."""
    # What getrusage calls the peak is, in a young process, that of the one it was forked from.
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[what].split()[0]) / 2**10
