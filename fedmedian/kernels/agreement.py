"""Agreement between pairs of clients, counted on packed signs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.signs import PackedSigns, count_ones, require_packed

# A chunk of all votes and its popcounts fit the L2 cache; a popcount of 64 bits is one byte, and
# the sum over a chunk fits 16 bits.
_CHUNK_WORDS = 1 << 8


def count_agreements(packed_vectors: Sequence[PackedSigns], dim: int) -> NDArray[np.int64]:
    """Count the coordinates on which each pair of clients votes alike.

    By XOR and popcount, without unpacking.

    Parameters
    ----------
    packed_vectors : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1; need not be contiguous.
    dim : int
        d, the number of coordinates, >= 0.

    Returns
    -------
    (M, M) int64
        The counts, 0..d; symmetric, d on the diagonal.

    Raises
    ------
    ValueError
        If there is no vector, or one is not a uint8 vector of that length.

    Examples
    --------
    >>> count_agreements([np.uint8([0b11110000]), np.uint8([0b11000000])], 6).tolist()
    [[6, 4], [4, 6]]
    """
    require_packed(packed_vectors, dim)
    clients, num_bytes = len(packed_vectors), packed_vectors[0].size
    differences = np.zeros((clients, clients), dtype=np.int64)
    words = np.zeros((clients, _CHUNK_WORDS), dtype=np.uint64)
    apart = np.empty_like(words)
    counts = np.empty(words.shape, dtype=np.uint8)
    for start in range(0, num_bytes, 8 * _CHUNK_WORDS):
        end = min(start + 8 * _CHUNK_WORDS, num_bytes)
        votes = words.view(np.uint8)
        for row, packed in zip(votes, packed_vectors, strict=True):
            row[: end - start] = packed[start:end]
        votes[:, end - start :] = 0
        if end == num_bytes and dim % 8:
            votes[:, end - start - 1] &= 0xFF << (8 - dim % 8) & 0xFF  # the rest has no meaning
        for first in range(clients - 1):
            np.bitwise_xor(words[first + 1 :], words[first], out=apart[first + 1 :])
            count_ones(apart[first + 1 :], out=counts[first + 1 :])
            found = np.add.reduce(counts[first + 1 :], axis=1, dtype=np.uint16)
            differences[first, first + 1 :] += found
    differences += differences.T
    return np.subtract(dim, differences, out=differences)
