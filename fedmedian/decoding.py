"""From votes to an estimate of the clients' mean: what a server that knows the noise can do."""

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
    >>> mean_from_votes([5, 2, 4], 5, Uniform(), 1.0).round(3).tolist()
    [1.732, -0.346, 1.039]
    """
    if num_votes < 1:
        raise ValueError(f"num_votes must be >= 1, got {num_votes!r}")
    mean_sign = np.asarray(counts, dtype=np.float32) * np.float32(2 / num_votes) - np.float32(1)
    return mean_sign * (np.asarray(scale, dtype=np.float32) * np.float32(votes_to_mean(noise)))


def votes_to_mean(noise: Noise) -> float:
    """Return 1/(2·φ0): what one unit of mean sign is worth, in units of the noise scale."""
    return 1.0 / (2.0 * noise.density_at_zero)
