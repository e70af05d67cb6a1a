"""The experiments are run from the repository and not installed; what they start is watched."""

import contextlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import uuid

import pytest

pytest.importorskip("torch")

import psutil

from experiments.apps import HETEROGENEOUS, read_config
from experiments.apps.heterogeneous.fedmedian_heterogeneous import client_app, server_app
from experiments.claims import text
from experiments.claims.bits import study
from experiments.studies.report import as_runs
from fedmedian.clients import InProcessGrid
from tests.tools.places import ROOT

_MARK = "WATCHED_BY_TEST"


class Watched:
    """A command of an experiment, and all that it starts: a variable in the environment tells."""

    def __init__(self, *arguments, output=subprocess.PIPE, **environment):
        self._mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment, _MARK: self._mark},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            # What runs in the background of a shell ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def running(self):
        """Every process that still runs."""
        every = psutil.process_iter()
        return [one for one in every if environment_of(one).get(_MARK) == self._mark]

    def homes(self):
        """The folders that Flower keeps its things in."""
        ours = {None, os.environ.get("FLWR_HOME")}
        return {environment_of(one).get("FLWR_HOME") for one in self.running()} - ours

    def end(self):
        self.process.kill()
        self.process.wait()
        for one in self.running():
            with contextlib.suppress(psutil.Error):
                one.kill()


def environment_of(process):
    """The environment of a process, empty if it is not ours to see or has just ended."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.fixture(scope="session")
def watch():
    """Returns a context manager that starts a command and, at last, ends whatever is left."""

    @contextlib.contextmanager
    def watch(*arguments, **options):
        watched = Watched(*arguments, **options)
        try:
            yield watched
        finally:
            watched.end()

    return watch


@pytest.fixture(scope="session")
def compare():
    """Returns the runs of the app's comparison, by the strategies' names in tables."""

    def compare(*overrides, clients=client_app.app):
        config = read_config(HETEROGENEOUS, overrides)
        grid = InProcessGrid(clients, int(config["num-clients"]), run_config=config)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        try:
            return {run.strategy: run for run in as_runs(server_app.compare(grid, config))}
        finally:
            logging.getLogger("flwr").setLevel(logging.DEBUG)

    return compare


@pytest.fixture(scope="module")
def jobs_in_this_process():
    """Run claims' jobs as other processes would, but here, and keep no results in the clone.

    Each job runs once in a module; `test_jobs` is about the processes.
    """
    results = {}

    def run_jobs(jobs, folder):
        for name, job in jobs.values():
            if name not in results:
                results[name] = pickle.loads(pickle.dumps(job))()
        return {key: results[name] for key, (name, _) in jobs.items()}

    with pytest.MonkeyPatch.context() as patch:
        for module in (study, text):
            patch.setattr(module, "run_jobs", run_jobs)
        yield
