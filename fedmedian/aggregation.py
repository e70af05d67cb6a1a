"""From the clients' payloads to a direction: pure functions, one per kind of payload.

A direction points uphill; the server steps against it. Payloads are read where they are, block by
block: the direction is the only thing as long as the model that aggregation allocates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmedian.decoding import majority_gain, votes_to_mean
from fedmedian.diagnostics import (
    MeanGap,
    Report,
    count_opposite_signs,
    describe_median,
    describe_votes,
)
from fedmedian.kernels.medians import coordinate_median
from fedmedian.kernels.signs import PackedSigns
from fedmedian.kernels.votes import majority_vote, weighted_votes
from fedmedian.layout import Layout
from fedmedian.noise import Noise
from fedmedian.scales import quantile_of_positive
from fedmedian.smoothing import smoothed_median
from fedmedian.wire import Payload

Float32 = NDArray[np.float32]

Decode = Literal["counts", "majority"]
"""How votes become a direction: an estimate of the mean update, or its sign."""

Ties = Literal["random", "unchanged"]
"""What a tied vote means: a fair coin, or no step for that coordinate."""

SCALE_CAP = 4.0
"""A client that sets its own noise scale weighs at most this many times the median client."""

# A multiple of the eight coordinates that a byte of votes stands for.
_VOTES_BLOCK = 1 << 19
_BLOCK = 1 << 16
# Noise at the server copies a block of all clients' vectors.
_NOISY_VALUES = 1 << 21


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
            mean = votes if decode == "counts" else None
            report["majority-contradicts-mean"] = _contradictions(packed, layout, decoding, mean)
    if decode == "counts":
        return Aggregate(votes, report)
    _replace_by_signs(votes, ties, rng)
    if calibrated:
        assert noise is not None  # the strategy's constructor refuses calibration without noise
        worth = quantile_of_positive(scales, 0.5) / majority_gain(noise, weights)
        for part, factor in zip(layout.split(votes), worth, strict=True):
            part *= np.float32(factor)
    return Aggregate(votes, report)


def aggregate_vectors(
    payloads: Sequence[Payload],
    noise: Noise | None,
    layout: Layout,
    *,
    smoothing: Float32 | None = None,
    added: Float32 | None = None,
    rng: np.random.Generator | None = None,
    diagnostics: bool = True,
) -> Aggregate:
    """Take the coordinate-wise median of the clients' vectors, or its smoothed form.

    Algorithms 2 and 4 of arXiv 1906.01736.

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "vector", M >= 1. Their vectors are not changed.
    noise : Noise or None
        The family of the noise that the vectors contain, or that the server adds to them, or
        that the median is smoothed with.
    layout : Layout
        The model's layout.
    smoothing : (L,) float32, optional
        The scale of each array's `smoothed_median`; without it the median is taken.
    added : (L,) float32, optional
        The scale b of the noise that each array of each client's vector is given here, if any.
    rng : numpy.random.Generator, optional
        Draws the noise to add: for one block of coordinates after the other, client by client.
    diagnostics : bool (default: True)
        Whether to measure what follows.

    Returns
    -------
    Aggregate
        The median, with the diagnostics of `fedmedian.diagnostics.describe_median`.
    """
    direction = np.empty(layout.dim, dtype=np.float32)
    gap = MeanGap()
    length = _BLOCK if added is None else max(_NOISY_VALUES // len(payloads), 1)
    for start in range(0, layout.dim, length):
        block = slice(start, min(start + length, layout.dim))
        rows = [payload.body[block] for payload in payloads]
        if added is not None:
            assert noise is not None  # who asks for noise gives its family and its generator
            assert rng is not None
            scale = _repeat_within(block, added, layout)
            rows = [_with_noise(row, noise, scale, rng) for row in rows]
        if smoothing is None:
            direction[block] = coordinate_median(rows)
        else:
            assert noise is not None  # the strategy's constructor refuses smoothing without noise
            scale = _repeat_within(block, smoothing, layout)
            direction[block] = smoothed_median(rows, noise, scale)
        if diagnostics:
            gap.add(direction[block], rows)
    report: Report = {}
    if diagnostics:
        own = [payload.scales for payload in payloads] if added is None else [added]
        scales = np.stack(own).mean(axis=0, dtype=np.float64)
        report = describe_median(direction, gap, len(payloads), scales, layout, noise)
    return Aggregate(direction, report)


def _capped_scales(payloads: Sequence[Payload]) -> NDArray[np.float64]:
    """Return the clients' noise scales, (M, L), none above `SCALE_CAP` times the median."""
    scales = np.stack([payload.scales for payload in payloads]).astype(np.float64)
    return np.minimum(scales, SCALE_CAP * quantile_of_positive(scales, 0.5))


def _with_noise(row: Float32, noise: Noise, scale: Float32, rng: np.random.Generator) -> Float32:
    noisy = noise.sample(rng, row.size)
    noisy *= scale
    noisy += row
    return noisy


def _replace_by_signs(votes: Float32, ties: Ties, rng: np.random.Generator) -> None:
    for start in range(0, votes.size, _BLOCK):
        block = votes[start : start + _BLOCK]
        # Sums of unequal float32 weights that cancel on paper may leave a rounding error behind.
        tied = np.flatnonzero(np.abs(block) <= 4 * np.finfo(np.float32).eps)
        np.copysign(np.float32(1), block, out=block)  # three times as fast as np.sign
        block[tied] = rng.integers(0, 2, tied.size) * 2 - 1 if ties == "random" else 0


def _contradictions(
    packed: Sequence[PackedSigns],
    layout: Layout,
    decoding: NDArray[np.float64],
    mean: Float32 | None,
) -> float:
    """Return the fraction of coordinates where plain majority and decoded mean are opposite.

    The mean is decoded here, unless it is at hand.
    """
    opposite = 0
    for start in range(0, layout.dim, _VOTES_BLOCK):
        block = slice(start, min(start + _VOTES_BLOCK, layout.dim))
        part = [votes[start // 8 : -(-block.stop // 8)] for votes in packed]
        sizes = _sizes_within(block, layout)
        held = np.flatnonzero(sizes)
        opposite += count_opposite_signs(
            majority_vote(part, block.stop - block.start),
            weighted_votes(part, sizes[held].tolist(), decoding[:, held])
            if mean is None
            else mean[block],
        )
    return opposite / max(layout.dim, 1)


def _repeat_within(block: slice, values: Float32, layout: Layout) -> Float32:
    """Repeat one value per voted array, (L,), over that array's coordinates in a block."""
    return np.repeat(values, _sizes_within(block, layout))


def _sizes_within(block: slice, layout: Layout) -> NDArray[np.int64]:
    """Return how many coordinates of each voted array a block holds, (L,)."""
    ends = np.cumsum((0, *layout.sizes), dtype=np.int64)
    inside: NDArray[np.int64] = np.clip(ends, block.start, block.stop)
    return inside[1:] - inside[:-1]
