"""The smoothed median: the limit of the noisy median when its noise averages out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from fedmedian.kernels.medians import Floats, coordinate_median
from fedmedian.rules.noise import Noise, Uniform
from fedmedian.wire.scalars import Float32, Float64

_BLOCK_VALUES = 1 << 18
_NEWTON_STEPS = 12
_BISECTIONS = 40
_TOLERANCE = 1e-7


def smoothed_median(rows: Sequence[Floats], noise: Noise, scale: ArrayLike) -> Float32:
    """Return the root m of Σ_i [2F((m − u_i)/b) − 1] = 0, per coordinate.

    It tends to the median as b → 0 and to the mean as b → ∞, without the variance of noise. Between
    them its influence is bounded: one client moves it by O(b/M). It needs the clients' vectors
    without noise, so the server must be allowed to see them.

    Parameters
    ----------
    rows : sequence of M (d,) floating-point arrays
        The clients' vectors, M >= 1, finite.
    noise : Noise
        The family whose CDF is F; any but `Uniform`, whose flat tails leave the root undefined.
    scale : float or (d,) array
        The scale b, >= 0; where it is 0 the result is the median.

    Returns
    -------
    (d,) float32
        The roots, to 1e-6 of the larger of b and the root itself. If the two middle clients of an
        even number are more than 12·b apart, the sum is 0 in float64 for all values far from both,
        and the result is one of these, near the median.

    Raises
    ------
    ValueError
        If the family is uniform, or `rows` are not what `coordinate_median` takes.

    Examples
    --------
    >>> from fedmedian import Gaussian
    >>> rows = [np.array([value]) for value in (1.0, 2.0, 10.0)]
    >>> [round(float(smoothed_median(rows, Gaussian(), b)[0]), 2) for b in (0.1, 5.0, 100.0)]
    [2.0, 4.02, 4.33]
    """
    if isinstance(noise, Uniform):
        raise ValueError(f"noise must have a smooth CDF for a smoothed median, got {noise!r}")
    roots = coordinate_median(rows).astype(np.float32, copy=False)
    dim = roots.size
    scales = np.broadcast_to(np.asarray(scale), (dim,))
    block = max(_BLOCK_VALUES // len(rows), 1)
    for start in range(0, dim, block):
        part = slice(start, start + block)
        moving = scales[part] > 0
        scale_of = scales[part][moving].astype(np.float64)
        values = np.stack([row[part][moving] for row in rows]).astype(np.float64)
        roots[part][moving] = _root(values, noise, scale_of, roots[part][moving])
    return roots


def _root(values: Float64, noise: Noise, scale: Float64, start: Float32) -> Float64:
    """Find the roots by Newton's method in a shrinking bracket, then by bisection."""
    low, high = _bracket(values, noise, scale)
    root = np.clip(start.astype(np.float64), low, high)
    is_moving = np.ones(root.shape, dtype=np.bool_)
    for step in range(_NEWTON_STEPS + _BISECTIONS):
        with np.errstate(over="ignore"):
            centered = (root - values) / scale
        excess = noise.cdf(centered).sum(axis=0) - len(values) / 2
        high = np.where(excess >= 0, root, high)
        low = np.where(excess <= 0, root, low)
        middle = low + (high - low) / 2
        following = middle
        if step < _NEWTON_STEPS:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                slope = noise.density(centered).sum(axis=0) / scale
                newton = root - excess / slope
            following = np.where((newton >= low) & (newton <= high), newton, middle)
        following = np.where(is_moving, following, root)
        is_moving &= np.abs(following - root) > _TOLERANCE * np.maximum(scale, np.abs(root))
        root = following
        if not is_moving.any():
            break
    return root


def _bracket(values: Float64, noise: Noise, scale: Float64) -> tuple[Float64, Float64]:
    """Return bounds on the root that outliers cannot move.

    More than half of M values, k of them, are at most u_(k), the k-th smallest. At u_(k) + r·b each
    of these adds at least F(r) to the sum. Where F(r) >= M/(2k), the sum is at least M/2 and the
    root is below. The other bound follows by symmetry.
    """
    clients = len(values)
    k = clients // 2 + 1
    reaches = 2.0 ** np.arange(64)
    reach = next((r for r in reaches if noise.cdf(r) >= clients / (2 * k)), np.inf)
    ordered = np.partition(values, (clients - k, k - 1), axis=0)
    low = np.maximum(ordered[clients - k] - reach * scale, values.min(axis=0))
    high = np.minimum(ordered[k - 1] + reach * scale, values.max(axis=0))
    return low, high
