"""Flower for one run: a separate SuperLink, started, used and stopped without a trace.

The SuperLink that ``flwr run`` starts by itself outlives its user, listens on ports that others may
want, and has fifteen seconds to start.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from flwr.app import UserConfig

_PATIENCE_SECONDS = 240.0
_POLL_SECONDS = 0.1


class FlowerError(RuntimeError):
    """A run that did not complete, or a program of Flower's that did not do what it should."""


class LoggedProcess:
    """A process whose output goes to a file, to be read while it runs.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments. Ctrl-C does not reach it.
    log : Path
        The file. The process runs in its folder.
    environment : dict of str to str
        The process's environment.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._log = log
        self._shown = 0

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def text(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(errors="replace")

    def new_lines(self) -> list[str]:
        """Return the lines that it has written since the last call."""
        running = self.running  # asked first: what has ended writes no more
        text = self.text
        lines = text[: text.rfind("\n") + 1 if running else None].splitlines()[self._shown :]
        self._shown += len(lines)
        return lines

    def stop(self) -> None:
        """Ask it to end by SIGTERM, as its operator does, and wait until it has."""
        self._process.terminate()
        self._process.wait(timeout=_PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it by SIGKILL with all that it has started, as when its machine goes down."""
        process = psutil.Process(self._process.pid)
        _kill([process, *process.children(recursive=True)])


class FlowerRuntime:
    """A folder and the processes of Flower's that run in it; made by `flower_runtime`.

    Parameters
    ----------
    home : Path
        The folder.
    """

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self, name: str, command: Sequence[str], home: Path | None = None) -> LoggedProcess:
        """Start a program of Flower's.

        Parameters
        ----------
        name : str
            The name of its log.
        command : sequence of str
            The program and its arguments.
        home : Path, optional
            Its FLWR_HOME, a folder in `home`, which is the default.

        Returns
        -------
        LoggedProcess
            The process.
        """
        home = home or self.home
        environment = {
            **os.environ,
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        return LoggedProcess(command, home / f"{name}.log", environment)

    def start_superlink(self, *options: str, ca: Path | None = None) -> int:
        """Start a SuperLink, wait until it listens, and let ``flwr`` talk to it.

        Parameters
        ----------
        *options : str
            Its options.
        ca : Path, optional
            The certificate that has signed the SuperLink's; None if it has none.

        Returns
        -------
        int
            The port of 127.0.0.1 that it listens on.
        """
        port = free_port()
        trust = "insecure = true" if ca is None else f'root-certificates = "{ca}"'
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "own"\n\n'
            f'[superlink.own]\naddress = "127.0.0.1:{port}"\n{trust}\n'
        )
        where = ("--host", "127.0.0.1", "--port", str(port))
        superlink = self.start("superlink", ["flower-superlink", *options, *where])

        def listens() -> bool:
            if not superlink.running:
                raise FlowerError(f"the SuperLink did not start:\n{superlink.text}")
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, "the SuperLink")
        return port

    def flwr(self, *arguments: str) -> str:
        """Return what a ``flwr`` command prints."""
        process = self.start("flwr", ["flwr", *arguments])
        wait_until(lambda: not process.running, f"flwr {arguments[0]}")
        return process.text

    def submit(self, app: Path, config: UserConfig, *options: str) -> LoggedProcess:
        """Start a run of a Flower app.

        Parameters
        ----------
        app : Path
            The app's folder.
        config : dict
            Overrides of its run configuration.
        *options : str
            More options of ``flwr run``.

        Returns
        -------
        LoggedProcess
            The process that streams the run's log, and ends with it.
        """
        overrides = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = ["flwr", "run", str(app), "own", "--stream", "--run-config", overrides]
        return self.start("run", [*command, *options])

    def require_completed(self) -> None:
        """Check that the last run has come to its end, and raise FlowerError if it has not."""
        # `flwr run --stream` succeeds whatever became of the run.
        listing = self.flwr("list", "own", "--format", "json")
        try:
            status = json.loads(listing)["runs"][0]["status"]
        except (ValueError, KeyError, IndexError):
            raise FlowerError(f"no run was started: {listing}") from None
        if status != "finished:completed":
            raise FlowerError(f"the run ended as {status!r}")

    def simulate(self, app: Path, config: UserConfig) -> Iterator[str]:
        """Run a Flower app in Flower's simulation engine, and yield what it logs.

        Parameters
        ----------
        app : Path
            The app's folder.
        config : dict
            Overrides of its run configuration, ``"num-clients"`` among them.

        Yields
        ------
        str
            Each line, to the end of the run.

        Raises
        ------
        FlowerError
            If the run does not complete.
        """
        self.start_superlink(
            "--insecure", "--simulation", "--disable-runtime-dependency-installation"
        )
        nodes = f"num-supernodes={config['num-clients']} client-resources-num-cpus=1"
        run = self.submit(app, config, "--federation-config", nodes)
        running = True
        while running:
            time.sleep(_POLL_SECONDS)
            running = run.running  # asked before its last lines are read
            yield from run.new_lines()
        self.require_completed()

    def processes(self) -> Iterator[psutil.Process]:
        """Yield all that was started here and what that has started; Flower and Ray detach it.

        They are told by what they inherit: the environment, or, where a process has written its
        title over that, as Ray's do, the folder that it runs in or its parent.
        """
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                home = Path(process.environ().get("FLWR_HOME", "/"))
                if any(path.is_relative_to(self.home) for path in (home, Path(process.cwd()))):
                    yield process
                    yield from process.children(recursive=True)


@contextmanager
def flower_runtime() -> Iterator[FlowerRuntime]:
    """Make a folder for Flower to run in; nothing outlives it, even after Ctrl-C or SIGTERM.

    Yields
    ------
    FlowerRuntime
        The runtime. On leaving the context all its processes are killed and its folder is removed.
    """
    # Ray puts sockets below it, whose paths must be short.
    parent = "/tmp" if os.name == "posix" else None
    with _handled(signal.default_int_handler, signal.SIGTERM, signal.SIGHUP):
        runtime = FlowerRuntime(Path(tempfile.mkdtemp(prefix="fm-", dir=parent)).resolve())
        try:
            yield runtime
        finally:
            with _handled(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                while processes := list(runtime.processes()):
                    _kill(processes)
                shutil.rmtree(runtime.home, ignore_errors=True)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, and raise FlowerError if it does not in four minutes."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise FlowerError(f"waited {_PATIENCE_SECONDS:.0f} s for {what} in vain")
        time.sleep(_POLL_SECONDS)


def free_port() -> int:
    """Return a free port of 127.0.0.1."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=1.0)


@contextmanager
def _handled(handler: Any, *numbers: int) -> Iterator[None]:
    """Let a handler have signals for a while."""
    handlers = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
