"""The coordinate-wise median of the clients' vectors."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 13


def coordinate_median(rows: Sequence[NDArray[np.floating]]) -> NDArray[np.floating]:
    """Return the median of M vectors, per coordinate.

    The server's rule in Algorithms 2 and 4 of arXiv 1906.01736.

    Parameters
    ----------
    rows : sequence of M (d,) floating-point arrays, or an (M, d) array
        The clients' vectors, all of one dtype, M >= 1; need not be contiguous.

    Returns
    -------
    (d,) array of that dtype
        The middle value for odd M, the mean of the two middle values for even M; NaN where any
        client has a NaN.

    Raises
    ------
    ValueError
        If there is no vector, or they differ in length or dtype or are not one-dimensional
        floating-point arrays.

    Examples
    --------
    >>> rows = [np.array([1.0, 5.0]), np.array([2.0, -5.0]), np.array([10.0, 0.0])]
    >>> coordinate_median(rows).tolist()
    [2.0, 0.0]
    """
    _require_rows(rows)
    num_rows, dim = len(rows), rows[0].size
    low, high = (num_rows - 1) // 2, num_rows // 2
    median = np.empty(dim, dtype=rows[0].dtype)
    for start in range(0, dim, _BLOCK):
        block = np.stack([row[start : start + _BLOCK] for row in rows])
        # Sorted last, a NaN shows up in the last row wherever there is one.
        block.partition([low, high, num_rows - 1], axis=0)
        with np.errstate(invalid="ignore"):  # (−inf + inf)/2 is NaN, and is meant to be
            middle = block[low] if low == high else np.mean(block[[low, high]], axis=0)
        median[start : start + _BLOCK] = np.where(np.isnan(block[-1]), np.nan, middle)
    return median


def _require_rows(rows: Sequence[NDArray[np.floating]]) -> None:
    if len(rows) == 0:
        raise ValueError("rows must hold at least one vector")
    first = rows[0]
    for row in rows:
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
