"""Wire format of everything except arrays.

A flat mapping of scalars and bytes under keys that start with ``fedmedian.``. It fits Flower's
ConfigRecord as well as the older FitIns.config and FitRes.metrics. Numbers in bytes are
little-endian float32.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from itertools import islice
from math import inf
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_real
from fedmedian.logs import cut, shown

WIRE_VERSION = 4
"""The version of the format; each side refuses any other."""

PREFIX = "fedmedian."
"""The prefix of all fedmedian keys in a message."""

EVALUATION = PREFIX + "evaluation"
"""The key that says that the strategy ignores arrays in replies to evaluation."""

LARGEST = 1e12
"""The largest accepted entry of a vector, magnitude or noise scale.

Sums and squares of such values do not overflow float32."""

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_TINY = float(np.finfo(np.float32).tiny)
"""The smallest positive float32 of full precision."""

WireScalar = int | float | str | bytes
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
T = TypeVar("T")

_REFUSAL = "perturb: "

POLICY_RULE = "policy rule"
"""Part of the reason that a client gives when its policy refuses to answer."""

_MOST_ENTRIES = 1000
"""The largest number of fedmedian entries in a message."""

_NO_FLOATS = b"\0"
"""An empty vector: Flower's mods that measure messages refuse empty bytes."""

_LONGEST_LIST = 1 << 18
"""The largest number of characters of a JSON list; longer ones are not parsed."""


class WireError(ValueError):
    """Raised when a message cannot be used; the text is the reason."""


def refusal(error: ValueError) -> str:
    """Return a client's reason for not answering an instruction."""
    return f"{_REFUSAL}{error}"


def is_refusal(reason: str) -> bool:
    """Return whether the reason in an error reply is a `refusal`."""
    return reason.startswith(_REFUSAL)


class Reader:
    """Reads typed entries of a message one by one, and raises `WireError` if one is wrong.

    Parameters
    ----------
    config : mapping
        A message's config or metrics; keys that do not start with `PREFIX` are ignored.
    kind : str
        The key that holds the version: "instruction" or "payload".

    Attributes
    ----------
    server_round, question : int
        The round of the message, and which of the round's questions it is or answers.

    Raises
    ------
    WireError
        If the message has another version, no round, or too many entries.
    """

    def __init__(self, config: Mapping[str, Any], kind: str) -> None:
        keys = [*islice((key for key in config if key.startswith(PREFIX)), _MOST_ENTRIES + 1)]
        if len(keys) > _MOST_ENTRIES:
            raise WireError(f"{kind} has more than {_MOST_ENTRIES} entries")
        self._values = {key: config[key] for key in keys}
        version = self.required(kind, int)
        if version != WIRE_VERSION:
            raise WireError(f"{kind} has version {version}, this is version {WIRE_VERSION}")
        self.server_round = self.required("round", int)
        self.question = self.optional("question", int) or 0

    def required(self, key: str, wanted: type[T]) -> T:
        """Return an entry, which must exist; numbers must be finite and not negative."""
        value = self.optional(key, wanted)
        if value is None:
            raise WireError(f"{PREFIX}{key} is missing")
        return value

    def optional(self, key: str, wanted: type[T]) -> T | None:
        """Return an entry or None; numbers must be finite and not negative."""
        value = self._values.pop(PREFIX + key, None)
        # Python counts True as an integer, but what stores integers does not read it as one.
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise WireError(f"{PREFIX}{key} must be {wanted.__name__}, got {shown(value)}")
        if isinstance(value, int | float) and not 0 <= value < inf:
            raise WireError(f"{PREFIX}{key} must be finite and not negative, got {shown(value)}")
        if isinstance(value, int) and value >= 2**63:
            raise WireError(f"{PREFIX}{key} must fit 64 bits, got {shown(value)}")
        return value

    def optionals(self, **wanted: type) -> dict[str, Any]:
        """Return entries by their keys, None for those that are absent; see `optional`."""
        return {key: self.optional(key, kind) for key, kind in wanted.items()}

    def listed(self, key: str, wanted: type[T]) -> list[T]:
        """Return the items of a JSON list, all of one type."""
        return list_from_json(f"{PREFIX}{key}", self.required(key, str), wanted)

    def below(self, key: str) -> dict[str, Any]:
        """Return the entries under ``key.``, by the rest of their keys."""
        start = f"{PREFIX}{key}."
        found = [name for name in self._values if name.startswith(start)]
        return {name.removeprefix(start): self._values.pop(name) for name in found}

    def floats_below(self, key: str) -> dict[str, Float32]:
        """Return the entries under ``key.`` as float32 vectors, by the rest of their keys."""
        below = self.below(key).items()
        return {name: floats_from_bytes(f"{PREFIX}{key}.{cut(name)}", own) for name, own in below}

    def finish(self) -> None:
        """Raise if an entry was not read: it is unknown here but may matter."""
        if self._values:
            unknown = cut(min(self._values).removeprefix(PREFIX))
            raise WireError(f"{PREFIX}{unknown} is unknown here")


