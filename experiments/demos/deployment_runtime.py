"""A deployment of Flower on this machine: TLS, SuperNodes that prove who they are, real outages."""

import re
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from experiments.demos.flower_runtime import (
    FlowerError,
    FlowerRuntime,
    LoggedProcess,
    free_port,
    wait_until,
)


def superlink_options(folder: Path) -> list[str]:
    """Return the options of a SuperLink that accepts only SuperNodes whose keys are registered.

    Parameters
    ----------
    folder : Path
        The folder of its certificates, as `write_certificates` names them, and its database.

    Returns
    -------
    list of str
        The options, without those that say where it listens.
    """
    return [
        *("--ssl-ca-certfile", str(folder / "ca.crt")),
        *("--ssl-certfile", str(folder / "server.pem")),
        *("--ssl-keyfile", str(folder / "server.key")),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--database", str(folder / "state.db")),
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
        The port of 127.0.0.1 for its own ClientApps.
    partition, num_partitions : int
        Its part of the data, and the number of parts.

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


def write_certificates(folder: Path) -> None:
    """Write ``ca.crt``, and ``server.pem`` and ``server.key`` for localhost, signed by it."""
    ca = trustme.CA()
    server = ca.issue_cert("localhost", "127.0.0.1")
    ca.cert_pem.write_to_path(str(folder / "ca.crt"))
    server.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    server.private_key_pem.write_to_path(str(folder / "server.key"))


def write_key(path: Path) -> Path:
    """Write a new private key of a SuperNode, and beside it the public one.

    Parameters
    ----------
    path : Path
        The private key's file.

    Returns
    -------
    Path
        The public key's file, ``path`` with ``.pub`` appended.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = path.with_name(f"{path.name}.pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


class SuperNode:
    """A SuperNode that can be killed and started again, with its own folder and key.

    Parameters
    ----------
    runtime : FlowerRuntime
        The runtime, whose SuperLink has the certificates in its home.
    name : str
        The name of its folder.
    superlink_port : int
        The port that the SuperLink listens on.
    partition, num_partitions : int
        Its part of the data, and the number of parts.
    """

    def __init__(
        self,
        runtime: FlowerRuntime,
        name: str,
        superlink_port: int,
        partition: int,
        num_partitions: int,
    ) -> None:
        self.partition = partition
        self._runtime, self._name, self._home = runtime, name, runtime.home / name
        self._home.mkdir()
        self._public_key = write_key(self._home / "key")
        self._command = supernode_command(
            runtime.home / "ca.crt",
            f"127.0.0.1:{superlink_port}",
            self._home / "key",
            free_port(),
            partition,
            num_partitions,
        )
        self._process: LoggedProcess

    def register(self) -> None:
        """Make the SuperLink accept it.

        Raises
        ------
        FlowerError
            If the SuperLink does not.
        """
        answer = self._runtime.flwr("supernode", "register", str(self._public_key), "own")
        if "registered successfully" not in answer:
            raise FlowerError(f"a key was not registered: {answer}")

    def start(self) -> None:
        """Start it, without waiting for it to be accepted."""
        self._process = self._runtime.start(self._name, self._command, self._home)

    def is_accepted(self) -> bool:
        """Wait until the SuperLink has accepted or refused it, and return whether it was accepted.

        Raises
        ------
        FlowerError
            If neither happens.
        """
        wait_until(
            lambda: self.node_id is not None or not self._process.running,
            "the SuperLink's word on a SuperNode",
        )
        return self._process.running

    def stop(self) -> None:
        """End it by SIGTERM, so that it signs off from the SuperLink."""
        self._process.stop()

    def kill(self) -> None:
        """End it by SIGKILL with all that it has started, as when its machine goes down."""
        self._process.kill()

    @property
    def log(self) -> str:
        """All that it has written since it was started last."""
        return self._process.text

    @property
    def node_id(self) -> int | None:
        """The SuperLink's name for it, once accepted."""
        found = re.search(r"SuperNode ID: (\d+)", self.log)
        return int(found[1]) if found else None

    @property
    def trainings(self) -> int:
        """The number of trainings that it has begun since it was started last."""
        return self.log.count("Start `flwr-clientapp` process")
