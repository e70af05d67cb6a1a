"""Amplification by sampling: what a round's answers reveal if the drawn clients stay hidden.

Of n clients m are drawn, each set of m with the same probability. Two worlds differ in the data of
one client. The Rényi divergence of order α of all answers of the round together is, for whole α > 1
and q = m/n, at most

    log(1 + Σ_{j=2..α} C(α, j)·q^j·ζ(j)) / (α − 1)

(Wang, Balle and Kasiviswanathan, AISTATS 2019, arXiv 1808.00087). ζ(j) bounds ∫|p − p'|^j·r^{1−j}
for the laws p, p' and r of the answer of that client in either world and of another that is drawn
in its place. With the divergences D_j of any two answers, and B(j) a bound of ∫|p − p'|^j·p'^{1−j}
for any two, it may be

- 2·exp((j − 1)·D_j), since |p − p'| <= max(p, p'); and for j = 2 also 4·(exp(D_2) − 1), which is
  the next, for then B(2) = exp(D_2) − 1;
- 4·B(j): where r < min(p, p') the integrand is at most that of p and r or of p' and r,
  elsewhere r^{1−j} <= min(p, p')^{1−j}, and it is at most those of p and p' together.

With Gaussian noise B(j) is an integral in one dimension, which grows with the distance. For signs
it is at most that: it is an f-divergence, and they are a function of the vector.

This holds against an observer of answers without their senders, or of aggregates alone. It does not
hold against a server, which knows which clients it asks.

**Clients that do not answer.** The bound above assumes that all clients would answer. Of n
connected clients only some a may, with a unknown. Of the m that are drawn, k answer. Given k, each
set of k of the a is equally likely, and the bound holds with q = k/a, which may be far above m/n.
But a round with k < r, `min_replies`, keeps the model, and reveals only k, which does not depend on
any client's data.

*Theorem.* Let i = min(j, r) and s = r/n·C(m, r)^(1/r), which is m/n for r = m and for r = 1. The
bound holds with s^i in place of q^j, whichever of the clients would answer.

*Proof.* k has the same law in both worlds, so that the exponential of α − 1 times the divergence is
at most the mean of the bound's over k: q^j becomes E[(k/a)^j; k ≥ r], which is at most
E[(k/a)^i; k ≥ r]. Write x_(i) for x·(x − 1)···(x − i + 1). For whole k ≥ r, k^i/k_(i) falls in k
and is at most r^i/r_(i). The mean of k_(i), which is hypergeometric, is a_(i)·m_(i)/n_(i). And
a_(i)/a^i grows in a, to n_(i)/n^i. Hence E[(k/a)^i; k ≥ r] <= r^i/r_(i)·m_(i)/n^i, a product over
l < i of r·(m − l)/(n·(r − l)). These grow in l: the geometric mean of the first i is at most that
of all r, which is s. ∎

*Corollary.* Whoever would answer, E[k/a] <= s. As ∫p^α·p'^(1−α) is jointly convex in p and p', the
divergence is at most log(1 − s + s·exp((α − 1)·D_α))/(α − 1) for every α > 1: as if the client's
answer were visible whenever it is drawn.

**Many rounds.** Their divergences add up if a client's answer does not depend on the rounds that it
was drawn in before. If it does, as with client steps that keep state, they add up for r = 1: given
the rounds that the client is drawn in, which do not depend on its data, the divergences of its
answers add up, and the mean over those rounds is the product of the corollary's bounds.
"""

from functools import lru_cache
from math import comb, expm1, inf, log, pi, sqrt

import numpy as np
import scipy  # its subpackages load on first use

from fedmedian.wire.scalars import Float64

_WHOLE = np.array([*range(2, 33), *range(36, 65, 4), 80, 96, 128, 192, 256])

ORDERS: Float64 = np.unique([*np.arange(1.125, 16, 0.125), *_WHOLE])
"""The orders α of `sampled_divergences`."""

_STEP = 0.05
_MOST_POINTS = 20_000
_ERROR = 1e-6
"""A bound on the error of a sum over points."""


