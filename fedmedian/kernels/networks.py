"""Selection networks: the median of M numbers by a fixed sequence of minima and maxima."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from fedmedian.kernels.programs import Program, ProgramBuilder


@lru_cache(maxsize=64)
def median_network(num_rows: int) -> Program:
    """Return the program that selects the middle of M rows, elementwise.

    A pairwise sorting network (Parberry, "The pairwise sorting network", Parallel Processing
    Letters 2, 1992), of which only the minima and maxima remain that the middle depends on. After
    that it is shorter than Batcher's odd-even merge sort for every M: 48 operations against 52
    for M = 11, 1480 against 1706 for M = 101.

    A NaN in any row comes through: the middle depends on every row, and neither minimum nor
    maximum drops a NaN.

    Parameters
    ----------
    num_rows : int
        M, >= 1.

    Returns
    -------
    Program
        Its two outputs are the two middle values, the same one twice for odd M.
    """
    builder = ProgramBuilder(num_rows)
    wires = list(range(num_rows))
    for low, high in pairwise_comparators(range(num_rows)):
        pair = wires[low], wires[high]
        wires[low] = builder.apply(np.minimum, *pair)
        wires[high] = builder.apply(np.maximum, *pair)
    return builder.compile([wires[(num_rows - 1) // 2], wires[num_rows // 2]])


def pairwise_comparators(wires: range) -> Iterator[tuple[int, int]]:
    """Yield the comparators of a pairwise sorting network.

    Parameters
    ----------
    wires : range
        The wires to sort, of any number.

    Yields
    ------
    (int, int)
        A wire that gets the smaller, and one that gets the larger of their two values.
    """
    if len(wires) < 2:
        return
    smaller, larger = wires[0::2], wires[1::2]
    yield from zip(smaller, larger, strict=False)
    yield from pairwise_comparators(smaller)
    yield from pairwise_comparators(larger)
    # Both halves are sorted, and pair by pair in order; what remains is to compare each larger
    # one with smaller ones of pairs further on, at distances of 2^k − 1, halved each time.
    reach = 1 << ((len(wires) - 1).bit_length() - 1)
    while reach > 1:
        yield from zip(larger, wires[reach::2], strict=False)
        reach //= 2
