"""Flower for one run: a SuperLink of one's own, started, used and taken down without a trace."""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import httpx
import psutil

_START_SECONDS = 90.0
_STOP_SECONDS = 5.0
POLL_SECONDS = 0.1

Config = Mapping[str, str | int | float | bool]


class FlowerError(RuntimeError):
    """A run that did not complete, or a program of Flower's that did not do what it should."""


class Program:
    """A process whose output goes to a file, to be read while it runs.

    Parameters
    ----------
    command : sequence of str
        What to start. Ctrl-C does not reach it.
    log : Path
        The file. Its folder is the one that the process runs in.
    environment : mapping of str to str
        The process's environment.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        self._position = 0
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def text(self) -> str:
        """Return all that it has written so far."""
        return self._log.read_text(errors="replace")

    def new_lines(self) -> list[str]:
        """Return the lines that it has written since the last call."""
        running = self.running  # asked first: what has ended writes no more
        with self._log.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        if running:
            new = new[: new.rfind(b"\n") + 1]
        self._position += len(new)
        return new.decode(errors="replace").splitlines()

    def kill(self) -> None:
        """End it by SIGKILL with all that it has started, as when the machine goes down."""
        parent = psutil.Process(self._process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()


class FlowerRuntime:
    """A SuperLink on a free loopback port, with a home folder of its own.

    A context manager: on leaving it, by an exception or Ctrl-C as well, every process that it
    has started, and what those have, is ended and the folder is removed.

    Attributes
    ----------
    home : Path
        The folder, Flower's FLWR_HOME.
    """

    def __init__(self) -> None:
        # Ray puts sockets below it, whose paths must be short.
        parent = "/tmp" if os.name == "posix" else None
        self.home = Path(tempfile.mkdtemp(prefix="fm-", dir=parent)).resolve()
        self._environment = {
            **os.environ,
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def __enter__(self) -> Self:
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

    @abstractmethod
    def _start(self) -> None:
        """Start the SuperLink and what belongs to it."""

    def submit(self, app: Path, config: Config, *options: str) -> Program:
        """Start a run of a Flower app.

        Parameters
        ----------
        app : Path
            The app's folder.
        config : mapping
            Overrides of its run configuration.
        *options : str
            More options of ``flwr run``.

        Returns
        -------
        Program
            What streams the run's log, and ends with it.
        """
        overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = ["flwr", "run", str(app), "own", "--stream", "--run-config", overrides]
        return self._spawn("run", [*command, *options], self.home)

    def require_completed(self) -> None:
        """Check that the last run has come to its end.

        Raises
        ------
        FlowerError
            If it has not.
        """
        # `flwr run --stream` succeeds whatever became of the run.
        (listing,) = self._flwr(("list", "own", "--format", "json"))
        try:
            status = json.loads(listing)["runs"][0]["status"]
        except (ValueError, KeyError, IndexError):
            raise FlowerError(f"no run was started: {listing}") from None
        if status != "finished:completed":
            raise FlowerError(f"the run ended as {status!r}")

    def _start_superlink(self, command: Sequence[str], port: int, ca: Path | None = None) -> None:
        """Start a SuperLink, wait until it answers, and make it the one that ``flwr`` talks to."""
        trust = "insecure = true" if ca is None else f'root-certificates = "{ca}"'
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "own"\n\n'
            f'[superlink.own]\naddress = "127.0.0.1:{port}"\n{trust}\n'
        )
        superlink = self._spawn("superlink", command, self.home)
        scheme, context = ("http", None) if ca is None else ("https", _trusting(ca))

        def answers() -> bool:
            if not superlink.running:
                raise FlowerError(f"the SuperLink did not start:\n{superlink.text()}")
            with suppress(httpx.HTTPError):
                return client.get(f"{scheme}://127.0.0.1:{port}/health").is_success
            return False

        with httpx.Client(verify=context or True, timeout=1.0) as client:
            wait_until(answers, _START_SECONDS, "the SuperLink's answer")

    def _flwr(self, *commands: Sequence[str]) -> list[str]:
        """Return what ``flwr`` commands, which run side by side, print."""
        programs = [
            self._spawn(f"flwr-{index}", ["flwr", *command], self.home)
            for index, command in enumerate(commands)
        ]
        wait_until(lambda: not any(program.running for program in programs), _START_SECONDS, "flwr")
        return [program.text() for program in programs]

    def _spawn(self, name: str, command: Sequence[str], home: Path) -> Program:
        environment = {**self._environment, "FLWR_HOME": str(home)}
        return Program(command, home / f"{name}.log", environment)

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
                home = Path(process.environ().get("FLWR_HOME", "/"))
                if any(path.is_relative_to(self.home) for path in (home, Path(process.cwd()))):
                    yield process
                    yield from process.children(recursive=True)


class SimulationRuntime(FlowerRuntime):
    """A SuperLink in simulation mode: Flower's own engine, Ray."""

    def run(
        self, app: Path, config: Config, num_supernodes: int, on_line: Callable[[str], None]
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
        nodes = f"num-supernodes={num_supernodes} client-resources-num-cpus=1"
        run = self.submit(app, config, "--federation-config", nodes)
        running = True
        while running:
            time.sleep(POLL_SECONDS)
            running = run.running  # asked before its last lines are read
            for line in run.new_lines():
                on_line(line)
        self.require_completed()

    def _start(self) -> None:
        (port,) = free_ports(1)
        self._start_superlink(
            [
                *("flower-superlink", "--insecure", "--simulation"),
                "--disable-runtime-dependency-installation",
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            port,
        )


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until a condition holds.

    Parameters
    ----------
    condition : callable
        Says whether it does.
    seconds : float
        How long to wait at most.
    what : str
        What is waited for.

    Raises
    ------
    FlowerError
        If it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FlowerError(f"waited {seconds:.0f} s for {what} in vain")
        time.sleep(POLL_SECONDS)


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 on which nobody listens."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


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


def _is_running(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))
