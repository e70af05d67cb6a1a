"""Robust combination of numbers that clients report: sizes, weights, values.

Of M clients, t may report anything: a fifth of them, but at least one of two or more.
"""

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.float64]

PROPORTION = 4.0
"""The largest accepted ratio of a size, or a distance, to a typical one."""

SHARE = 1.25
"""The largest accepted ratio of a client's examples to an equal share of the total."""

_EXCESS = 2.0
"""The largest accepted ratio of a claim to a bound that t clients cannot raise."""

_MOST = 1e100
"""The largest number of examples that counts in full; the smallest is its inverse."""


def num_tolerated(num_clients: int) -> int:
    """Return t, how many of M clients may lie: ⌊M/5⌋, but at least 1 of two or more.

    Examples
    --------
    >>> [num_tolerated(m) for m in (1, 2, 10, 100)]
    [0, 1, 2, 20]
    """
    return min(max(num_clients // 5, 1), num_clients - 1)


def agreed_size(sizes: NDArray[np.floating], quantile: float = 0.5) -> Sizes:
    """Return a quantile of each block's sizes over clients, which lying clients cannot set.

    It leaves out sizes of zero, from clients that did not move the block. The quantile is one of
    the other sizes, the lower one where it falls between two: with the mean of two, one client of
    two could set it. It is at most the (t + 1)-th largest of all M sizes, with t the smaller of
    `num_tolerated` and the number of clients that the quantile leaves above it.

    For the median, let f of M clients lie and h of the others have moved the block. The f claims
    cannot raise it above the largest of the h sizes if f ≤ t or f ≤ h, nor lower it below the
    smallest if f < h and t < h. A block that at most t clients claim to have moved has size 0.

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

    Examples
    --------
    >>> agreed_size(np.array([[1.0], [2.0], [3.0], [1e9]])).tolist()
    [2.0]
    """
    num_clients = len(sizes)
    ordered = np.sort(sizes, axis=0).astype(np.float64)
    moved = np.count_nonzero(ordered, axis=0)
    above = num_clients - 1 - int(quantile * (num_clients - 1))
    trusted = num_clients - 1 - min(num_tolerated(num_clients), above)
    lower = num_clients - moved + (quantile * np.maximum(moved - 1, 0)).astype(np.int64)
    ranks = np.minimum(np.minimum(lower, trusted), num_clients - 1)
    return np.asarray(np.take_along_axis(ordered, ranks[None], axis=0)[0])


def _trusted(sizes: NDArray[np.floating]) -> Sizes:
    """Return the (t + 1)-th largest of sizes, (M, L) or (M,), of each block: (L,) or ()."""
    rank = len(sizes) - 1 - num_tolerated(len(sizes))
    return np.asarray(np.sort(sizes, axis=0)[rank], dtype=np.float64)


def up_to_trusted(sizes: NDArray[np.floating]) -> Sizes:
    """Return clients' sizes, (M, L), capped at the (t + 1)-th largest of each block."""
    return np.asarray(np.minimum(sizes, _trusted(sizes)))


def clipping_factors(norms: Sizes, most: Sizes) -> Sizes:
    """Return the factors in [0, 1] that clip blocks of norms, (M, L), to the `most`, (L,)."""
    factors = np.ones_like(norms)
    return np.divide(np.broadcast_to(most, norms.shape), norms, out=factors, where=norms > most)


def in_proportion(sizes: NDArray[np.floating], weights: Sizes) -> Sizes:
    """Return clients' sizes, capped so that no client counts for much more than the median one.

    A client counts for its size times its weight. The cap is `PROPORTION` times the `agreed_size`,
    or twice the (t + 1)-th largest size if that is less, for a client of at most mean weight. For
    a heavier client it shrinks in proportion to the weight.

    Parameters
    ----------
    sizes : (M, L) array
        One row per client, finite and not negative, M >= 1.
    weights : (M,) float64
        The clients' weights, positive, with sum 1.

    Returns
    -------
    (M, L) float64
        The sizes.
    """
    shares = np.maximum(len(weights) * weights, 1)[:, None]
    most = np.minimum(PROPORTION * agreed_size(sizes), _EXCESS * _trusted(sizes))
    return np.asarray(np.minimum(sizes, most / shares))


def capped_examples(examples: Sizes) -> Sizes:
    """Return clients' numbers of examples, capped at a bound that t clients cannot raise.

    The cap is the (t + 1)-th largest claim, with t = `num_tolerated`, or the largest smaller number
    with which no client counts for more than `SHARE` times the mean of the capped claims. So any k
    clients together hold at most ``SHARE * k / M`` of the total. If all others make equal claims,
    they hold at most k/M.

    Parameters
    ----------
    examples : (M,) float64
        The claims, finite and positive, M >= 1.

    Returns
    -------
    (M,) float64
        The claims, at most the cap.
    """
    claims = np.clip(examples, 1 / _MOST, _MOST)
    trusted = _trusted(claims)
    cap = largest_cap(np.minimum(claims, trusted) / trusted, SHARE)
    return np.asarray(np.minimum(claims, trusted * min(1.0, cap)))


def largest_cap(sizes: Sizes, share: float) -> float:
    """Return the largest cap of clients' sizes, (M,), that is at most `share` times their mean."""
    ordered = np.sort(sizes)
    # Σ min(size, c) is the minimum over k of the k smallest sizes plus (M − k)·c. So the largest
    # c that is at most `share` times the mean is the minimum of these.
    counts = np.arange(1, len(ordered) + 1) - len(ordered) * (1 - 1 / share)
    caps = np.cumsum(ordered)[counts > 0] / counts[counts > 0]
    return float(caps.min())


def voting_weights(examples: Sizes) -> Sizes:
    """Return the weights of clients that report numbers of examples; see `capped_examples`.

    Parameters
    ----------
    examples : (M,) float64
        The claims, finite and positive, M >= 1.

    Returns
    -------
    (M,) float64
        The weights, with sum 1 and each at most ``SHARE / M``.

    Examples
    --------
    >>> voting_weights(np.array([1.0, 1.0, 1.0, 1e6])).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    weights = capped_examples(examples)
    weights = weights / weights.max()  # the sum of the claims may overflow
    return np.asarray(weights / weights.sum())


def clip_two(values: Sizes, start: Sizes) -> Sizes:
    """Return two clients' values of an array, each change clipped in proportion to the other.

    The L2 norm of each change is at most `PROPORTION` times that of the other. The median of two
    is their mean, so nothing else bounds one of them.

    Parameters
    ----------
    values : (2, *shape) float64
        The clients' values, finite.
    start : (*shape) array
        The value that both started from, finite.

    Returns
    -------
    (2, *shape) float64
        The values.
    """
    changes = values - start
    with np.errstate(over="ignore"):
        norms = np.sqrt(np.square(changes).reshape(2, -1).sum(axis=1))
    most = PROPORTION * norms.min()
    clipped = values.copy()
    for client in np.flatnonzero(norms > most):
        clipped[client] = start + changes[client] * (most / norms[client])
    return clipped


def mean_in_proportion(values: Sizes, weights: Sizes) -> Sizes:
    """Return the weighted mean of clients' values after clipping outliers.

    Each coordinate's values are clipped to m ± `PROPORTION`·r, with m their median and r the
    distance from it within which all but t of them lie. Without outliers, and always for two
    clients, the result is the plain mean. With three or more clients, what all but t report as
    positive, such as a variance, stays positive.

    Parameters
    ----------
    values : (M, *shape) float64
        The clients' values, M >= 1.
    weights : (M,) float64
        The clients' weights, with sum 1.

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


def count_out_of_proportion(examples: Sizes, *claims: NDArray[np.floating]) -> int:
    """Return the number of clients whose claims are far above what they count for.

    Parameters
    ----------
    examples : (M,) float64
        Numbers of examples; more than twice the capped number is out of proportion.
    *claims : (M, L) arrays
        Sizes of several kinds; more than `PROPORTION` times the `agreed_size` of any block is out
        of proportion.

    Returns
    -------
    int
        The number of clients.
    """
    outside = examples / _EXCESS > capped_examples(examples)  # twice a claim may overflow
    for sizes in claims:
        outside |= (sizes > PROPORTION * agreed_size(sizes)).any(axis=1)
    return int(outside.sum())
