"""The comparison in Flower's Ray simulation: one command, and nothing of it left afterwards."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

SMALL = ["strategy='fedavg,sign'", "rounds=2", "num-clients=2", "batch-size=512"]
PATIENCE = 180.0


@pytest.fixture
def simulate(root, tmp_path):
    """Starts the command; whatever it starts can be told by a variable in its environment."""
    mark = f"{os.getpid()}-{tmp_path.name}"
    started = []

    def simulate(*overrides):
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "experiments.heterogeneous.simulate"),
                *(*SMALL, f"output='{tmp_path}'", *overrides),
            ],
            cwd=root,
            env={**os.environ, "SIMULATION_TEST": mark, "TMPDIR": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # What runs in the background of a shell ignores Ctrl-C, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield simulate
    for process in started:
        process.kill()
        process.wait()
    for process in children(mark):
        process.kill()


def environment_of(process):
    """The environment of a process, empty if it is not ours to see or has just ended."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def children(mark):
    """Every process whose environment has the mark."""
    every = psutil.process_iter()
    return [process for process in every if environment_of(process).get("SIMULATION_TEST") == mark]


def running_in(folder):
    """Every process that runs in a folder, gone or not: Ray's write over their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cwd().startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def left_over(tmp_path):
    """Returns the processes that the command has started and that still run."""
    return lambda: children(f"{os.getpid()}-{tmp_path.name}")


def test_it_compares_writes_the_results_and_leaves_nothing_running(simulate, left_over, tmp_path):
    process = simulate()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    results = json.loads((tmp_path / "results.json").read_text())
    assert [run["strategy"] for run in results["runs"]] == ["FedAvg", "SignSGD"]
    for run in results["runs"]:
        assert run["rounds"] == 2
        assert len(run["history"]) == 3
    fedavg, sign = (run["uplink_bytes"] for run in results["runs"])
    assert sign * 28 <= fedavg
    assert (tmp_path / "accuracy.png").exists()
    assert "round   2/2" in output
    assert "uplink bytes per client and round" in output
    assert left_over() == []


def test_a_run_that_fails_is_told_by_the_exit_status(simulate, left_over, tmp_path):
    process = simulate("strategy='krum'")
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode not in (0, None)
    assert "the log is in" in output
    assert "got 'krum'" in (tmp_path / "flower.log").read_text()
    assert not (tmp_path / "results.json").exists()
    assert left_over() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(number, simulate, left_over, tmp_path):
    process = simulate("rounds=100000")
    ours = {None, os.environ.get("FLWR_HOME")}
    log, deadline = tmp_path / "flower.log", time.monotonic() + PATIENCE
    while not (log.exists() and "ROUND 2/" in log.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.2)
    (home,) = {environment_of(one).get("FLWR_HOME") for one in left_over()} - ours
    assert Path(home).exists()
    assert any(command.startswith("ray::") for command in running_in(home))
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert left_over() == []
    assert running_in(home) == []
    assert not Path(home).exists()
    assert not (tmp_path / "results.json").exists()
