"""From the clients' payloads to a direction: pure functions, one per kind of payload.

A direction points uphill; the server steps against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmedian.decoding import majority_gain, votes_to_mean
from fedmedian.diagnostics import Report, describe_median, describe_votes, share_of_opposite_signs
from fedmedian.layout import Layout
from fedmedian.medians import coordinate_median
from fedmedian.noise import Noise
from fedmedian.scales import quantile_of_positive
from fedmedian.smoothing import smoothed_median
from fedmedian.votes import majority_vote, weighted_votes
from fedmedian.wire import Payload

Float32 = NDArray[np.float32]

Decode = Literal["counts", "majority"]
"""How votes become a direction: an estimate of the mean update, or its sign."""

Ties = Literal["random", "unchanged"]
"""What a tied vote means: a fair coin, or no step for that coordinate."""

SCALE_CAP = 4.0
"""A client that sets its own noise scale weighs at most this many times the median client."""


@dataclass(frozen=True)
class Aggregate:
    """What a round's payloads add up to.

    Parameters
    ----------
    direction : (d,) float32
        The direction to step against.
    diagnostics : dict of str to float or list of float
        What is worth reporting about it, by name.
    """

    direction: Float32
    diagnostics: Report


def aggregate_signs(
    payloads: Sequence[Payload],
    weights: NDArray[np.float64],
    layout: Layout,
    noise: Noise | None,
    decode: Decode,
    ties: Ties,
    rng: np.random.Generator,
    *,
    calibrated: bool = False,
    diagnostics: bool = True,
) -> Aggregate:
    """Turn the clients' signs into a direction.

    ``counts``: ĝ = Σ_i w_i·b_i/(2φ0)·s_i, an estimate of the weighted mean update; clients whose
    noise is larger count for more, which is what makes it unbiased. ``majority``: the sign of
    Σ_i w_i·s_i (Algorithms 1 and 3 of arXiv 1906.01736), or calibrated b·sign/(2κ_M), an
    estimate of the mean from what a one-bit downlink can carry.

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "signs", M >= 1.
    weights : (M,) float64
        The clients' weights w_i, which add up to 1.
    layout : Layout
        The model's layout.
    noise : Noise or None
        The clients' noise family; ``counts`` and calibration need one.
    decode : {"counts", "majority"}
        See above.
    ties : {"random", "unchanged"}
        What a tied majority means.
    rng : numpy.random.Generator
        Tosses the coins.
    calibrated : bool (default: False)
        Whether a majority is worth b/(2κ_M), b the median client's noise scale, instead of 1.
    diagnostics : bool (default: True)
        Whether to measure what follows.

    Returns
    -------
    Aggregate
        The direction, with the diagnostics of `fedmedian.diagnostics.describe_votes`.
    """
    packed = [payload.body for payload in payloads]
    vote_weights = np.repeat(weights[:, None], len(layout.voted), axis=1)
    decoding = vote_weights
    if noise is not None:
        scales = _capped_scales(payloads)
        decoding = vote_weights * votes_to_mean(noise) * scales
    if decode == "counts":
        vote_weights = decoding
    votes = weighted_votes(packed, layout.sizes, vote_weights)
    report: Report = {}
    if diagnostics:
        report = describe_votes(votes, vote_weights, layout, noise)
        if noise is not None:
            plain = majority_vote(packed, layout.dim)
            mean = votes
            if decode != "counts":
                mean = weighted_votes(packed, layout.sizes, decoding)
            report["majority-contradicts-mean"] = share_of_opposite_signs(plain, mean)
    if decode == "counts":
        return Aggregate(votes, report)
    # Sums of unequal float32 weights that cancel on paper may leave a rounding error behind.
    tied = np.abs(votes) <= 4 * np.finfo(np.float32).eps
    direction = np.sign(votes)
    direction[tied] = 0
    if ties == "random":
        direction[tied] = rng.integers(0, 2, int(tied.sum())) * 2 - 1
    if calibrated:
        assert noise is not None  # the strategy's constructor refuses calibration without noise
        worth = quantile_of_positive(scales, 0.5) / majority_gain(noise, weights)
        direction *= layout.per_coordinate(worth)
    return Aggregate(direction, report)


def aggregate_vectors(
    payloads: Sequence[Payload],
    noise: Noise | None,
    layout: Layout,
    *,
    smoothing: Float32 | None = None,
    diagnostics: bool = True,
) -> Aggregate:
    """Take the coordinate-wise median of the clients' vectors, or its smoothed form.

    Algorithms 2 and 4 of arXiv 1906.01736.

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "vector", M >= 1.
    noise : Noise or None
        The family of the noise that the vectors contain or that the median is smoothed with.
    layout : Layout
        The model's layout.
    smoothing : (L,) float32, optional
        The scale of each array's `smoothed_median`; without it the median is taken.
    diagnostics : bool (default: True)
        Whether to measure what follows.

    Returns
    -------
    Aggregate
        The median, with the diagnostics of `fedmedian.diagnostics.describe_median`.
    """
    rows = [payload.body for payload in payloads]
    if smoothing is None:
        direction = coordinate_median(rows)
    else:
        assert noise is not None  # the strategy's constructor refuses smoothing without noise
        direction = smoothed_median(rows, noise, layout.per_coordinate(smoothing))
    report: Report = {}
    if diagnostics:
        scales = np.stack([payload.scales for payload in payloads]).mean(axis=0, dtype=np.float64)
        report = describe_median(direction, rows, scales, layout, noise)
    return Aggregate(direction, report)


def _capped_scales(payloads: Sequence[Payload]) -> NDArray[np.float64]:
    """Return the clients' noise scales, (M, L), none above `SCALE_CAP` times the median."""
    scales = np.stack([payload.scales for payload in payloads]).astype(np.float64)
    return np.minimum(scales, SCALE_CAP * quantile_of_positive(scales, 0.5))
