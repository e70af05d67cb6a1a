"""Flower's own simulation engine for one run: started, used and taken down without a trace."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import httpx
import psutil

_START_SECONDS = 90.0
_STOP_SECONDS = 5.0


class FlowerError(RuntimeError):
    """A run that did not complete."""


class SimulationRuntime:
    """A SuperLink in simulation mode on free loopback ports, with a home folder of its own.

    A context manager: on leaving it, by an exception or Ctrl-C as well, every process that it
    has started, Ray's included, is ended and the folder is removed.

    Attributes
    ----------
    home : Path
        The folder, Flower's FLWR_HOME.
    """

    def __init__(self) -> None:
        # Ray puts sockets below it, whose paths must be short.
        parent = "/tmp" if os.name == "posix" else None
        self.home = Path(tempfile.mkdtemp(prefix="fm-", dir=parent)).resolve()
        self._port, self._control_port = _free_ports(2)
        self._environment = {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def __enter__(self) -> Self:
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "own"\n\n'
            f'[superlink.own]\naddress = "127.0.0.1:{self._port}"\ninsecure = true\n'
        )
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def run(
        self,
        app: Path,
        config: Mapping[str, str | int | float | bool],
        num_supernodes: int,
        on_line: Callable[[str], None],
    ) -> None:
        """Run a Flower app to its end.

        Parameters
        ----------
        app : Path
            The app's folder.
        config : mapping
            Overrides of its run configuration.
        num_supernodes : int
            The number of simulated clients.
        on_line : callable
            Receives each line that the run logs.

        Raises
        ------
        FlowerError
            If the run did not complete.
        """
        command = ["flwr", "run", str(app), "own", "--stream"]
        command += ["--run-config", " ".join(f"{k}={json.dumps(v)}" for k, v in config.items())]
        nodes = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
        command += ["--federation-config", nodes]
        with subprocess.Popen(
            command,
            cwd=self.home,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                on_line(line.rstrip("\n"))
        # `flwr run --stream` succeeds whatever became of the run.
        listing = subprocess.run(
            ["flwr", "list", "own", "--format", "json"],
            cwd=self.home,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            status = json.loads(listing.stdout)["runs"][0]["status"]
        except (ValueError, KeyError, IndexError):
            raise FlowerError(f"no run was started: {listing.stdout}{listing.stderr}") from None
        if status != "finished:completed":
            raise FlowerError(f"the run ended as {status!r}")

    def _start(self) -> None:
        with (self.home / "superlink.log").open("w") as log:
            superlink = subprocess.Popen(
                [
                    *("flower-superlink", "--insecure", "--simulation"),
                    *("--isolation", "subprocess"),
                    *("--host", "127.0.0.1", "--port", str(self._port)),
                    *("--control-api-address", f"127.0.0.1:{self._control_port}"),
                ],
                cwd=self.home,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us to handle
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and superlink.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self._port}/health", timeout=1.0).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        log_text = (self.home / "superlink.log").read_text()
        raise FlowerError(f"the SuperLink did not start:\n{log_text}")

    def _stop(self) -> None:
        with _no_interrupts():
            deadline = time.monotonic() + _STOP_SECONDS
            known: set[psutil.Process] = set()
            while True:
                known |= set(self._processes())
                if not (running := [process for process in known if _is_running(process)]):
                    break
                for process in running:
                    with suppress(psutil.NoSuchProcess):
                        process.terminate() if time.monotonic() < deadline else process.kill()
                psutil.wait_procs(running, timeout=1.0)
            shutil.rmtree(self.home, ignore_errors=True)

    def _processes(self) -> Iterator[psutil.Process]:
        """Yield what was started on our behalf; Flower and Ray detach it.

        What it inherits stays: the environment, or, where a process has written its title over
        that, as Ray's do, the folder that it runs in or its parent.
        """
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                home_of = process.environ().get("FLWR_HOME")
                if home_of == str(self.home) or Path(process.cwd()).is_relative_to(self.home):
                    yield process
                    yield from process.children(recursive=True)


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that context managers clean up."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextmanager
def _no_interrupts() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
