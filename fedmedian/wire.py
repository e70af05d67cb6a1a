"""What server and clients say to each other: `Instruction` down, `Payload` up.

Both travel as a flat mapping of scalars and bytes under keys that start with ``fedmedian.``,
which fits Flower's ConfigRecord as well as the older FitIns.config and FitRes.metrics, plus, for
the payload, one or two arrays. Numbers in bytes are little-endian float32.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import inf, prod
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedmedian.kernels.signs import packed_size
from fedmedian.layout import Layout
from fedmedian.noise import NOISE_FAMILIES
from fedmedian.scales import Magnitude, PayloadKind

WIRE_VERSION = 1
"""The version of the format; each side refuses any other."""

PREFIX = "fedmedian."
"""What every key of an encoded Instruction or Payload starts with."""

_NOTHING = "none"
"""What stands on the wire for no noise and for no magnitude."""

WireScalar = int | float | str | bytes
Float32 = NDArray[np.float32]

_REFUSAL = "perturb: "
_LONGEST_HEADER = 10_000
"""numpy's own limit, in bytes."""

_KINDS = ("signs", "vector")
_MAGNITUDES = ("rms", "max")


class WireError(ValueError):
    """An Instruction or a Payload that cannot be used; its message is the reason."""


@dataclass(frozen=True, eq=False)
class Instruction:
    """What the server asks of a client in one round.

    Parameters
    ----------
    kind : {"signs", "vector"}
        What to send: the signs of the noisy update, one bit each, or the noisy update itself.
    noise : str or None
        The noise family's name, or None for no noise.
    scales : (L,) float32 or None
        The noise scale b of each voted array, in units of the update. None lets the client use
        `factor` times its own magnitude.
    factor : float
        See `scales`.
    of : {"rms", "max"} or None
        The magnitude of each array that the client reports. None for none: it would tell more
        than the perturbed update does.
    clip : float or None
        The L2 norm to which the whole update is clipped before noise is added.
    server_round : int
        The round.
    seed : int or None
        The strategy's seed; None for the operating system's entropy.
    dense : tuple of int
        The positions of the arrays that are not voted on, as the server counts them: a client
        may know its arrays by other names, or none.
    divisor : float
        What the client divides its update by first of all, > 0: its own learning rate, where
        the server wants gradients.
    momentum : float
        The decay of the client's momentum, in [0, 1); 0 for none. It comes before the noise.
    """

    kind: PayloadKind
    noise: str | None
    scales: Float32 | None
    factor: float
    of: Magnitude | None
    clip: float | None
    server_round: int
    seed: int | None
    dense: tuple[int, ...]
    divisor: float = 1.0
    momentum: float = 0.0

    def encode(self) -> dict[str, WireScalar]:
        """Return the instruction as flat scalars, ready for a ConfigRecord or FitIns.config."""
        message: dict[str, WireScalar] = {
            "instruction": WIRE_VERSION,
            "kind": self.kind,
            "noise": self.noise or _NOTHING,
            "factor": float(self.factor),
            "of": self.of or _NOTHING,
            "round": self.server_round,
            "dense": json.dumps(self.dense),
            "divisor": float(self.divisor),
            "momentum": float(self.momentum),
        }
        if self.scales is not None:
            message["scales"] = _to_bytes(self.scales)
        if self.clip is not None:
            message["clip"] = float(self.clip)
        if self.seed is not None:
            # A decimal string: seeds may exceed the 64 bits of a record's integers.
            message["seed"] = str(self.seed)
        return {PREFIX + key: value for key, value in message.items()}

    @staticmethod
    def is_in(config: Mapping[str, Any]) -> bool:
        """Tell whether a message's config holds an instruction."""
        return PREFIX + "instruction" in config

    @classmethod
    def decode(cls, config: Mapping[str, Any]) -> "Instruction":
        """Read the instruction in a message's config.

        Raises
        ------
        WireError
            If it is of another version or malformed.
        """
        read = _Reader(config, "instruction")
        scales = read.optional("scales", bytes)
        noise = read.choice("noise", (*NOISE_FAMILIES, _NOTHING))
        of = read.choice("of", (*_MAGNITUDES, _NOTHING))
        divisor, momentum = read.required("divisor", float), read.required("momentum", float)
        if divisor == 0:
            raise WireError(f"{PREFIX}divisor must be > 0, got {divisor!r}")
        if momentum >= 1:
            raise WireError(f"{PREFIX}momentum must be < 1, got {momentum!r}")
        return cls(
            kind=cast(PayloadKind, read.choice("kind", _KINDS)),
            noise=None if noise == _NOTHING else noise,
            scales=None if scales is None else _require_sizes("scales", _from_bytes(scales)),
            factor=read.required("factor", float),
            of=None if of == _NOTHING else cast(Magnitude, of),
            clip=read.optional("clip", float),
            server_round=read.required("round", int),
            seed=read.seed("seed"),
            dense=read.positions("dense"),
            divisor=divisor,
            momentum=momentum,
        )


