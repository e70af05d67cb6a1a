"""The jobs of a study: what has a result is not run again, and a failure loses nothing."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from experiments.studies.jobs import run_jobs


def note(folder, name):
    """A job that notes that it ran."""
    (folder / name).touch()
    return {"name": name}


def wait_for(folder, name):
    """Return once a file is there."""
    deadline = time.monotonic() + 60
    while not (folder / name).exists():
        assert time.monotonic() < deadline, f"{name} has not come within a minute"
        time.sleep(0.01)


def fail(folder):
    raise RuntimeError("this job fails")


def fail_while(folder, other):
    """A job that fails while another runs."""
    wait_for(folder, other)
    (folder / "failed").touch()
    fail(folder)


def outlast(folder, name):
    """A job that still runs when another fails."""
    (folder / name).touch()
    wait_for(folder, "failed")
    time.sleep(0.5)
    return {"name": name}


def test_a_job_that_has_a_result_is_not_run_again(tmp_path):
    jobs = {key: (f"the job {key}", partial(note, tmp_path, key)) for key in ("a", "b")}
    first = run_jobs(jobs, tmp_path / "results", processes=1)
    assert list(first) == ["a", "b"]
    (tmp_path / "a").unlink()
    assert run_jobs(jobs, tmp_path / "results", processes=1) == first
    assert not (tmp_path / "a").exists()


def test_a_job_that_fails_ends_the_study_and_leaves_the_results_of_those_before(tmp_path):
    jobs = {"a": ("a", partial(note, tmp_path, "a")), "b": ("b", partial(fail, tmp_path))}
    with pytest.raises(RuntimeError, match="this job fails"):
        run_jobs(jobs, tmp_path / "results", processes=1)
    (tmp_path / "a").unlink()
    mended = {**jobs, "b": ("b", partial(note, tmp_path, "b"))}
    assert run_jobs(mended, tmp_path / "results", processes=1)["b"] == {"name": "b"}
    assert not (tmp_path / "a").exists()


def test_what_runs_while_a_job_fails_is_kept(tmp_path):
    jobs = {
        "a": ("a", partial(outlast, tmp_path, "a")),
        "b": ("b", partial(fail_while, tmp_path, "a")),
    }
    with pytest.raises(RuntimeError, match="this job fails"):
        run_jobs(jobs, tmp_path / "results", processes=2)
    (tmp_path / "a").unlink()
    mended = {**jobs, "b": ("b", partial(note, tmp_path, "b"))}
    assert run_jobs(mended, tmp_path / "results", processes=2)["a"] == {"name": "a"}
    assert not (tmp_path / "a").exists()


def wait_as(folder):
    """A job that never ends, and notes which process it has."""
    (folder / "pid.part").write_text(str(os.getpid()))
    (folder / "pid.part").rename(folder / "pid")
    time.sleep(90)


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_no_process_outlives_a_study_that_is_killed(ends, tmp_path):
    study = (
        "from functools import partial; from pathlib import Path; "
        "from experiments.studies.jobs import run_jobs; "
        "from tests.experiments.test_jobs import wait_as; "
        f"run_jobs({{0: ('a', partial(wait_as, Path({str(tmp_path)!r})))}}, "
        f"Path({str(tmp_path)!r}), 1)"
    )
    with subprocess.Popen([sys.executable, "-c", study]) as process:
        try:
            wait_for(tmp_path, "pid")
            worker = psutil.Process(int((tmp_path / "pid").read_text()))
        finally:
            process.send_signal(ends)
    worker.wait(timeout=60)
