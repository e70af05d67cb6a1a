"""Signs packed to one bit each, and votes over them.

Bit k of a packed vector, counted from the most significant bit of its first byte as
``np.packbits`` does, is 1 where coordinate k votes +1 and 0 where it votes −1. Unused bits of
the last byte are 0 when packed here and ignored when read.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

PackedSigns = NDArray[np.uint8]

_CHUNK_BYTES = 1 << 14
# Row b holds the eight signs that byte b stands for.
_SIGNS_OF_BYTE = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), 1, -1)
_SIGNS_OF_BYTE = _SIGNS_OF_BYTE.astype(np.float32)


def packed_size(dim: int) -> int:
    """Return the number of bytes that `dim` packed signs take, ⌈dim/8⌉."""
    return -(-dim // 8)


def pack_signs(x: ArrayLike, rng: np.random.Generator | None = None) -> PackedSigns:
    """Pack the signs of a vector, one bit each.

    Parameters
    ----------
    x : (d,) array of any real dtype
        The vector; need not be contiguous. Infinities have their sign.
    rng : numpy.random.Generator, optional
        Decides the sign of each zero, +0.0 and −0.0 alike, by a fair coin. Without it a zero
        counts as +1, which makes a coordinate that is always zero drift.

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
    if np.isnan(values).any():
        raise ValueError("x must not hold NaN: it has no sign")
    positive = values >= 0
    if rng is not None:
        zeros = np.flatnonzero(values == 0)
        positive[zeros] = rng.random(zeros.size) < 0.5
    return np.packbits(positive)


def unpack_signs(packed: PackedSigns, dim: int) -> NDArray[np.float32]:
    """Return the ±1 that `packed` stands for.

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
    _require_packed([packed], dim)
    return np.take(_SIGNS_OF_BYTE, packed, axis=0).reshape(-1)[:dim]


def count_votes(packed_vectors: Sequence[PackedSigns], dim: int) -> NDArray[np.int32]:
    """Count the positive votes for each coordinate.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (d,) int32
        The number of clients that voted +1, 0..M.

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of that length.
    """
    _require_packed(packed_vectors, dim)
    counts = np.zeros(dim, dtype=np.int32)
    for start in range(0, dim, 8 * _CHUNK_BYTES):
        chunk = counts[start : start + 8 * _CHUNK_BYTES]
        first = start // 8
        for packed in packed_vectors:
            bits = packed[first : first + _CHUNK_BYTES]
            chunk += np.unpackbits(bits, count=chunk.size)
    return counts


def majority_vote(packed_vectors: Sequence[PackedSigns], dim: int) -> NDArray[np.int8]:
    """Return the sign that most clients voted for, per coordinate.

    The server's rule in Algorithms 1 and 3 of arXiv 1906.01736.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (d,) int8
        +1, −1, or 0 for a tie (even M only).

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of that length.
    """
    counts = count_votes(packed_vectors, dim)
    return np.sign(2 * counts - len(packed_vectors)).astype(np.int8)


def weighted_votes(
    packed_vectors: Sequence[PackedSigns],
    sizes: Sequence[int],
    weights: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Sum the clients' signs, each times its weight for the array it belongs to.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1.
    sizes : sequence of L int
        How many coordinates each array has, in order; they add up to d.
    weights : (M, L) float64
        The weight of each client's votes on each array.

    Returns
    -------
    (d,) float32
        Σ_i w_{i,l(k)}·s_{i,k}.

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of length ⌈d/8⌉.
    """
    dim = sum(sizes)
    _require_packed(packed_vectors, dim)
    total = np.zeros(dim, dtype=np.float32)
    for packed, client_weights in zip(packed_vectors, weights, strict=True):
        signs = unpack_signs(packed, dim)
        signs *= np.repeat(client_weights.astype(np.float32), sizes)
        total += signs
    return total


def _require_packed(packed_vectors: Sequence[PackedSigns], dim: int) -> None:
    if len(packed_vectors) == 0:
        raise ValueError("packed_vectors must hold at least one vector")
    for packed in packed_vectors:
        if packed.dtype != np.uint8 or packed.shape != (packed_size(dim),):
            raise ValueError(
                f"{dim} packed signs must be a uint8 vector of length {packed_size(dim)}, "
                f"got {packed.dtype} of shape {packed.shape}"
            )
