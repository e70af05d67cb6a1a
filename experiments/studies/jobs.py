"""Many runs of a study: in parallel processes, each result kept, so that a killed study resumes."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from experiments.studies.progress import tracked

Result = dict[str, Any]
"""The findings of a job; JSON can hold them."""

Job = tuple[str, Callable[[], Result]]
"""A name that says all that the findings depend on, and what finds them in another process."""

Key = TypeVar("Key")


def run_jobs(
    jobs: Mapping[Key, Job], folder: Path, processes: int | None = None
) -> dict[Key, Result]:
    """Run the jobs that have no result yet, and return the results of all.

    If one fails, those that run are finished and kept before its error is raised.

    Parameters
    ----------
    jobs : mapping of any keys to `Job`
        The jobs; those of one name are one.
    folder : Path
        Where results are kept, a file each; made if it is not there.
    processes : int, optional
        The number of processes; one for each core if not given.

    Returns
    -------
    dict of the keys to dict
        The results, in the order of the jobs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    work = dict(jobs.values())
    files = {name: folder / f"{sha256(name.encode()).hexdigest()[:16]}.json" for name in work}
    missing = [name for name in work if not files[name].exists()]
    failure = None
    with process_pool(processes) as pool:
        running = {pool.submit(work[name]): name for name in missing}
        try:
            for future in tracked(as_completed(running), "run", len(running)):
                if future.cancelled():
                    continue
                if error := future.exception():
                    failure = failure or error
                    for other in running:
                        other.cancel()
                    continue
                name = running[future]
                write_whole(files[name], json.dumps({"job": name, "result": future.result()}))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failure is not None:
        raise failure
    return {key: json.loads(files[name].read_text())["result"] for key, (name, _) in jobs.items()}


def process_pool(
    processes: int | None = None, *, max_tasks_per_child: int | None = None
) -> ProcessPoolExecutor:
    """Return a pool of new processes, which end when this one ends, however it does.

    Parameters
    ----------
    processes : int, optional
        The number of processes; one for each core if not given.
    max_tasks_per_child : int, optional
        The number of tasks of each process; any number if not given.

    Returns
    -------
    ProcessPoolExecutor
        The pool.
    """
    return ProcessPoolExecutor(
        processes or len(os.sched_getaffinity(0)),
        get_context("spawn"),
        _end_with_parent,
        max_tasks_per_child=max_tasks_per_child,
    )


def _end_with_parent() -> None:
    """Let this process end once its parent has: by itself it would wait for more tasks forever."""
    parent = parent_process()
    assert parent is not None  # this is a process of a pool

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def write_whole(file: Path, text: str) -> None:
    """Write a file atomically: a killed process leaves all of it or nothing."""
    unfinished = file.with_suffix(".part")
    unfinished.write_text(text)
    unfinished.replace(file)