def refuse_our_keys(name: str, keys: Iterable[str]) -> None:
    """Raise ValueError if a user's config has keys that begin with `PREFIX`."""
    if ours := sorted(key for key in keys if key.startswith(PREFIX)):
        raise ValueError(
            f"{name} must not have keys that begin with {PREFIX!r}, which are the server's own, "
            f"got {ours}"
        )


def with_prefix(message: Mapping[str, WireScalar]) -> dict[str, WireScalar]:
    """Return a message's entries under their keys on the wire."""
    return {PREFIX + key: value for key, value in message.items()}


def parameters_of(value: Any, *left_out: str) -> dict[str, WireScalar]:
    """Return a dataclass's fields for the wire; a default of None is left out.

    Parameters
    ----------
    value : dataclass instance
        A noise family or a client step.
    *left_out : str
        Fields that do not travel.

    Returns
    -------
    dict
        The parameters by name.

    Raises
    ------
    TypeError
        If a field is not a number, a string or bytes.
    ValueError
        If an integer does not fit 64 bits.
    """
    parameters = {}
    for field in fields(value):
        parameter, name = getattr(value, field.name), f"{type(value).__name__}.{field.name}"
        if field.name in left_out or (parameter is None and field.default is None):
            continue
        if isinstance(parameter, np.generic):
            parameter = parameter.item()
        if isinstance(parameter, Real) and not isinstance(parameter, int | float):
            parameter = float(parameter)  # a fraction, or more precision than float64
        if not isinstance(parameter, int | float | str | bytes):
            raise TypeError(
                f"{name} must be a number, a string or bytes to be sent to clients, got "
                f"{parameter!r}"
            )
        if isinstance(parameter, int) and not -(2**63) <= parameter < 2**63:
            raise ValueError(f"{name} must fit 64 bits to be sent to clients, got {parameter!r}")
        parameters[field.name] = parameter
    return parameters


def list_from_json(name: str, text: Any, wanted: type[T]) -> list[T]:
    """Return the items of a JSON list, all of one type.

    Raises
    ------
    WireError
        If `text` is anything else, or too long to be parsed.
    """
    if isinstance(text, str) and len(text) > _LONGEST_LIST:
        raise WireError(f"{name} has {len(text)} characters, more than {_LONGEST_LIST}")
    try:
        values = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        values = None
    if not isinstance(values, list) or not all(type(value) is wanted for value in values):
        raise WireError(f"{name} must be a JSON list of {wanted.__name__}, got {shown(text)}")
    return values


def floats_to_bytes(values: Float32) -> bytes:
    """Return a float32 vector as bytes, which are never empty."""
    return values.astype("<f4").tobytes() or _NO_FLOATS


def floats_from_bytes(name: str, data: Any) -> Float32:
    """Return the float32 vector in bytes.

    Raises
    ------
    WireError
        If `data` is anything else.
    """
    if data == _NO_FLOATS:
        return np.empty(0, dtype=np.float32)
    if not isinstance(data, bytes) or len(data) % 4 or not data:
        raise WireError(f"{name} must be float32 bytes, got {shown(data)}")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def require_vector(
    name: str,
    values: NDArray[Any] | None,
    size: int,
    dtype: type[np.generic] = np.float32,
    *,
    are_sizes: bool = False,
) -> NDArray[Any]:
    """Return `values` if they are a vector of this size and dtype.

    Noise scales and magnitudes, `are_sizes`, must also be from 0 to `LARGEST`.

    Raises
    ------
    WireError
        If they are not, or missing.
    """
    if values is None:
        raise WireError(f"{name} are missing")
    if values.dtype != dtype or values.shape != (size,):
        raise WireError(
            f"{name} must be {np.dtype(dtype).name} of shape {(size,)}, "
            f"got {values.dtype} of shape {values.shape}"
        )
    return require_sizes(name, values, LARGEST) if are_sizes else values


def require_votes(name: str, values: NDArray[Any] | None, size: int) -> None:
    """Raise `WireError` unless `values` are a float32 vector of this size, all 0 or 1."""
    if not np.isin(require_vector(name, values, size), (0, 1)).all():
        raise WireError(f"{name} must be 0 or 1")


def require_sizes(name: str, values: Float32, largest: float = FLOAT32_MAX) -> Float32:
    """Return `values` if all are in [0, largest], else raise `WireError`."""
    if not all(0 <= value <= largest for value in values.tolist()):  # faster than numpy for a few
        raise WireError(f"{name} must be from 0 to {largest:.3g}")
    return values


def require_positive(name: str, value: Any) -> float:
    """Return an argument as a float if it is a number > 0 that float32 holds, at most `LARGEST`.

    Parameters
    ----------
    name : str
        The argument's name.
    value : Any
        Its value.

    Returns
    -------
    float
        The value.

    Raises
    ------
    TypeError, ValueError
        If it is not a number, or out of range.
    """
    number = require_real(name, value, low=0.0, open_low=True)
    if not FLOAT32_TINY <= number <= LARGEST:
        raise ValueError(f"{name} must be from {FLOAT32_TINY:.3g} to {LARGEST:g}, got {value!r}")
    return number
