"""What a sum of several clients' votes reveals about one of them.

A secure sum shows a server, in each coordinate, how many of the votes are +1, and no single vote.
The server subtracts the votes of clients that collude with it, and is left with those of H honest
ones: S = X + W, where W is the vote of the client in question, P(W = 1) = Φ(x) for an entry x·b of
its update, and X is the sum of N = H − 1 others' votes. The server may know all updates but one.
Entries of all H clients are clipped, |x| ≤ R, so that every vote has a probability between 1 − P
and P = Φ(R). If the client in question clips its own to less, what holds for all |x| ≤ R holds for
those. The noise of the votes is independent, so divergences of coordinates and of rounds add up,
and Gaussian mechanisms compose, as in `fedmedian.privacy.accounting`.

Write f_p for the law of S if W has the probability p. It is affine in p, and in each of the others'
probabilities. Both bounds below are of convex functions of two such laws: they are largest where m
of the others have the probability P and N − m have 1 − P, for some m. These are computed. The
fewer others, the larger are both: their votes could be revealed. So m = 0, k, 2k, … suffice if
k − 1 of the others are left out, and with many clients some are.

*Theorem 1.* Let κ be the largest of B·φ(x)/φ(Φ⁻¹(A + B·Φ(x))) over |x| ≤ R, s = 1..H and m, with
B = P(X = s − 1) and A = P(X ≥ s). The sum of votes is a function, with randomness, of a Gaussian
vector: the update in noise of scale b/κ.

*Proof.* The fraction is the slope of h(x) = Φ⁻¹(P(S ≥ s)), since P(S ≥ s) = A + B·Φ(x). So
h(x) − h(y) ≤ κ·(x − y) for x > y: the test that decides for x where S ≥ s is not better than the
best test of two normal laws κ·(x − y) apart. X is a sum of independent votes, so its law is
log-concave, f_p/f_q grows with s, and these tests and mixtures of two of them are the best ones.
Mixtures are not better either, for the trade-off curve of normal laws is convex. What no test tells
apart better is a function of those normal laws with randomness (Blackwell's theorem; Dong, Roth and
Su, arXiv 1905.02383, Theorem 2.10). It holds for extreme probabilities of the others, and for all,
because ∫max(f_p − c·f_q, 0) is convex in each. ∎

For H = 1 this is the vector's bound. For many clients and a small R, κ² is near 2/(π·H). The
largest slope in an interval of x follows from B and the largest |h|, which is at an end. Where
P(S ≥ s) or P(S < s) is tiny, T, the slope is at most λ(R)/|Φ⁻¹(T)|, with the hazard rate
λ(R) = φ(R)/Φ(−R), for T ≥ B·min(Φ(x), Φ(−x)) and φ(h) ≥ T·|h|.

*Theorem 2.* Let k(y) = ((1 + y)^α − 1 − α·y)/y² and g = (P(X = s − 1) − P(X = s))/f_q(s). For
α > 1, not in (2, 3), the Rényi divergence of order α of the sums of updates u and v is at most
K/(α − 1)/(2·π)·‖u − v‖²/b², where K is the largest mean of g²·k((p − q)·g) under f_q, over p and q
in {P, 1 − P} and m.

*Proof.* With t = p − q, f_p = f_q·(1 + t·g), and g has mean zero under f_q. So F(p, q) =
(∫f_p^α·f_q^(1−α) − 1)/t² is the mean of g²·k(t·g). k(y) is α·(α − 1) times the integral of
(1 − s)·(1 + s·y)^(α−2) over s from 0 to 1, convex for α ≤ 2 and α ≥ 3: F is convex in p. From the
other side, with f_q = f_p·(1 − t·g') and the exponent 1 − α in place of α, F is convex in q for
every α > 1. So F is largest where p and q are P or 1 − P. The numerator is convex in each of the
others' probabilities, being jointly convex in f_p and f_q. Hence a coordinate's divergence is at
most log(1 + K·t²)/(α − 1) ≤ K·t²/(α − 1), and |Φ(x) − Φ(y)| ≤ |x − y|/√(2·π). ∎

Votes are symmetric, so q = 1 − P suffices. The largest g is 1/q, where W = 1 for certain. (α − 1)
times the divergence is convex in α: between two orders, such as 2 and 3, it is below the chord.
Where p = q, K is α·(α − 1)/2 times the Fisher information, near 4/H. Theorem 1 needs less noise
where entries are small, as in a large model, and Theorem 2 where they are not.

Chen, Özgür and Kairouz (arXiv 2207.09916) bound the Rényi divergence of such a sum in one
coordinate, and where its maximum is.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import exp, inf, log, pi, sqrt

import numpy as np
import scipy  # its subpackages load on first use

from fedmedian.privacy.amplification import ORDERS, log_choices
from fedmedian.wire.scalars import Float64

_MOST_OTHERS = 1400
"""The number of others above which `_LEAST_TAIL` keeps `gaussian_share` from falling."""

_MOST_LAWS = 200
"""The number of values of m above which not every one is computed."""

_CELLS = 32
"""The number of intervals in which the largest slope is sought."""

_LEAST_TAIL = 1e-290
"""The smallest probability that is not rounded to a subnormal number."""

_LEAST_WEIGHT = 1e-40
"""The probability of a sum below which it counts as if it showed that the vote is +1."""

_LARGEST_EXPONENT = 600.0
"""The exponent above which a divergence is infinite, because it might not fit a float."""

_COMPUTED: Float64 = ORDERS[(ORDERS <= 2) | ((ORDERS >= 3) & (ORDERS % 0.25 == 0))]
"""The orders of which divergences are computed. Others are below the chords."""

_ERROR = 1e-6
"""A bound on the relative error of what is computed."""


_LIMIT = 6.0
"""The largest entry in a random basis, over the root mean square. Of normal ones, two in 10⁹ are
larger."""


def limit_of_entries(dim: int) -> float:
    """Return what secure sums limit entries of an update to, over the norm that it is clipped to.

    Parameters
    ----------
    dim : int
        d, the number of parameters, or of those in the smallest block. Updates are padded for a
        rotation, which lowers the limit.

    Returns
    -------
    float
        The limit, 6/√d, at most 1.

    Examples
    --------
    >>> limit_of_entries(10_000)
    0.06
    """
    return min(_LIMIT / sqrt(max(dim, 1)), 1.0)


@lru_cache(maxsize=4096)
def gaussian_share(summed: int, reach: float) -> float:
    """Return κ² of Theorem 1, rounded up.

    Parameters
    ----------
    summed : int
        H, the number of honest clients whose votes are in the sum, >= 1.
    reach : float
        R, the largest entry of any client's update over the noise scale, > 0.

    Returns
    -------
    float
        The sum's share of a Gaussian vector's μ², in (0, 1].

    Examples
    --------
    >>> round(gaussian_share(1, 0.1), 3), round(gaussian_share(100, 0.01), 5)
    (1.0, 0.0064)
    """
    edges = np.linspace(-reach, reach, _CELLS + 1)[:, None]
    # The largest φ(x) of an interval is where x is nearest to 0.
    nearest = np.maximum(0, np.maximum(edges[:-1], -edges[1:]))
    ndtr, ndtri = scipy.special.ndtr, scipy.special.ndtri
    tail = exp(-(reach**2) / 2) / sqrt(2 * pi) / float(ndtr(-reach)) / -float(ndtri(_LEAST_TAIL))
    largest = log(tail)
    for law in _laws_of_others(summed, reach):
        above = np.append(law[:0:-1].cumsum()[::-1], 0)
        below = np.append(0, law[:-1].cumsum())
        tails = np.minimum(above + law * ndtr(edges), below + law * ndtr(-edges))
        is_known = tails.min(axis=0) >= _LEAST_TAIL
        depths = ndtri(tails[:, is_known]) ** 2
        depths = np.maximum(depths[1:], depths[:-1])
        slopes = np.log(law[is_known]) + (depths - nearest**2) / 2
        largest = max(largest, slopes.max(initial=-inf))
    return min(1.0, exp(2 * largest) * (1 + _ERROR))


@lru_cache(maxsize=4096)
def sum_divergences(summed: int, reach: float) -> Float64:
    """Return the Rényi divergences of Theorem 2 for updates whose distance is the noise scale.

    Parameters
    ----------
    summed, reach
        As for `gaussian_share`.

    Returns
    -------
    array of float64
        The divergences at `ORDERS`, read-only; they grow with the square of the distance.
    """
    low, high = (float(scipy.special.ndtr(end)) for end in (-reach, reach))
    orders = _COMPUTED[_COMPUTED * log(high / low) < _LARGEST_EXPONENT]
    largest = np.zeros(orders.size)
    for law in _laws_of_others(summed, reach):
        raised = low * np.append(0, law)
        weight = raised + (1 - low) * np.append(law, 0)
        rare = weight < _LEAST_WEIGHT
        certain = weight[rare].sum() + _LEAST_TAIL
        weight, raised = np.append(weight[~rare], certain), np.append(raised[~rare], certain)
        score = (raised / weight - low) / (low * (1 - low))
        energy = weight * score**2
        moments = _curvature(orders[:, None], (high - low) * score) @ energy
        in_limit = orders * (orders - 1) / 2 * energy.sum()
        largest = np.maximum(largest, np.maximum(moments, in_limit))
    found = np.interp(ORDERS, [1, *orders], [0, *largest], right=inf) * (1 + _ERROR)
    divergences: Float64 = found / (ORDERS - 1) / (2 * pi)
    divergences.flags.writeable = False
    return divergences


def _laws_of_others(summed: int, reach: float) -> Iterator[Float64]:
    """Yield the laws of X for each m; for many others, laws that reveal no less."""
    others = min(summed - 1, _MOST_OTHERS)
    step = 1 + others // _MOST_LAWS
    others -= step - 1
    low, high = np.log(scipy.special.ndtr([-reach, reach]))
    for at_high in sorted({*range(0, others + 1, step), others}):
        yield np.convolve(_binomial(at_high, high, low), _binomial(others - at_high, low, high))


def _binomial(size: int, log_one: float, log_zero: float) -> Float64:
    ones = np.arange(size + 1.0)
    law: Float64 = np.exp(log_choices(size, ones) + ones * log_one + (size - ones) * log_zero)
    return law


def _curvature(order: Float64, y: Float64) -> Float64:
    """Return k(y) of Theorem 2."""
    series = 1 / 2 + (order - 2) * y / 6 * (1 + (order - 3) * y / 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = (np.expm1(order * np.log1p(y)) - order * y) / y**2
    return np.where(abs(order * y) < 1e-3, order * (order - 1) * series, quotient)
