"""The jobs of a study: what has a result is not run again, and a failure loses nothing."""

from functools import partial

import pytest

from experiments.studies.jobs import run_jobs


def note(folder, name):
    """A job that notes that it ran."""
    (folder / name).touch()
    return {"name": name}


def fail(folder):
    raise RuntimeError("this job fails")


def test_a_job_that_has_a_result_is_not_run_again(tmp_path):
    jobs = {name: partial(note, tmp_path, name) for name in ("a", "b")}
    first = run_jobs(jobs, tmp_path / "results", processes=1)
    assert list(first) == ["a", "b"]
    (tmp_path / "a").unlink()
    assert run_jobs(jobs, tmp_path / "results", processes=1) == first
    assert not (tmp_path / "a").exists()


def test_a_job_that_fails_ends_the_study_and_leaves_the_results_of_those_before(tmp_path):
    jobs = {"a": partial(note, tmp_path, "a"), "b": partial(fail, tmp_path)}
    with pytest.raises(RuntimeError, match="this job fails"):
        run_jobs(jobs, tmp_path / "results", processes=1)
    (tmp_path / "a").unlink()
    mended = {**jobs, "b": partial(note, tmp_path, "b")}
    assert run_jobs(mended, tmp_path / "results", processes=1)["b"] == {"name": "b"}
    assert not (tmp_path / "a").exists()