def share_that_hides(drawn: int, present: int, min_replies: int) -> float:
    """Return the effective share s of a draw, whichever of its clients would answer.

    Parameters
    ----------
    drawn : int
        m, the number of clients that are drawn, >= 1.
    present : int
        n, the number of clients that they are drawn from.
    min_replies : int
        r, the smallest number of answers with which a round reveals anything, >= 1.

    Returns
    -------
    float
        s, at least m/n; see the module's theorem.

    Examples
    --------
    >>> share_that_hides(drawn=10, present=100, min_replies=10)
    0.1
    >>> round(share_that_hides(drawn=10, present=100, min_replies=5), 3)
    0.151
    """
    if min_replies in (1, drawn) or min_replies > drawn:
        return drawn / present
    logarithm = log(comb(drawn, min_replies)) / min_replies
    return float(min_replies / present * np.exp(logarithm))


@lru_cache(maxsize=256)
def sampled_divergences(
    distance: float, energy: float, fraction: float, min_replies: int
) -> Float64:
    """Return bounds on the Rényi divergences of a round whose clients stay hidden.

    Parameters
    ----------
    distance : float
        μ, the largest distance between the means of one client's noisy vectors, in units of their
        Gaussian noise, > 0.
    energy : float
        E such that the divergence of order α of its answers is at most α/2·E; μ² always works.
    fraction : float
        s, see `share_that_hides`, in (0, 1].
    min_replies : int
        r, the smallest number of answers with which a round reveals anything, >= 1.

    Returns
    -------
    array of float64
        The divergences at `ORDERS`, read-only; those of several rounds add up.
    """
    without = ORDERS * energy / 2
    j = np.arange(2, _WHOLE[-1] + 1, dtype=np.float64)
    parts = np.minimum(log(4) + _log_moments(distance, j), log(2) + (j - 1) * j * energy / 2)
    if energy < 1:  # else 2·exp(E) is smaller
        parts[0] = min(parts[0], log(4) + log(expm1(energy)))
    moments = []
    for order in _WHOLE:
        own = slice(order - 1)
        chosen = log_choices(order, j[own])
        hidden = np.minimum(j[own], min_replies) * log(fraction)
        moments.append(scipy.special.logsumexp([0.0, *(chosen + hidden + parts[own])]))
    # (α − 1)·D_α is convex in α, and 0 for α = 1: between whole orders it is below the chords.
    between = np.interp(ORDERS, [1, *_WHOLE], [0.0, *moments]) / (ORDERS - 1)
    with np.errstate(divide="ignore"):  # where all clients are drawn
        when_drawn = np.logaddexp(np.log1p(-fraction), log(fraction) + (ORDERS - 1) * without)
    divergences: Float64 = np.minimum(without, np.minimum(between, when_drawn / (ORDERS - 1)))
    divergences.flags.writeable = False
    return divergences


def epsilon_of_divergences(divergences: Float64, delta: float) -> float:
    """Return ε from Rényi divergences at `ORDERS`: arXiv 2004.00010, Proposition 12.

    Parameters
    ----------
    divergences : array of float64
        The divergences.
    delta : float
        δ, in (0, 1).

    Returns
    -------
    float
        ε >= 0.
    """
    bounds = divergences + np.log1p(-1 / ORDERS) - (log(delta) + np.log(ORDERS)) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


def log_choices(total: int, chosen: Float64) -> Float64:
    """Return the logarithms of C(total, chosen)."""
    gammaln = scipy.special.gammaln
    logarithms: Float64 = gammaln(total + 1) - gammaln(chosen + 1) - gammaln(total - chosen + 1)
    return logarithms


def _log_moments(distance: float, powers: Float64) -> Float64:
    """Return log E|p/p' − 1|^j for two normal laws of variance 1 whose means are μ apart.

    Very large ones are returned as infinite: the other bounds are smaller.
    """
    found = np.full(powers.shape, inf)
    for index, power in enumerate(powers):
        # The integrand is a normal density around μ·j, except where p/p' is near 1 or below. With a
        # small μ it is |μ·x|^j times one around 0, which has two peaks, at ±√j.
        reach = 12.0 + sqrt(power)
        x = np.arange(-reach, reach + distance * power, _STEP)
        if x.size > _MOST_POINTS:
            break
        log_ratio = distance * x - distance**2 / 2
        with np.errstate(divide="ignore"):
            near = np.log(np.abs(np.expm1(np.minimum(log_ratio, 30.0))))
        distances = np.where(log_ratio < 30, near, log_ratio)
        density = -(x**2) / 2 - log(2 * pi) / 2
        found[index] = scipy.special.logsumexp(density + power * distances) + log(_STEP) + _ERROR
    return found
