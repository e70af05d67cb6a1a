"""The coordinate-wise median of the clients' vectors.

Three methods, all on blocks of coordinates that fit the processor's cache. Up to `_NETWORK_ROWS`
clients, a selection network reads their vectors in place. Up to `_SORT_ROWS`, transposed tiles let
NumPy sort the values of each coordinate. Above, counting the values below a few candidates leaves
those around the middle, and only they are sorted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.kernels.networks import median_network

Floats = NDArray[np.floating]
Indices = NDArray[np.int64]

# Measured: the network takes 1.3 ns a value for 101 rows and 3 for 201; sorting takes 3 there and 5
# for 512 rows, and counting 5 up to 2,000 and 8 for 5,000.
_NETWORK_ROWS = 200
_SORT_ROWS = 512
# Long enough to hide the overhead of a NumPy call, short enough for the cache.
_NETWORK_BLOCK_BYTES = 1 << 16
_TILE_VALUES = 1 << 18
_COUNTED_BYTES = 1 << 22
# The median is outside of the middle 31 of 63 random values once in 10^4.
_SAMPLE_ROWS, _CANDIDATES = 63, 31


def coordinate_median(rows: Sequence[Floats]) -> Floats:
    """Return the median of M vectors, per coordinate.

    The server's rule in Algorithms 2 and 4 of arXiv 1906.01736.

    Parameters
    ----------
    rows : sequence of M (d,) floating-point arrays, or an (M, d) array
        The clients' vectors, all of one dtype, M >= 1; need not be contiguous. They are not
        copied; scratch memory does not grow with d and stays below 32 MiB up to 50,000 rows, and
        below 64 columns of more.

    Returns
    -------
    (d,) array of that dtype
        The middle value for odd M, the mean of the two middle values for even M, without
        overflow. NaN where any client has a NaN, or where the two are −∞ and +∞. A zero has the
        sign of some client's zero.

    Raises
    ------
    ValueError
        If there are no vectors, or they differ in length or dtype, or are not one-dimensional
        floating-point arrays.

    Examples
    --------
    >>> rows = [np.array([1.0, 5.0]), np.array([2.0, -5.0]), np.array([10.0, 0.0])]
    >>> coordinate_median(rows).tolist()
    [2.0, 0.0]
    """
    _require_rows(rows)
    if len(rows) <= _NETWORK_ROWS:
        return _median_by_network(rows)
    if len(rows) <= _SORT_ROWS:
        return _median_by_sorting(rows)
    return _median_by_counting(rows)


def _median_by_network(rows: Sequence[Floats]) -> Floats:
    program = median_network(len(rows))
    median, work = _result_and_work_dtype(rows)
    length = min(_NETWORK_BLOCK_BYTES // work.itemsize, median.size)
    scratch = np.empty((program.num_scratch, length), dtype=work)
    for start in range(0, median.size, length or 1):
        out = median[start : start + length]
        # A copy only if NumPy cannot compute in this dtype.
        block = [row[start : start + length].astype(work, copy=False) for row in rows]
        low, high = program.run(block, list(scratch[:, : out.size]))
        out[:] = low if low is high else _mean(low, high)
    return median


def _median_by_sorting(rows: Sequence[Floats]) -> Floats:
    first, last = _middle_ranks(len(rows))
    median, work = _result_and_work_dtype(rows)
    length = max(_TILE_VALUES // len(rows) // 64, 1) * 64
    stack = np.empty((len(rows), min(length, median.size)), dtype=work)
    tile = np.empty(stack.shape[::-1], dtype=work)
    for start in range(0, median.size, length):
        block, columns = stack[:, : median.size - start], tile[: median.size - start]
        for out, row in zip(block, rows, strict=True):
            out[:] = row[start : start + length]
        # Transposing a whole stack at once would thrash the cache.
        for place in range(0, len(columns), 64):
            columns[place : place + 64] = block[:, place : place + 64].T
        columns.sort(axis=1)
        middle = _mean(columns[:, first], columns[:, last])
        median[start : start + length] = _nan_where_a_row_has_one(middle, block)
    return median


def _median_by_counting(rows: Sequence[Floats]) -> Floats:
    median, work = _result_and_work_dtype(rows)
    row_values = _COUNTED_BYTES // work.itemsize // len(rows)
    length = min(max(row_values, 64), 1 << 16)  # two bytes count columns
    for start in range(0, median.size, length):
        out = median[start : start + length]
        block = np.empty((len(rows), out.size), dtype=work)
        np.stack([row[start : start + length] for row in rows], out=block)
        out[:] = _nan_where_a_row_has_one(_middle_of_columns(block), block)
    return median


def _middle_of_columns(block: Floats) -> Floats:
    """Return the median of each column without a NaN, and anything for the others.

    Parameters
    ----------
    block : (M, n) floating-point array
        The values, n <= 2^16.

    Returns
    -------
    (n,) array
        The medians.
    """
    low, high, below, sizes = _bracket(block)
    crowded = sizes > len(block) // 8  # an end of a bracket is infinite, or values are tied
    sizes[crowded] = 0
    few = _sorted_between(block, low, high, sizes)
    offsets = [np.where(crowded, 0, rank - below) for rank in _middle_ranks(len(block))]
    first, last = np.take_along_axis(few, np.stack(offsets, axis=1), axis=1).T
    middle = _mean(first, last)
    if crowded.any():
        middle[crowded] = _middle_of_crowded(block[:, crowded], low[crowded])
    return middle


def _bracket(block: Floats) -> tuple[Floats, Floats, Indices, Indices]:
    """Return an interval around the middle of each column, between values of a sample.

    Parameters
    ----------
    block : (M, n) floating-point array
        The values.

    Returns
    -------
    low, high : (n,) arrays
        The ends, infinite where the sample has none. Both middle values are >= low and < high.
    below, sizes : (n,) int64 arrays
        The number of values < low, and of those from there to high.
    """
    first, last = _middle_ranks(len(block))
    sample = np.sort(block[:: max(len(block) // _SAMPLE_ROWS, 1)], axis=0)
    spare = max(len(sample) - _CANDIDATES, 0) // 2
    columns = np.arange(block.shape[1])
    low, high = (np.full(len(columns), end, dtype=block.dtype) for end in (-np.inf, np.inf))
    below, up_to = np.zeros(len(columns), np.int64), np.full(len(columns), len(block))
    place = np.zeros(len(columns), np.int64)  # how many candidates are known to be low enough
    step = (min(_CANDIDATES, len(sample)) + 1) // 2
    compared, counts = np.empty(block.shape, dtype=np.bool_), np.min_scalar_type(len(block))
    while step:
        candidate = sample[spare + place + step - 1, columns]
        np.less(block, candidate, out=compared)
        count = np.add.reduce(compared, axis=0, dtype=counts).astype(np.int64)
        is_low, is_high = count <= first, count > last
        np.copyto(low, candidate, where=is_low)
        np.copyto(below, count, where=is_low)
        np.copyto(high, candidate, where=is_high)
        np.copyto(up_to, count, where=is_high)
        place += step * is_low
        step //= 2
    return low, high, below, up_to - below


def _sorted_between(block: Floats, low: Floats, high: Floats, sizes: Indices) -> Floats:
    """Return each column's values from ``low`` to ``high``, in order, and then infinity.

    Parameters
    ----------
    block : (M, n) floating-point array
        The values.
    low, high : (n,) arrays
        The ends, the upper one excluded.
    sizes : (n,) int64 array
        The number of values between them, or 0 to leave out a column.

    Returns
    -------
    (n, max(sizes) or 1) array
        The values.
    """
    between = (block >= np.where(sizes, low, np.inf)) & (block < high)
    places = np.flatnonzero(between)
    # NumPy sorts integers of two bytes by counting.
    by_column = np.argsort((places % len(sizes)).astype(np.uint16), kind="stable")
    values = np.full((len(sizes), max(sizes.max(), 1)), np.inf, dtype=block.dtype)
    values[np.arange(values.shape[1]) < sizes[:, np.newaxis]] = block.ravel()[places[by_column]]
    values.sort(axis=1)
    return values


def _middle_of_crowded(columns: Floats, low: Floats) -> Floats:
    """Return the median of columns that have many values near it, often all the same.

    Parameters
    ----------
    columns : (M, n) floating-point array
        The values.
    low : (n,) array
        The lower ends of their brackets.

    Returns
    -------
    (n,) array
        The medians.
    """
    first, last = _middle_ranks(len(columns))
    middle = low.copy()
    differ = np.count_nonzero(columns <= low, axis=0) <= last
    others = np.sort(columns[:, differ].T, axis=1)
    middle[differ] = _mean(others[:, first], others[:, last])
    return middle


def _middle_ranks(number: int) -> tuple[int, int]:
    return (number - 1) // 2, number // 2


def _result_and_work_dtype(rows: Sequence[Floats]) -> tuple[Floats, np.dtype[Any]]:
    """Return an empty result and the dtype to compute in: native, and not the slow float16."""
    dtype = rows[0].dtype
    work = np.dtype(np.float32) if dtype.itemsize == 2 else dtype.newbyteorder("=")
    return np.empty(rows[0].size, dtype=dtype), work


def _nan_where_a_row_has_one(middle: Floats, block: Floats) -> Floats:
    # Unlike a sum, a maximum is NaN only if some value is.
    return np.where(np.isnan(np.maximum.reduce(block, axis=0)), np.nan, middle)


def _mean(low: Floats, high: Floats) -> Floats:
    """Return (low + high)/2 as np.mean does, but without overflow."""
    with np.errstate(over="ignore", invalid="ignore"):  # (−inf + inf)/2 is NaN on purpose
        mean = (low + high) / 2
    overflown = np.flatnonzero(np.isinf(mean))
    mean[overflown] = low[overflown] / 2 + high[overflown] / 2
    return mean


def _require_rows(rows: Sequence[Floats]) -> None:
    if len(rows) == 0:
        raise ValueError("rows must hold at least one vector")
    first = rows[0]
    for row in rows:
        if not isinstance(row, np.ndarray):
            raise ValueError(f"rows must be arrays, got {type(row).__name__}")
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.floating):
            raise ValueError(
                "rows must be one-dimensional floating-point arrays, "
                f"got {row.dtype} of shape {row.shape}"
            )
        if row.shape != first.shape or row.dtype != first.dtype:
            raise ValueError(
                f"rows must agree in length and dtype, got {first.dtype} of shape "
                f"{first.shape} and {row.dtype} of shape {row.shape}"
            )
