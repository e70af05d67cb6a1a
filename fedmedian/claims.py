"""Numbers that clients claim, combined so that a few who lie do not decide: sizes, weights, values.

With M clients, t of them may say anything: a fifth, and at least one of two or more.
"""

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.float64]

PROPORTION = 4.0
"""No client counts for more than this many times the median one, nor is as much further off."""


def num_tolerated(num_clients: int) -> int:
    """Return t, the number of clients of M that may lie: ⌊M/5⌋, but at least 1 of two or more."""
    return min(max(num_clients // 5, 1), num_clients - 1)


def agreed_size(sizes: NDArray[np.floating], quantile: float = 0.5) -> Sizes:
    """Return a quantile over clients of each block's size that liars cannot set.

    Sizes of zero, of clients that did not move the block, are left out. The quantile is one of the
    others, the lower where it falls between two: a mean of two would let one client of two set it.
    Nor is it above the (t + 1)-th largest of all M sizes, t being `num_tolerated`, or as many as
    the quantile itself leaves above it if that is less.

    For the median, of M clients of whom f lie and h of the others moved the block: f claims cannot
    raise it above the largest of the h sizes if f ≤ t or f ≤ h, nor lower it below the smallest of
    them if f < h and t < h. A block that at most t clients claim to have moved has size 0.

    Parameters
    ----------
    sizes : (M, L) array
        One row per client, finite and not negative, M >= 1.
    quantile : float (default: 0.5)
        Which quantile, in [0, 1].

    Returns
    -------
    (L,) float64
        The sizes.
    """
    num_clients = len(sizes)
    ordered = np.sort(sizes, axis=0).astype(np.float64)
    moved = np.count_nonzero(ordered, axis=0)
    above = num_clients - 1 - int(quantile * (num_clients - 1))
    trusted = num_clients - 1 - min(num_tolerated(num_clients), above)
    lower = num_clients - moved + (quantile * np.maximum(moved - 1, 0)).astype(np.int64)
    ranks = np.minimum(np.minimum(lower, trusted), num_clients - 1)
    return np.asarray(np.take_along_axis(ordered, ranks[None], axis=0)[0])


def up_to_trusted(sizes: NDArray[np.floating]) -> Sizes:
    """Return clients' sizes, (M, L), none above the (t + 1)-th largest of its block."""
    rank = len(sizes) - 1 - num_tolerated(len(sizes))
    return np.asarray(np.minimum(sizes, np.sort(sizes, axis=0)[rank]), dtype=np.float64)


def in_proportion(sizes: NDArray[np.floating]) -> Sizes:
    """Return clients' sizes, (M, L), none above `PROPORTION` times the `agreed_size`."""
    with np.errstate(over="ignore"):
        return np.minimum(sizes.astype(np.float64), PROPORTION * agreed_size(sizes))


def mean_in_proportion(values: Sizes, weights: Sizes) -> Sizes:
    """Return the weighted mean of clients' values, those that are out of line moved into it.

    A coordinate's values are clipped to m ± `PROPORTION`·r, m being their median and r the distance
    from it within which all but t of them lie. Where that leaves nothing to clip it is the mean,
    as it always is for two clients. Of three or more, what all but t say is positive, such as a
    variance, stays positive.

    Parameters
    ----------
    values : (M, *shape) float64
        The clients' values, M >= 1.
    weights : (M,) float64
        The clients' weights, which add up to 1.

    Returns
    -------
    (*shape) float64
        The mean.
    """
    tolerated = num_tolerated(len(values))
    with np.errstate(over="ignore"):
        median = np.median(values, axis=0)
        distances = np.sort(np.abs(values - median), axis=0)
        reach = PROPORTION * distances[len(values) - 1 - tolerated]
        mean = np.tensordot(weights, np.clip(values, median - reach, median + reach), axes=1)
    if 2 * tolerated < len(values):
        low = np.sort(values, axis=0)[tolerated]
        mean = np.where((low > 0) & (mean <= 0), low, mean)
    return np.asarray(mean)


def count_out_of_proportion(*claims: NDArray[np.floating]) -> int:
    """Return the number of clients that claim more than `PROPORTION` times the `agreed_size`.

    Parameters
    ----------
    *claims : (M, L) arrays
        Sizes of several kinds; one out of proportion is enough.

    Returns
    -------
    int
        The number of clients.
    """
    beyond = [(sizes > in_proportion(sizes)).any(axis=1) for sizes in claims]
    return int(np.logical_or.reduce(beyond).sum())
