"""What the server asks of clients around a secure sum, apart from votes, and their answers."""

from collections.abc import Mapping
from typing import Any

from fedmedian.secure.cohort import in_pieces
from fedmedian.secure.masking import Key
from fedmedian.secure.opening import Wanted
from fedmedian.secure.secrets import KEY_SIZE
from fedmedian.wire.scalars import PREFIX, WIRE_VERSION, Reader, WireError, WireScalar, with_prefix

_REQUEST = "sum.request"
_KEY, _REVEAL = "key", "reveal"
_PUBLIC, _SECRETS = "sum.public", "sum.secrets"

NO_KEY = (
    "this client has no key for secure sums: it has lost its state, as when its SuperNode "
    "restarts, or keeps none between rounds"
)
"""Why a client that remembers nothing refuses a secure sum."""


def ask_for_key(server_round: int) -> dict[str, WireScalar]:
    """Return the request for a new key."""
    return with_prefix({_REQUEST: WIRE_VERSION, "round": server_round, "sum.what": _KEY})


def ask_to_reveal(question: tuple[int, int], wanted: Wanted) -> dict[str, WireScalar]:
    """Return the request to reveal what opens a sum."""
    server_round, number = question
    message: dict[str, WireScalar] = {
        _REQUEST: WIRE_VERSION,
        "round": server_round,
        "question": number,
        "sum.what": _REVEAL,
        "sum.wanted": wanted.of_neighbors,
    }
    if wanted.sealed:  # Flower's mods that measure messages refuse empty bytes
        message["sum.sealed"] = wanted.sealed
    return with_prefix(message)


def is_request(config: Mapping[str, Any]) -> bool:
    """Return whether a message's config holds such a request."""
    return PREFIX + _REQUEST in config


def answer(config: Mapping[str, Any], key: Key | None) -> tuple[Key, dict[str, WireScalar]]:
    """Answer a request as a client.

    Parameters
    ----------
    config : mapping
        The config of the message.
    key : Key or None
        The client's key; None for a client without.

    Returns
    -------
    key : Key
        The key after that.
    reply : dict
        The scalars of the reply.

    Raises
    ------
    WireError
        If the request is malformed, or the client must not reveal what it asks for.
    """
    read = Reader(config, _REQUEST)
    what = read.required("sum.what", str)
    if what == _KEY:
        read.finish()
        key = Key.new()
        return key, with_prefix({_PUBLIC: key.public})
    if what != _REVEAL:
        raise WireError(f"{PREFIX}sum.what must be {_KEY!r} or {_REVEAL!r}, got {what!r}")
    wanted = Wanted(read.required("sum.wanted", bytes), read.optional("sum.sealed", bytes) or b"")
    read.finish()
    question = read.server_round, read.question
    if key is None:
        raise WireError(NO_KEY)
    key, secrets = key.reveal(question, wanted.of_neighbors, wanted.sealed)
    return key, with_prefix({_SECRETS: secrets})


def read_public(reply: Mapping[str, Any]) -> bytes:
    """Return the public key in a reply.

    Raises
    ------
    WireError
        If there is none, or other clients would refuse it.
    """
    public = reply.get(PREFIX + _PUBLIC)
    if not isinstance(public, bytes) or len(public) != KEY_SIZE:
        raise WireError(f"{PREFIX}{_PUBLIC} must be {KEY_SIZE} bytes")
    Key.new().require_valid(public)
    return public


def read_secrets(reply: Mapping[str, Any], wanted: Wanted) -> list[bytes]:
    """Return the secrets in a reply, one for each neighbor that was asked about.

    Raises
    ------
    WireError
        If there are none, or more or fewer.
    """
    secrets = reply.get(PREFIX + _SECRETS)
    if not isinstance(secrets, bytes):
        raise WireError(f"{PREFIX}{_SECRETS} must be bytes")
    length = KEY_SIZE * sum(map(bool, wanted.of_neighbors))
    if len(secrets) != length:
        raise WireError(f"revealed {len(secrets)} bytes, was asked for {length}")
    return in_pieces(secrets, KEY_SIZE)
