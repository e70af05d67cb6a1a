"""Residues modulo 2^k: how they are packed to k bits each, and summed while packed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.votes import sum_numbers

Residues = NDArray[np.unsignedinteger[Any]]

MOST_BITS = 16
"""The largest k."""


def bits_of_sum(num_votes: int) -> int:
    """Return the least k with 2^k > M: a sum of M votes of 0 or 1 does not wrap around.

    Examples
    --------
    >>> [bits_of_sum(number) for number in (3, 10, 100)]
    [2, 4, 7]
    """
    return int(num_votes).bit_length()


def dtype_of(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the dtype of unpacked residues modulo 2^bits, the same on every machine."""
    return np.dtype("u1" if bits <= 8 else "<u2")


def pack_residues(values: Residues, bits: int) -> NDArray[np.uint8]:
    """Pack residues to k bits each, bit by bit.

    Parameters
    ----------
    values : (d,) uint8 or uint16
        Numbers, of which the k lowest bits count.
    bits : int
        k, from 1 to 16.

    Returns
    -------
    (k, ⌈d/8⌉) uint8
        Row j has bit j of each number.
    """
    return np.stack([np.packbits(values & values.dtype.type(1 << bit)) for bit in range(bits)])


def sum_packed(packed: Sequence[NDArray[np.uint8]], dim: int) -> Residues:
    """Sum packed residues modulo 2^k.

    Parameters
    ----------
    packed : sequence of M (k, ⌈d/8⌉) uint8
        Residues as `pack_residues` returns them, all of one shape, M >= 1.
    dim : int
        d, the number of residues in each.

    Returns
    -------
    (d,) uint8 or uint16
        The sums.
    """
    return sum_numbers(packed, dim).astype(dtype_of(len(packed[0])), copy=False)
