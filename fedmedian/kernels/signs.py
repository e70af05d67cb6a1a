"""Signs packed to one bit each.

Bit k of a packed vector, counted from the most significant bit of its first byte as
``np.packbits`` does, is 1 where coordinate k votes +1 and 0 where it votes −1. Unused bits of
the last byte are written as 0 and ignored when read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PackedSigns = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_CHUNK_BYTES = 1 << 13
_CHUNK = 1 << 16

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)

SIGNS_OF_BYTE: Float32 = np.where(_BITS_OF_BYTE, 1, -1).astype(np.float32)
"""Row b holds the eight signs that byte b stands for, (256, 8)."""

_ONES_OF_BYTE = _BITS_OF_BYTE.sum(axis=1, dtype=np.uint8)


def count_ones_of_bytes(
    words: NDArray[np.unsignedinteger[Any]], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Count the ones of each integer, as ``np.bitwise_count`` does."""
    ones = _ONES_OF_BYTE[words.view(np.uint8)].reshape(*words.shape, words.itemsize)
    return np.add.reduce(ones, axis=-1, dtype=np.uint8, out=out)


count_ones = getattr(np, "bitwise_count", count_ones_of_bytes)  # NumPy 2 has it


def packed_size(dim: int) -> int:
    """Return the number of bytes that `dim` packed signs take, ⌈dim/8⌉."""
    return (int(dim) + 7) // 8


def pack_signs(x: ArrayLike, rng: np.random.Generator | None = None) -> PackedSigns:
    """Pack the signs of a vector, one bit each.

    Parameters
    ----------
    x : (d,) array of any real dtype
        The vector; need not be contiguous. Infinities keep their sign.
    rng : numpy.random.Generator, optional
        Decides the sign of each zero, +0.0 and −0.0 alike, by a fair coin. Without it a zero
        counts as +1, so a coordinate that is always zero drifts.

    Returns
    -------
    (⌈d/8⌉,) uint8
        The packed signs.

    Raises
    ------
    ValueError
        If `x` is not one-dimensional or holds a NaN, which has no sign.

    Examples
    --------
    >>> pack_signs([0.5, -2.0, 3.0]).tolist()
    [160]
    """
    values = np.asarray(x)
    if values.ndim != 1:
        raise ValueError(f"x must be one-dimensional, got shape {values.shape}")
    packed = np.empty(packed_size(values.size), dtype=np.uint8)
    for start in range(0, values.size, _CHUNK):
        chunk = values[start : start + _CHUNK]
        positive = chunk >= 0
        if np.isnan(chunk).any():
            raise ValueError("x must not hold NaN: it has no sign")
        if rng is not None:
            zeros = np.flatnonzero(chunk == 0)
            positive[zeros] = rng.random(zeros.size) < 0.5
        packed[start // 8 : (start + _CHUNK) // 8] = np.packbits(positive)
    return packed


def unpack_signs(packed: PackedSigns, dim: int) -> Float32:
    """Return packed signs as a vector of ±1.

    Parameters
    ----------
    packed : (⌈d/8⌉,) uint8
        Packed signs.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (d,) float32
        +1 and −1.

    Raises
    ------
    ValueError
        If `packed` is not a uint8 vector of that length.

    Examples
    --------
    >>> unpack_signs(pack_signs([0.5, -2.0, 3.0]), 3).tolist()
    [1.0, -1.0, 1.0]
    """
    require_packed([packed], dim)
    signs = np.empty((packed.size, 8), dtype=np.float32)
    for start in range(0, packed.size, _CHUNK_BYTES):
        chunk = slice(start, start + _CHUNK_BYTES)
        # Every byte has its row; any mode but "raise" writes to `out` without a buffer.
        np.take(SIGNS_OF_BYTE, packed[chunk], axis=0, out=signs[chunk], mode="wrap")
    return signs.reshape(-1)[:dim]


def signs_within(packed: PackedSigns, part: slice) -> PackedSigns:
    """Return a part of packed signs as packed signs, a view if it begins with a byte.

    Parameters
    ----------
    packed : (⌈d/8⌉,) uint8
        Packed signs.
    part : slice
        The coordinates, with a start and a stop.

    Returns
    -------
    (⌈n/8⌉,) uint8
        The signs of the part's n coordinates.

    Examples
    --------
    >>> signs_within(pack_signs([0.5, -2.0, 3.0, 4.0]), slice(2, 4)).tolist()
    [192]
    """
    shift, num_bytes = part.start % 8, packed_size(part.stop - part.start)
    bytes_within = packed[part.start // 8 : packed_size(part.stop)]
    if shift == 0:
        return bytes_within
    shifted: PackedSigns = bytes_within << shift
    shifted[:-1] |= bytes_within[1:] >> (8 - shift)
    return shifted[:num_bytes]


def require_packed(packed_vectors: Sequence[PackedSigns], dim: int) -> None:
    """Raise unless there is at least one vector and each holds `dim` packed signs.

    Raises
    ------
    ValueError
        If there are no vectors, or one is not a uint8 vector of length ⌈dim/8⌉.
    """
    if len(packed_vectors) == 0:
        raise ValueError("packed_vectors must hold at least one vector")
    for packed in packed_vectors:
        is_array = isinstance(packed, np.ndarray)
        if not is_array or packed.dtype != np.uint8 or packed.shape != (packed_size(dim),):
            found = f"{packed.dtype} of shape {packed.shape}" if is_array else type(packed).__name__
            raise ValueError(
                f"{dim} packed signs must be a uint8 vector of length {packed_size(dim)}, got "
                f"{found}"
            )
