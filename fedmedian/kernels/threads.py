"""Work on several threads, for kernels that release Python's lock."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


_MOST = 8
"""The largest default number of threads: more of them wait for memory."""


def usual_threads() -> int:
    """Return the number of cores that this process may use, but at most 8."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return min(len(os.sched_getaffinity(0)), _MOST)
    return min(os.cpu_count() or 1, _MOST)


def in_threads(work: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Return the results of some work on each item, in order.

    Parameters
    ----------
    work : callable
        Maps an item to its result.
    items : sequence
        The items.
    threads : int
        The number of threads, >= 1; with one, or with one item, none is started.

    Returns
    -------
    list
        The results.
    """
    results = dict[int, Result]()
    waiting = iter(range(len(items)))

    def work_in_turn() -> None:
        try:
            for place in waiting:
                results[place] = work(items[place])
        finally:
            for _ in waiting:  # after an error, which the caller gets, nobody begins another item
                pass

    # This thread works, too: it would wake up at each result, and make the others wait.
    with ThreadPoolExecutor(max(threads - 1, 1)) as pool:
        others = [pool.submit(work_in_turn) for _ in range(min(threads, len(items)) - 1)]
        work_in_turn()
        for other in others:
            other.result()
    return [results[place] for place in range(len(items))]
