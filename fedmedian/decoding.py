"""From votes to an estimate of the clients' mean: what a server that knows the noise can do."""

from math import comb, pi, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmedian.noise import Noise


def mean_from_votes(
    counts: ArrayLike, num_votes: int, noise: Noise, scale: ArrayLike
) -> NDArray[np.float32]:
    """Estimate the mean of the clients' updates from their votes.

    P(client i votes +1) = F(g_i/b), so that E[s_i] = 2F(g_i/b) − 1 ≈ 2·φ0·g_i/b and

        ĝ = b/(2·φ0) · (1/M) Σ_i s_i = b/(2·φ0) · (2·counts/M − 1).

    Exact for uniform noise while every |g_i| ≤ √3·b; for Gaussian noise the bias is
    −mean(g³)/(6b²) to leading order and the variance at most π·b²/(2M).

    Parameters
    ----------
    counts : (d,) integers
        The number of positive votes per coordinate, 0..M, as `count_votes` returns it.
    num_votes : int
        M, the number of clients that voted, >= 1.
    noise : Noise
        The family of the noise that the clients added; its own scale plays no part here.
    scale : float or (d,) array
        The noise scale b, > 0.

    Returns
    -------
    (d,) float32
        The estimate ĝ, in units of the update.

    Raises
    ------
    ValueError
        If `num_votes` is less than 1.

    Examples
    --------
    >>> from fedmedian import Uniform
    >>> mean_from_votes([5, 2, 4], 5, Uniform(), 1.0).astype(float).round(3).tolist()
    [1.732, -0.346, 1.039]
    """
    if num_votes < 1:
        raise ValueError(f"num_votes must be >= 1, got {num_votes!r}")
    mean_sign = np.asarray(counts, dtype=np.float32) * np.float32(2 / num_votes) - np.float32(1)
    return mean_sign * (np.asarray(scale, dtype=np.float32) * np.float32(votes_to_mean(noise)))


def votes_to_mean(noise: Noise) -> float:
    """Return 1/(2·φ0): what one unit of mean sign is worth, in units of the noise scale."""
    return 1.0 / (2.0 * noise.density_at_zero)


def majority_gain(noise: Noise, weights: NDArray[np.float64]) -> float:
    """Return 2·κ_M: what the expected majority is per unit of mean update over noise scale.

    For small updates E[majority] ≈ 2·κ_M·ū/b. With equal weights and odd M exactly
    κ_M = φ0·M·C(M−1, (M−1)/2)/2^{M−1}; an even M carries the signal of M − 1. With unequal
    weights w by the central limit theorem κ = φ0·√(2/π)/‖w‖, where ū is the weighted mean.

    Parameters
    ----------
    noise : Noise
        The noise family.
    weights : (M,) float64
        The clients' weights, which add up to 1, M >= 1.

    Returns
    -------
    float
        2·κ_M.

    Examples
    --------
    >>> from fedmedian import Gaussian
    >>> [round(majority_gain(Gaussian(), np.full(M, 1 / M)) / 2, 3) for M in (1, 3, 5, 11)]
    [0.399, 0.598, 0.748, 1.08]
    """
    if np.all(weights == weights[0]):
        odd = len(weights) - 1 + len(weights) % 2
        pivotal = comb(odd - 1, odd // 2) / int(2 ** (odd - 1))
        return 2 * noise.density_at_zero * odd * pivotal
    return 2 * noise.density_at_zero * sqrt(2 / pi) / float(np.linalg.norm(weights))
