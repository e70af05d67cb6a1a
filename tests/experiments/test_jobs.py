"""The jobs of a study: what has a result is not run again, and a failure loses nothing."""

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


def wait_for(condition):
    """Return once a condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it has not come about within a minute"
        time.sleep(0.01)


def fail(folder):
    raise RuntimeError("this job fails")


def fail_while(folder, other):
    """A job that fails while another runs."""
    wait_for((folder / other).exists)
    (folder / "failed").touch()
    fail(folder)


def outlast(folder, name):
    """A job that still runs when another fails."""
    (folder / name).touch()
    wait_for((folder / "failed").exists)
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


STUDY = """
import os, sys, time
from functools import partial
from pathlib import Path
from experiments.studies.jobs import run_jobs

folder = Path(sys.argv[1])
jobs = [("begun", partial(os.mkdir, folder / "begun")), ("endless", partial(time.sleep, 90))]
run_jobs(dict(enumerate(jobs)), folder, processes=1)
"""


def has_ended(process):
    """Tell whether a process has ended, though perhaps nobody has asked how."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL], ids=lambda one: one.name)
def test_no_process_outlives_a_study_that_is_killed(ends, tmp_path):
    with subprocess.Popen([sys.executable, "-c", STUDY, str(tmp_path)]) as study:
        try:
            wait_for((tmp_path / "begun").exists)
            started = psutil.Process(study.pid).children(recursive=True)
        finally:
            study.send_signal(ends)
    assert len(started) > 0
    wait_for(lambda: all(map(has_ended, started)))
