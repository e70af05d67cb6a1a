"""Contenders for the same work, timed in turns."""

import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import numpy as np

from experiments.studies.jobs import process_pool

Found = TypeVar("Found")

_SECONDS = 3.0
_LEAST_RUNS, _MOST_RUNS = 3, 9


@dataclass(frozen=True)
class Case:
    """One piece of work and the ways to do it.

    Parameters
    ----------
    name : str
        The work, with its size.
    contenders : mapping of str to callable
        Ours first; what each returns is compared with ours.
    num_bytes : int
        The bytes that must be read at least; 0 where that says nothing.
    agree : callable
        Whether a contender's result (second) is as good as ours (first).
    """

    name: str
    contenders: Mapping[str, Callable[[], Any]]
    num_bytes: int
    agree: Callable[[Any, Any], bool] = np.array_equal


@dataclass(frozen=True)
class Timing:
    """The time that one contender took.

    Parameters
    ----------
    case, contender : str
        The work, and who did it.
    seconds : float
        The median of its runs.
    runs : int
        How many there were.
    ours_is_faster : float or None
        The median over the rounds of turns of this contender's time over ours; None for ours,
        and where the results differ.
    of_bandwidth : float
        The rate at which it read its input, over the machine's read bandwidth.
    agrees : bool
        Whether its result is as good as ours.
    """

    case: str
    contender: str
    seconds: float
    runs: int
    ours_is_faster: float | None
    of_bandwidth: float
    agrees: bool


def read_bandwidth() -> float:
    """Return the bytes per second that one core reads from memory."""
    words = np.ones(1 << 25, dtype=np.uint64)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        np.bitwise_or.reduce(words)
        times.append(time.perf_counter() - start)
    return words.nbytes / median(times)


def compare(case: Case, bandwidth: float) -> list[Timing]:
    """Time a case's contenders in turns, so that all meet the same disturbances.

    Parameters
    ----------
    case : Case
        The work.
    bandwidth : float
        The machine's read bandwidth in bytes per second.

    Returns
    -------
    list of Timing
        One for each contender, in order.
    """
    results = {name: run() for name, run in case.contenders.items()}
    ours = next(iter(results))
    agrees = {name: bool(case.agree(results[ours], result)) for name, result in results.items()}
    del results
    times: dict[str, list[float]] = {name: [] for name in case.contenders}
    begin = time.perf_counter()
    while (runs := len(times[ours])) < _LEAST_RUNS or (
        runs < _MOST_RUNS and time.perf_counter() - begin < _SECONDS
    ):
        for name, run in case.contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    timings = []
    for name, taken in times.items():
        ratio = None
        if name != ours and agrees[name]:
            ratio = median(theirs / own for theirs, own in zip(taken, times[ours], strict=True))
        seconds = median(taken)
        rate = case.num_bytes / seconds / bandwidth
        timings.append(Timing(case.name, name, seconds, runs, ratio, rate, agrees[name]))
    return timings


def in_new_processes(
    measure: Callable[..., Found], points: Iterable[tuple[Any, ...]]
) -> list[Found]:
    """Return what is measured at each point, each in a process that has done nothing else."""
    with process_pool(1, max_tasks_per_child=1) as pool:
        return list(pool.map(measure, *zip(*points, strict=True)))


def peak_mebibytes(run: Callable[[], object]) -> float:
    """Return the most memory that some work takes at once, in MiB."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / 2**20
