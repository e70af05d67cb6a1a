"""The comparison in Flower's Ray simulation: one command, and nothing of it left afterwards."""

import contextlib
import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from experiments.apps import HETEROGENEOUS, read_config
from experiments.studies.report import compare_bytes, read_runs
from tests.tools.places import DOCS

pytestmark = pytest.mark.slow

SMALL = ["strategy='fedavg,sign'", "rounds=2", "num-clients=2", "batch-size=512"]
PATIENCE = 600.0


@pytest.fixture
def simulate(watch, tmp_path):
    """Starts the command."""
    with contextlib.ExitStack() as stack:

        def simulate(*overrides):
            module = ("-m", "experiments.demos.simulation")
            arguments = (*module, *SMALL, f"output='{tmp_path}'", *overrides)
            return stack.enter_context(watch(*arguments, TMPDIR=str(tmp_path)))

        yield simulate


def running_in(folder):
    """Every process that runs in a folder, gone or not: Ray's write over their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                found.append(process)
    return found


@pytest.fixture
def shown():
    """The overrides in the ``flwr run`` of docs/simulation.md."""
    text = (DOCS / "simulation.md").read_text()
    (command,) = re.findall(r"^flwr run .*", text, flags=re.MULTILINE)
    words = shlex.split(command)
    nodes = words[words.index("--federation-config") + 1]
    assert words[2] == "experiments/apps/heterogeneous"
    assert f"num-supernodes={read_config(HETEROGENEOUS)['num-clients']} " in nodes
    return shlex.split(words[words.index("-c") + 1].replace("'", '"\'"'))


class TestCommand:
    def test_the_documented_configuration_runs_writes_its_results_and_leaves_nothing_running(
        self, shown, simulate, tmp_path
    ):
        watched = simulate(*shown, *SMALL)
        output, _ = watched.process.communicate(timeout=PATIENCE)
        assert watched.process.returncode == 0, output
        fedavg, sign = read_runs(tmp_path)
        assert (fedavg.strategy, sign.strategy) == ("FedAvg", "SignSGD")
        assert fedavg.rounds == sign.rounds == 2
        assert sign.uplink_bytes * 28 <= fedavg.uplink_bytes
        assert (tmp_path / "accuracy.png").exists()
        assert "round   2/2" in output
        assert compare_bytes([fedavg, sign]) in output
        assert watched.running() == []

    def test_a_run_that_fails_is_told_by_the_exit_status(self, simulate, tmp_path):
        watched = simulate("strategy='krum'")
        output, _ = watched.process.communicate(timeout=PATIENCE)
        assert watched.process.returncode not in (0, None)
        assert "the log is in" in output
        assert "got 'krum'" in (tmp_path / "flower.log").read_text()
        assert not (tmp_path / "results.json").exists()
        assert watched.running() == []


class TestInterruptedRun:
    """All processes are killed, wherever the round is, and the run resumes from its checkpoint."""

    def last_round(self, folder):
        return max((int(path.name[6:]) for path in folder.rglob("round-*")), default=0)

    def model(self, folder, number):
        (stored,) = folder.rglob(f"round-{number:06}")
        with np.load(stored / "arrays.npz") as arrays:
            return {key: arrays[key].tobytes() for key in arrays.files}

    def test_it_leaves_nothing_behind_and_resumes_to_the_model_of_one_that_was_not_killed(
        self, simulate, compare, tmp_path
    ):
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        watched = simulate("strategy='sign'", "rounds=100000", f"checkpoint='{killed}'")
        deadline = time.monotonic() + PATIENCE
        while self.last_round(killed) < 3:
            assert time.monotonic() < deadline
            assert watched.process.poll() is None
            time.sleep(0.05)
        (home,) = watched.homes()
        assert Path(home).exists()
        assert any(process.name().startswith("ray::") for process in running_in(home))
        watched.process.send_signal(signal.SIGINT)
        watched.process.communicate(timeout=PATIENCE)
        assert watched.process.returncode not in (0, None)
        assert watched.running() == []
        assert running_in(home) == []
        assert not Path(home).exists()
        assert not (tmp_path / "results.json").exists()

        rounds = self.last_round(killed) + 2
        for folder in (whole, killed):
            config = ("strategy='sign'", f"rounds={rounds}", f"checkpoint='{folder}'")
            compare(*SMALL, *config)
        assert self.model(killed, rounds) == self.model(whole, rounds)