@dataclass(frozen=True, eq=False)
class Payload:
    """What a client answers.

    Parameters
    ----------
    kind : {"signs", "vector"}
        What `body` is.
    noise : str or None
        The family of the noise that was added, or None.
    scales : (L,) float32
        The noise scale b that was used for each voted array; zeros where there was no noise.
    magnitudes : (L,) float32
        The magnitude of each array of the update, before noise and after clipping; zeros where
        none was asked for.
    body : (⌈d/8⌉,) uint8 or (d,) float32
        Packed signs of the noisy update, or the noisy update.
    dense : (dense_bytes,) uint8
        The dense arrays after training, as `Layout.pack_dense` returns them.
    partition : int or None
        The client's partition, for the server's log; None where it has none.
    """

    kind: PayloadKind
    noise: str | None
    scales: Float32
    magnitudes: Float32
    body: NDArray[Any]
    dense: NDArray[np.uint8]
    partition: int | None = None

    def encode(self) -> tuple[list[NDArray[Any]], dict[str, WireScalar]]:
        """Return the payload's arrays, one or two, and the scalars that go with them."""
        message: dict[str, WireScalar] = {
            "payload": WIRE_VERSION,
            "kind": self.kind,
            "noise": self.noise or _NOTHING,
            "scales": _to_bytes(self.scales),
            "magnitudes": _to_bytes(self.magnitudes),
        }
        if self.partition is not None:
            message["partition"] = self.partition
        arrays = [self.body, self.dense] if self.dense.size else [self.body]
        return arrays, {PREFIX + key: value for key, value in message.items()}

    @staticmethod
    def is_in(config: Mapping[str, Any]) -> bool:
        """Tell whether a reply's config or metrics hold a payload's scalars."""
        return PREFIX + "payload" in config

    @classmethod
    def decode(cls, arrays: Sequence[NDArray[Any]], config: Mapping[str, Any]) -> "Payload":
        """Read a payload from a reply's arrays and scalars.

        Raises
        ------
        WireError
            If it is of another version or malformed. Whether it answers the instruction is
            for `require_answer` to say.
        """
        read = _Reader(config, "payload")
        if len(arrays) not in (1, 2):
            raise WireError(f"a payload has one or two arrays, got {len(arrays)}")
        noise = read.choice("noise", (*NOISE_FAMILIES, _NOTHING))
        return cls(
            kind=cast(PayloadKind, read.choice("kind", _KINDS)),
            noise=None if noise == _NOTHING else noise,
            scales=_from_bytes(read.required("scales", bytes)),
            magnitudes=_from_bytes(read.required("magnitudes", bytes)),
            body=arrays[0],
            dense=arrays[1] if len(arrays) == 2 else np.empty(0, dtype=np.uint8),
            partition=read.optional("partition", int),
        )

    def require_answer(self, instruction: Instruction, layout: Layout) -> None:
        """Raise unless this payload is a usable answer to `instruction`.

        Parameters
        ----------
        instruction : Instruction
            What the client was asked.
        layout : Layout
            The model's layout.

        Raises
        ------
        WireError
            Naming the first thing that is wrong: kind, noise, a length, a dtype, a value that
            is not finite.
        """
        if self.kind != instruction.kind:
            raise WireError(f"sent {self.kind!r}, was asked for {instruction.kind!r}")
        if self.noise != instruction.noise:
            raise WireError(f"used noise {self.noise!r}, was told {instruction.noise!r}")
        size, dtype = (
            (packed_size(layout.dim), np.uint8)
            if self.kind == "signs"
            else (layout.dim, np.float32)
        )
        _require_vector(self.kind, self.body, size, dtype)
        _require_vector("dense arrays", self.dense, layout.dense_bytes, np.uint8)
        for name, values in (("scales", self.scales), ("magnitudes", self.magnitudes)):
            _require_vector(name, values, len(layout.voted), np.float32)
            _require_sizes(name, values)
        if instruction.scales is not None and not np.array_equal(self.scales, instruction.scales):
            raise WireError("used another noise scale than it was told")
        if self.kind == "vector" and not np.isfinite(self.body).all():
            raise WireError("vector holds NaN or infinity")
        for name, array in layout.unpack_dense(self.dense).items():
            if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
                raise WireError(f"array {name!r} holds NaN or infinity")


def read_npy(data: bytes) -> NDArray[Any]:
    """Return the array in the bytes of an ``.npy`` file, without copying it.

    Parameters
    ----------
    data : bytes
        What ``numpy.save`` writes, as Flower's Array carries it.

    Returns
    -------
    array
        A read-only view into `data`.

    Raises
    ------
    WireError
        If the bytes are not such a file, or are fewer or more than its header says; nothing
        is allocated on the header's word.
    """
    try:
        return _parse_npy(data)
    # The header is a Python literal, which fails to parse in more ways than numpy translates.
    except Exception as error:
        raise WireError(f"array is not in .npy format: {error}") from error


