"""From the clients' payloads to a direction: pure functions, one per kind of payload.

A direction points uphill; the server steps against it. Payloads are read where they are, part by
part: the direction is the only thing as long as the model that aggregation allocates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregators.decoding import Ballot, DecodeRule
from fedmedian.aggregators.diagnostics import (
    MeanGap,
    Report,
    count_opposite_signs,
    describe_median,
    describe_votes,
    excess_of_signs,
    sample_stride,
)
from fedmedian.aggregators.smoothing import smoothed_median
from fedmedian.kernels.medians import coordinate_median
from fedmedian.kernels.votes import majority_vote, weighted_votes
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import Noise
from fedmedian.rules.trust import PROPORTION, in_proportion
from fedmedian.steps.base import energy
from fedmedian.steps.noise import top_up
from fedmedian.steps.payload import Payload
from fedmedian.wire.scalars import Float32

# A multiple of the eight coordinates that a byte of votes stands for.
_VOTES_PART = 1 << 19
_PART = 1 << 16
# Noise at the server copies a part of all clients' vectors.
_NOISY_VALUES = 1 << 21


@dataclass(frozen=True)
class Aggregate:
    """The sum of a round's payloads.

    Parameters
    ----------
    direction : (d,) float32
        The direction to step against.
    diagnostics : dict of str to float or list of float
        Measurements that are worth reporting, by name.
    """

    direction: Float32
    diagnostics: Report


def aggregate_signs(
    payloads: Sequence[Payload],
    weights: NDArray[np.float64],
    blocks: Blocks,
    noise: Noise | None,
    decode: DecodeRule,
    rng: np.random.Generator,
    *,
    scales: Float32,
    magnitudes: Float32,
    diagnostics: bool = True,
) -> Aggregate:
    """Turn the clients' signs into a direction.

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "signs", M >= 1.
    weights : (M,) float64
        The clients' weights w_i, which add up to 1.
    blocks : Blocks
        The votes' blocks.
    noise : Noise or None
        The clients' noise family, without which not every rule can decode.
    decode : DecodeRule
        The rule.
    rng : numpy.random.Generator
        Tosses the rule's coins.
    scales : (M, L) float32
        The clients' noise scales.
    magnitudes : (M, L) float32
        The reported magnitudes of their updates.
    diagnostics : bool (default: True)
        Whether to measure what follows.

    Returns
    -------
    Aggregate
        The direction, with the diagnostics of `fedmedian.aggregators.diagnostics.describe_votes`.
    """
    packed = [payload.body for payload in payloads]
    used = sizes = topped_up = None
    if noise is not None:
        used = in_proportion(scales, weights)
        if noise.rule.magnitude == "rms":
            sizes = magnitudes.astype(np.float64)
        if noise.rule.tops_up:
            topped_up = sizes
    ballot = Ballot(packed, weights, blocks, noise, used, topped_up)
    vote_weights = decode.weights(ballot)
    votes = ballot.sum(vote_weights)
    report: Report = {}
    if diagnostics:
        report = describe_votes(votes, vote_weights, blocks, noise, used, sizes)
        if noise is not None:
            mean_weights = ballot.mean_weights()
            mean = votes if np.array_equal(vote_weights, mean_weights) else None
            report["majority-contradicts-mean"] = _contradictions(ballot, mean_weights, mean)
    return Aggregate(decode.direction(votes, ballot, rng), report)


def aggregate_vectors(
    payloads: Sequence[Payload],
    noise: Noise | None,
    blocks: Blocks,
    *,
    scales: Float32,
    magnitudes: Float32,
    smoothing: Float32 | None = None,
    added: Float32 | None = None,
    rng: np.random.Generator | None = None,
    diagnostics: bool = True,
) -> Aggregate:
    """Take the coordinate-wise median of the clients' vectors, or its smoothed form.

    Algorithms 2 and 4 of arXiv 1906.01736. The median of two is their mean, so that neither is
    outvoted. Each block of the longer of two vectors is clipped to `PROPORTION`
    times the norm of the other's.

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "vector", M >= 1. Their vectors are not changed.
    noise : Noise or None
        The family of the noise that the vectors contain, or that the server adds to them, or
        that the median is smoothed with.
    blocks : Blocks
        The vectors' blocks.
    scales, magnitudes : (M, L) float32
        Those of `aggregate_signs`.
    smoothing : (L,) float32, optional
        The scale of each block's `smoothed_median`; without it the median is taken.
    added : (L,) or (M, L) float32, optional
        The scale b of the noise that each block of each client's vector is given here, if any;
        one for all clients, or one for each.
    rng : numpy.random.Generator, optional
        Draws the noise to add: for one part of the coordinates after the other, client by client.
    diagnostics : bool (default: True)
        Whether to measure what follows.

    Returns
    -------
    Aggregate
        The median, with the diagnostics of `fedmedian.aggregators.diagnostics.describe_median`.
    """
    if added is not None:
        added = np.broadcast_to(added, (len(payloads), len(blocks)))
    factors = _factors_of_two(payloads, blocks) if len(payloads) == 2 else None
    direction = np.empty(blocks.dim, dtype=np.float32)
    gap, excess, stride = MeanGap(), [], sample_stride(blocks.dim)
    length = _PART if added is None else max(_NOISY_VALUES // len(payloads), 1)
    for start in range(0, blocks.dim, length):
        part = slice(start, min(start + length, blocks.dim))
        rows = [payload.body[part] for payload in payloads]
        if factors is not None:
            rows = [
                row * blocks.repeat_within(part, factor)
                for row, factor in zip(rows, factors, strict=True)
            ]
        if added is not None:
            assert noise is not None  # who asks for noise gives its family and its generator
            assert rng is not None
            rows = [
                _with_noise(row, noise, blocks.repeat_within(part, scale), rng)
                for row, scale in zip(rows, added, strict=True)
            ]
        if smoothing is None:
            direction[part] = coordinate_median(rows)
        else:
            assert noise is not None  # the strategy's constructor refuses smoothing without noise
            level = blocks.repeat_within(part, smoothing)
            direction[part] = smoothed_median(rows, noise, level)
        if diagnostics:
            gap.add(direction[part], rows)
            excess.append(excess_of_signs([row[::stride] for row in rows]))
    report: Report = {}
    if diagnostics:
        own = _added(scales, magnitudes, noise) if added is None else added
        squares, levels = np.square(own, dtype=np.float64), None
        if noise is not None and noise.rule.tops_up:
            totals = squares + np.square(magnitudes, dtype=np.float64)
            levels = np.sqrt(np.median(totals, axis=0))
        spread = np.sqrt(squares.mean(axis=0))
        report = describe_median(
            direction, gap, excess, len(payloads), spread, blocks, noise, levels
        )
    return Aggregate(direction, report)


def _factors_of_two(payloads: Sequence[Payload], blocks: Blocks) -> Float32 | None:
    """Return the factors that clip each block of two vectors, (2, L); None if all are 1."""
    norms = np.sqrt([[energy(part) for part in blocks.split(one.body)] for one in payloads])
    most = PROPORTION * norms.min(axis=0)
    if (norms <= most).all():
        return None
    factors = np.ones_like(norms)
    np.divide(most, norms, out=factors, where=norms > most)
    return factors.astype(np.float32)


def _added(scales: Float32, magnitudes: Float32, noise: Noise | None) -> Float32:
    """Return the scales of the noise in the clients' vectors, (M, L)."""
    return top_up(scales, magnitudes) if noise is not None and noise.rule.tops_up else scales


def _with_noise(row: Float32, noise: Noise, scale: Float32, rng: np.random.Generator) -> Float32:
    noisy = noise.sample(rng, row.size)
    noisy *= scale
    noisy += row
    return noisy


def _contradictions(
    ballot: Ballot, mean_weights: NDArray[np.float64], mean: Float32 | None
) -> float:
    """Return the fraction of coordinates where plain majority and decoded mean are opposite.

    The mean is decoded here, unless it is at hand.
    """
    blocks, opposite = ballot.blocks, 0
    for start in range(0, blocks.dim, _VOTES_PART):
        part = slice(start, min(start + _VOTES_PART, blocks.dim))
        packed = [votes[start // 8 : -(-part.stop // 8)] for votes in ballot.packed]
        sizes = blocks.sizes_within(part)
        held = np.flatnonzero(sizes)
        opposite += count_opposite_signs(
            majority_vote(packed, part.stop - part.start),
            weighted_votes(packed, sizes[held].tolist(), mean_weights[:, held])
            if mean is None
            else mean[part],
        )
    return opposite / max(blocks.dim, 1)
