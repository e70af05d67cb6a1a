"""The memory of simulations whose clients hold the model between rounds, and of those without."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import numpy as np
import psutil
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from benchmarks.timing import in_new_processes
from fedmedian import CodedSteps
from fedmedian.clients import InProcessGrid, perturb
from fedmedian.records import to_record
from fedmedian.strategies import SignSGD

_PAUSE_SECONDS = 0.2
_ROUNDS = 3

app = ClientApp(mods=[perturb])


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the model, a little changed."""
    model = message.content.array_records["arrays"]["w"].numpy() + np.float32(1e-3)
    metrics = MetricRecord({"num-examples": 1})
    return Message(
        RecordDict({"arrays": to_record({"w": model}), "metrics": metrics}), reply_to=message
    )


@dataclass(frozen=True)
class Holding:
    """What a simulation takes.

    Parameters
    ----------
    engine : str
        What runs the clients: "InProcessGrid" or "Ray".
    downlink : str
        What clients are sent: "models" or "coded steps".
    mebibytes : float
        The most memory of all its processes together; what they share counts once.
    seconds : float
        The time of its last round.
    """

    engine: str
    downlink: str
    mebibytes: float
    seconds: float


COLUMNS = ["engine", "downlink", "peak MiB of all processes", "s per round"]


def holdings(
    clients: int = 100, dim: int = 10**6, engines: Sequence[str] = ("InProcessGrid", "Ray")
) -> list[Holding]:
    """Measure simulations with and without a coded downlink, each in its own process."""
    points = [(engine, coded, clients, dim) for engine in engines for coded in (False, True)]
    return in_new_processes(measure, points)


def measure(engine: str, coded: bool, clients: int, dim: int) -> Holding:
    """Measure one simulation; its memory only in a process that has done nothing else."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    ends: list[float] = []

    def run(grid: Grid) -> None:
        strategy = SignSGD(
            downlink=CodedSteps() if coded else None,
            fraction_evaluate=0.0,
            min_train_nodes=clients,
            min_available_nodes=clients,
        )

        def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            ends.append(time.perf_counter())
            return MetricRecord({"seen": 1})

        # Not zeros: equal pages could be shared.
        start = np.random.default_rng(0).standard_normal(dim, dtype=np.float32)
        strategy.start(grid, to_record({"w": start}), _ROUNDS, evaluate_fn=note)

    with _peak() as peak:
        _ENGINES[engine](run, clients)
    return Holding(
        engine, "coded steps" if coded else "models", max(peak) / 2**20, ends[-1] - ends[-2]
    )


def rows(found: list[Holding]) -> list[list[str]]:
    """Return the measurements as a table's rows, under `COLUMNS`."""
    return [
        [one.engine, one.downlink, f"{one.mebibytes:,.0f}", f"{one.seconds:.1f}"] for one in found
    ]


def _in_process(run: Callable[[Grid], None], clients: int) -> None:
    run(InProcessGrid(app, clients))


def _on_ray(run: Callable[[Grid], None], clients: int) -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        run(grid)

    run_simulation(
        server, app, num_supernodes=clients, backend_config={"client_resources": {"num_cpus": 1}}
    )


_ENGINES = {"InProcessGrid": _in_process, "Ray": _on_ray}


@contextmanager
def _peak() -> Iterator[list[int]]:
    """Measure the memory of this process and its descendants until the context is left."""
    found, ends = list[int](), Event()

    def watch() -> None:
        is_last = False
        while not is_last:
            is_last = ends.wait(_PAUSE_SECONDS)
            found.append(sum(map(_memory, [own, *own.children(recursive=True)])))

    own, thread = psutil.Process(), Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ends.set()
        thread.join()


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # it has ended
        return 0
