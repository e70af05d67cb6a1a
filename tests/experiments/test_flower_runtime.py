"""Flower for one run: whatever ends the run, nothing that it has started is left."""

import signal
import time
from pathlib import Path

import pytest

USER = """
import time

from experiments.demos.flower_runtime import flower_runtime

with flower_runtime() as runtime:
    runtime.start("sleeper", ["sleep", "1000"])
    print(runtime.home, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_all_that_was_started_and_removes_its_folder(number, watch):
    with watch("-c", USER) as watched:
        home = Path(watched.process.stdout.readline().strip())
        assert home.is_dir()
        # A process has no environment to be found by until it is under way.
        deadline = time.monotonic() + 60
        while "sleep" not in [one.name() for one in watched.running()]:
            assert time.monotonic() < deadline
        watched.process.send_signal(number)
        watched.process.communicate(timeout=60)
        assert watched.process.returncode not in (0, None)
        assert watched.running() == []
        assert not home.exists()
