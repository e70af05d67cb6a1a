"""A deployment of Flower on this machine: TLS, SuperNodes that prove who they are, real outages."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.credentials import Certificates, write_certificates, write_key
from experiments.flower_runtime import FlowerError, FlowerRuntime, Program, free_ports, wait_until

_PATIENCE_SECONDS = 120.0


def superlink_command(certificates: Certificates, database: Path, port: int) -> list[str]:
    """Return the command that starts a SuperLink.

    Parameters
    ----------
    certificates : Certificates
        What it shows to others.
    database : Path
        Where it keeps which SuperNodes are registered.
    port : int
        Where it listens, on 127.0.0.1.

    Returns
    -------
    list of str
        The command.
    """
    return [
        "flower-superlink",
        *("--ssl-ca-certfile", str(certificates.ca)),
        *("--ssl-certfile", str(certificates.server)),
        *("--ssl-keyfile", str(certificates.server_key)),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(database)),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def supernode_command(
    ca: Path, superlink: str, key: Path, port: int, partition: int, num_partitions: int
) -> list[str]:
    """Return the command that starts a SuperNode.

    Parameters
    ----------
    ca : Path
        The certificate that has signed the SuperLink's.
    superlink : str
        The SuperLink's address, ``host:port``.
    key : Path
        The SuperNode's private key.
    port : int
        Where it listens for its own ClientApps, on 127.0.0.1.
    partition, num_partitions : int
        Which part of the data it holds, and of how many.

    Returns
    -------
    list of str
        The command.
    """
    return [
        "flower-supernode",
        *("--root-certificates", str(ca)),
        *("--superlink", superlink),
        *("--auth-supernode-private-key", str(key)),
        *("--port", str(port)),
        *("--node-config", f"partition-id={partition} num-partitions={num_partitions}"),
    ]


class SuperNode:
    """A SuperNode that can be killed and started again; made by a `DeploymentRuntime`.

    Parameters
    ----------
    partition : int
        Which part of the data it holds.
    public_key : Path
        What it is known by.
    spawn : callable
        Starts its process.
    """

    def __init__(self, partition: int, public_key: Path, spawn: Callable[[], Program]) -> None:
        self.partition = partition
        self.public_key = public_key
        self._spawn = spawn
        self._program: Program | None = None

    @property
    def log(self) -> str:
        """What it has written since it was started last."""
        return "" if self._program is None else self._program.text()

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self._program is not None and self._program.running

    @property
    def node_id(self) -> int | None:
        """What the SuperLink calls it, once accepted."""
        found = re.search(r"SuperNode ID: (\d+)", self.log)
        return int(found[1]) if found else None

    @property
    def trainings(self) -> int:
        """How many trainings it has begun since it was started last."""
        return self.log.count("Start `flwr-clientapp` process")

    def start(self) -> None:
        """Start it, without waiting for it to be accepted."""
        self._program = self._spawn()

    def is_accepted(self) -> bool:
        """Wait until the SuperLink has accepted or refused it, and return which.

        Returns
        -------
        bool
            Whether it was accepted.

        Raises
        ------
        FlowerError
            If neither happens.
        """
        wait_until(
            lambda: self.node_id is not None or not self.is_running,
            _PATIENCE_SECONDS,
            "the SuperLink's word on a SuperNode",
        )
        return self.is_running

    def kill(self) -> None:
        """End it by SIGKILL with all that it has started, as when its machine goes down."""
        if self._program is not None:
            self._program.kill()


class DeploymentRuntime(FlowerRuntime):
    """A SuperLink with TLS that accepts only SuperNodes whose keys are registered.

    Parameters
    ----------
    num_partitions : int
        Into how many parts the data are split.
    """

    def __init__(self, num_partitions: int) -> None:
        super().__init__()
        self._num_partitions = num_partitions
        (self._port,) = free_ports(1)
        self._certificates: Certificates

    def make_supernode(self, name: str, partition: int) -> SuperNode:
        """Return a SuperNode with a key of its own, neither registered nor started.

        Parameters
        ----------
        name : str
            Its folder's name.
        partition : int
            Which part of the data it holds.

        Returns
        -------
        SuperNode
            The SuperNode.
        """
        home = self.home / name
        home.mkdir()
        public_key = write_key(home / "key")
        (port,) = free_ports(1)
        superlink = f"127.0.0.1:{self._port}"
        command = supernode_command(
            self._certificates.ca, superlink, home / "key", port, partition, self._num_partitions
        )
        return SuperNode(partition, public_key, lambda: self._spawn(name, command, home))

    def register(self, supernodes: Sequence[SuperNode]) -> None:
        """Make the SuperLink accept SuperNodes.

        Parameters
        ----------
        supernodes : sequence of SuperNode
            Which ones.

        Raises
        ------
        FlowerError
            If it does not.
        """
        keys = [str(supernode.public_key) for supernode in supernodes]
        for answer in self._flwr(*(("supernode", "register", key, "own") for key in keys)):
            if "registered successfully" not in answer:
                raise FlowerError(f"a key was not registered: {answer}")

    def _start(self) -> None:
        folder = self.home / "superlink"
        folder.mkdir()
        self._certificates = write_certificates(folder)
        database = folder / "state.db"
        command = superlink_command(self._certificates, database, self._port)
        self._start_superlink(command, self._port, self._certificates.ca)