def write_npy(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of an ``.npy`` file, copied once; ``numpy.save`` copies twice.

    Parameters
    ----------
    array : array
        The array.

    Returns
    -------
    bytes
        What `read_npy` reads.
    """
    array, header = np.asarray(array, order="C"), BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(array))
    return b"".join((header.getvalue(), array.data))


def refusal(error: ValueError) -> str:
    """Return the reason that a client gives for not answering an instruction."""
    return f"{_REFUSAL}{error}"


def is_refusal(reason: str) -> bool:
    """Tell whether the reason in an error reply is a `refusal`, or some other code's."""
    return reason.startswith(_REFUSAL)


class Inflatable(Protocol):
    """What Flower's messages and records have in common, as far as their size goes."""

    @property
    def children(self) -> Mapping[str, "Inflatable"] | None:
        """Return the objects that this one refers to."""

    def deflate(self) -> bytes:
        """Return the object as it is sent, without its children."""


def serialized_size(message: Inflatable) -> int:
    """Return the bytes of a Flower message as it is sent: its objects with all their headers.

    Parameters
    ----------
    message : flwr.app.Message
        The message, or any record in it.

    Returns
    -------
    int
        Bytes.
    """
    children = (message.children or {}).values()
    return len(message.deflate()) + sum(serialized_size(child) for child in children)


T = TypeVar("T")


class _Reader:
    """Reads typed entries of a flat mapping, and says what is wrong with them."""

    def __init__(self, config: Mapping[str, Any], message: str) -> None:
        self.config = config
        version = self.required(message, int)
        if version != WIRE_VERSION:
            raise WireError(f"{message} is of version {version}, this is version {WIRE_VERSION}")

    def required(self, key: str, wanted: type[T]) -> T:
        value = self.optional(key, wanted)
        if value is None:
            raise WireError(f"{PREFIX}{key} is missing")
        return value

    def optional(self, key: str, wanted: type[T]) -> T | None:
        value = self.config.get(PREFIX + key)
        if value is not None and not isinstance(value, wanted):
            raise WireError(f"{PREFIX}{key} must be {wanted.__name__}, got {value!r}")
        if isinstance(value, int | float) and not 0 <= value < inf:
            raise WireError(f"{PREFIX}{key} must be finite and not negative, got {value!r}")
        return value

    def choice(self, key: str, allowed: Sequence[str]) -> str:
        value = self.required(key, str)
        if value not in allowed:
            raise WireError(f"{PREFIX}{key} must be one of {sorted(allowed)}, got {value!r}")
        return value

    def seed(self, key: str) -> int | None:
        text = self.optional(key, str)
        if text is not None and not (text.isascii() and text.isdecimal()):
            raise WireError(f"{PREFIX}{key} must be a decimal number, got {text!r}")
        return None if text is None else int(text)

    def positions(self, key: str) -> tuple[int, ...]:
        text = self.required(key, str)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
            raise WireError(f"{PREFIX}{key} must be a JSON list of positions, got {text!r}")
        return tuple(values)


def _to_bytes(values: Float32) -> bytes:
    return values.astype("<f4").tobytes()


def _from_bytes(data: bytes) -> Float32:
    if len(data) % 4:
        raise WireError(f"a float32 vector cannot have {len(data)} bytes")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _parse_npy(data: bytes) -> NDArray[Any]:
    length_bytes = 2 if data[6:7] == b"\x01" else 4
    start = 8 + length_bytes + int.from_bytes(data[8 : 8 + length_bytes], "little")
    if start > _LONGEST_HEADER:
        raise ValueError(f"its header is said to have {start} bytes")
    shape, fortran_order, dtype = _parse_npy_header(data[:start])
    if prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"it is said to be {dtype} of shape {shape}, its bytes are not that")
    flat = np.frombuffer(data, dtype=dtype, count=prod(shape), offset=start)
    return flat.reshape(shape, order="F" if fortran_order else "C")


@lru_cache(maxsize=256)  # parsing takes 0.1 ms, and all clients' headers are alike
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    file = BytesIO(header)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its version is {version}")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"it cannot be {dtype} of shape {shape}")
    return shape, fortran_order, dtype


def _require_sizes(name: str, values: Float32) -> Float32:
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise WireError(f"{name} must be finite and not negative")
    return values


def _require_vector(name: str, values: NDArray[Any], size: int, dtype: type[np.generic]) -> None:
    if values.dtype != dtype or values.shape != (size,):
        raise WireError(
            f"{name} must be {np.dtype(dtype).name} of shape {(size,)}, "
            f"got {values.dtype} of shape {values.shape}"
        )
