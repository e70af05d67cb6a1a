"""What a round's answers tell where its clients are drawn at random, and nobody is to know whom.

Of n clients m are drawn, each set of m as likely as any other. Two worlds differ in what one client
holds. Of the answers of the round, all together, the Rényi divergence of order α is, for whole
α > 1 and q = m/n, at most

    log(1 + Σ_{j=2..α} C(α, j)·q^j·ζ(j)) / (α − 1)

(Wang, Balle and Kasiviswanathan, AISTATS 2019, arXiv 1808.00087). ζ(j) bounds ∫|p − p'|^j·r^{1−j}
for the laws p, p' and r of the answer of that client in either world and of another that is drawn
in its place. With the divergences D_j of any two answers, and B(j) a bound of ∫|p − p'|^j·p'^{1−j}
for any two, it may be

- 2·exp((j − 1)·D_j), since |p − p'| <= max(p, p'); and for j = 2 also 4·(exp(D_2) − 1), which is
  the next, for then B(2) = exp(D_2) − 1;
- 4·B(j): where r < min(p, p') the integrand is no more than that of p and r or of p' and r,
  elsewhere r^{1−j} <= min(p, p')^{1−j}, and it is no more than those of p and p' together.

With Gaussian noise B(j) is an integral in one dimension, which grows with the distance, and signs
have no more: it is an f-divergence, and they are made of the vector.

It holds against who sees answers and not whose they are, or only what is made of them; not against
a server, which knows whom it asks.
"""

from functools import lru_cache
from math import expm1, inf, log, pi

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

Float64 = NDArray[np.float64]

_WHOLE = np.array([*range(2, 33), *range(36, 65, 4), 80, 96, 128, 192, 256])

ORDERS: Float64 = np.unique([*np.arange(1.125, 16, 0.125), *_WHOLE])
"""The orders α of `sampled_divergences`."""

_STEP = 0.05
_MOST_POINTS = 20_000
_ERROR = 1e-6
"""What a sum over points may be off by, at most."""


@lru_cache(maxsize=256)
def sampled_divergences(distance: float, energy: float, fraction: float) -> Float64:
    """Bound the Rényi divergences of a round of hidden clients.

    Parameters
    ----------
    distance : float
        μ, how far apart the means of one client's noisy vectors are at most, in units of their
        Gaussian noise, > 0.
    energy : float
        A number E of which the divergence of order α of its answers is at most α/2·E; μ² will do.
    fraction : float
        q, the share of the clients that is drawn, in (0, 1].

    Returns
    -------
    array of float64
        The divergences at `ORDERS`; those of rounds add up. Not to be written to.
    """
    without = ORDERS * energy / 2
    j = np.arange(2, _WHOLE[-1] + 1, dtype=np.float64)
    parts = np.minimum(log(4) + _log_moments(distance, j), log(2) + (j - 1) * j * energy / 2)
    if energy < 1:  # else 2·exp(E) is the less
        parts[0] = min(parts[0], log(4) + log(expm1(energy)))
    moments = []
    for order in _WHOLE:
        own = slice(order - 1)
        chosen = gammaln(order + 1) - gammaln(j[own] + 1) - gammaln(order - j[own] + 1)
        moments.append(logsumexp([0.0, *(chosen + j[own] * log(fraction) + parts[own])]))
    # (α − 1)·D_α is convex in α, and 0 for α = 1: between whole orders it is below the chords.
    between = np.interp(ORDERS, [1, *_WHOLE], [0.0, *moments]) / (ORDERS - 1)
    divergences: Float64 = np.minimum(without, between)
    divergences.flags.writeable = False
    return divergences


def epsilon_of_divergences(divergences: Float64, delta: float) -> float:
    """Return an ε of Rényi divergences at `ORDERS`: arXiv 2004.00010, Proposition 12.

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


def _log_moments(distance: float, powers: Float64) -> Float64:
    """Return log E|p/p' − 1|^j for two normal laws of variance 1 whose means are μ apart.

    Of one that is very large it is infinite: the other bounds are less.
    """
    found = np.full(powers.shape, inf)
    for index, power in enumerate(powers):
        # The integrand is a normal density around μ·j, but for where p/p' is near 1 or below.
        x = np.arange(-12.0, 12.0 + distance * power, _STEP)
        if x.size > _MOST_POINTS:
            break
        log_ratio = distance * x - distance**2 / 2
        with np.errstate(divide="ignore"):
            near = np.log(np.abs(np.expm1(np.minimum(log_ratio, 30.0))))
        distances = np.where(log_ratio < 30, near, log_ratio)
        density = -(x**2) / 2 - log(2 * pi) / 2
        found[index] = logsumexp(density + power * distances) + log(_STEP) + _ERROR
    return found
