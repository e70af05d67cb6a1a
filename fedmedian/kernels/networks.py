"""Selection networks, which find medians by a fixed sequence of minima and maxima."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from fedmedian.kernels.programs import Program, ProgramBuilder


@lru_cache(maxsize=64)
def median_network(num_rows: int) -> Program:
    """Return the program that selects the middle of M rows, elementwise.

    A pairwise sorting network (Parberry, "The pairwise sorting network", Parallel Processing
    Letters 2, 1992), reduced to the minima and maxima that the middle depends on. The result is
    shorter than Batcher's odd-even merge sort for every M: 48 operations against 52 for M = 11,
    1480 against 1706 for M = 101.

    A NaN in any row gives NaN: the middle depends on every row, and minima and maxima keep NaN.

    Parameters
    ----------
    num_rows : int
        M, >= 1.

    Returns
    -------
    Program
        Its two outputs are the two middle values, which are the same row for odd M.

    Examples
    --------
    >>> program = median_network(3)
    >>> rows = [np.array([value]) for value in (5.0, 1.0, 2.0)]
    >>> scratch = [np.empty(1) for _ in range(program.num_scratch)]
    >>> [row.tolist() for row in program.run(rows, scratch)]
    [[2.0], [2.0]]
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
        The wires to sort.

    Yields
    ------
    (int, int)
        The wire that receives the smaller of two values, and the one that receives the larger.
    """
    if len(wires) < 2:
        return
    smaller, larger = wires[0::2], wires[1::2]
    yield from zip(smaller, larger, strict=False)
    yield from pairwise_comparators(smaller)
    yield from pairwise_comparators(larger)
    # Both halves are sorted, and so is each pair. It remains to compare each larger value with
    # smaller values of later pairs, at distances of 2^k − 1 that halve each time.
    reach = 1 << ((len(wires) - 1).bit_length() - 1)
    while reach > 1:
        yield from zip(larger, wires[reach::2], strict=False)
        reach //= 2
