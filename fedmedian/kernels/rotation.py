"""Fast random orthogonal transforms of long vectors.

A rotation multiplies a vector with random signs, pads it with zeros, writes it row by row into a
nearly square matrix, and takes the orthonormal DCT-II along both axes. Every coordinate of the
result is a sum over all coordinates of the vector. So it is close to normal for any vector, with
the vector's mean square as its variance.

Two short DCTs take half the time of one over the whole length and almost no memory. Padding by
about one percent gives both lengths small factors only.
"""

from collections.abc import Callable
from functools import lru_cache
from math import isqrt

import numpy as np
import scipy  # its subpackages load on first use

from fedmedian.kernels.signs import Float32

# A multiple of the eight signs that a byte stands for.
_CHUNK = 1 << 19

# Rows of a multiple of 4 KiB fall on the same lines of the cache. Columns then take twice as long.
_ALIASED = 1 << 10
_CACHE_LINE = 1 << 4

# Row b holds the sign bits that byte b flips.
_FLIPS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.uint32)
_FLIPS_OF_BYTE <<= 31


@lru_cache(maxsize=256)
def matrix_shape(size: int) -> tuple[int, int]:
    """Return the shape of the matrix that a vector of `size` coordinates is written into.

    Parameters
    ----------
    size : int
        n, >= 0.

    Returns
    -------
    (int, int)
        Rows and columns, both without large prime factors and within a factor of about two of √n.
        Their product is the smallest possible one of at least n.

    Examples
    --------
    >>> matrix_shape(1000)
    (40, 25)
    """
    if size == 0:
        return 0, 0
    root = isqrt(size - 1) + 1
    shapes = []
    columns = scipy.fft.next_fast_len(-(-root // 2), real=True)
    while columns <= 2 * root:
        shapes.append((scipy.fft.next_fast_len(-(-size // columns), real=True), columns))
        columns = scipy.fft.next_fast_len(columns + 1, real=True)
    return min(shapes, key=lambda shape: (shape[0] * shape[1], abs(shape[1] - root)))


def padded_size(size: int) -> int:
    """Return the number of coordinates of a rotated vector of `size`."""
    rows, columns = matrix_shape(size)
    return rows * columns


def rotate(vector: Float32, rng: np.random.Generator, out: Float32 | None = None) -> Float32:
    """Return Q·x for a random orthogonal matrix Q that the generator's state determines.

    Parameters
    ----------
    vector : (n,) float32
        x. It is not changed.
    rng : numpy.random.Generator
        Draws the signs, eight per byte.
    out : (n',) float32, optional
        Where the result goes.

    Returns
    -------
    (n',) float32
        The rotated vector, n' = `padded_size(n)`, with the same L2 norm.

    Examples
    --------
    >>> x = np.array([3.0, 4.0, 0.0], np.float32)
    >>> y = rotate(x, np.random.default_rng(0))
    >>> round(float(np.linalg.norm(y)), 3)
    5.0
    >>> np.allclose(rotate_back(y, 3, np.random.default_rng(0)), x, atol=1e-6)
    True
    """
    if out is None:
        out = np.empty(padded_size(vector.size), dtype=np.float32)
    _flip_signs(vector, rng, out[: vector.size])
    out[vector.size :] = 0
    rotated = _transform(scipy.fft.dctn, out, matrix_shape(vector.size))
    if not np.may_share_memory(rotated, out):  # SciPy transforms in place if it can
        out[:] = rotated
    return out


def rotate_back(rotated: Float32, size: int, rng: np.random.Generator) -> Float32:
    """Return Qᵀ·y, which undoes `rotate`.

    Parameters
    ----------
    rotated : (n',) float32
        y. It is overwritten.
    size : int
        n, the number of coordinates before the rotation.
    rng : numpy.random.Generator
        A generator in the same state as the one that `rotate` was given.

    Returns
    -------
    (n,) float32
        The vector.
    """
    vector = _transform(scipy.fft.idctn, rotated, matrix_shape(size))[:size]
    return _flip_signs(vector, rng, vector)


def _transform(
    function: Callable[..., Float32], vector: Float32, shape: tuple[int, int]
) -> Float32:
    """Return the transform of a vector written into a matrix; the vector is overwritten."""
    if vector.size == 0:
        return vector
    rows, columns = shape
    matrix = vector.reshape(shape)
    if columns % _ALIASED == 0:
        matrix = np.empty((rows, columns + _CACHE_LINE), dtype=np.float32)[:, :columns]
        matrix[:] = vector.reshape(shape)
    return function(matrix, norm="ortho", overwrite_x=True).reshape(-1)


def _flip_signs(vector: Float32, rng: np.random.Generator, out: Float32) -> Float32:
    """Write the vector into `out`, the sign of each coordinate flipped by a fair coin."""
    flips = np.empty((-(-min(vector.size, _CHUNK) // 8), 8), dtype=np.uint32)
    for start in range(0, vector.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        bits = vector[chunk].view(np.uint32)
        coins = np.frombuffer(rng.bytes(-(-bits.size // 8)), dtype=np.uint8)
        # Any mode but "raise" writes to `out` without a buffer, and "clip" takes longer.
        np.take(_FLIPS_OF_BYTE, coins, axis=0, out=flips[: coins.size], mode="wrap")
        np.bitwise_xor(bits, flips.reshape(-1)[: bits.size], out=out[chunk].view(np.uint32))
    return out
