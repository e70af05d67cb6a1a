"""From the clients' payloads to a direction: pure functions, one per kind of payload.

A direction points uphill; the server steps against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedmedian.decoding import votes_to_mean
from fedmedian.layout import Layout
from fedmedian.medians import coordinate_median
from fedmedian.noise import Noise
from fedmedian.scales import quantile_of_positive
from fedmedian.signs import weighted_votes
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
    diagnostics : dict of str to float
        What is worth reporting about it, by name.
    """

    direction: Float32
    diagnostics: dict[str, float]


def aggregate_signs(
    payloads: Sequence[Payload],
    weights: NDArray[np.float64],
    layout: Layout,
    noise: Noise | None,
    decode: Decode,
    ties: Ties,
    rng: np.random.Generator,
) -> Aggregate:
    """Turn the clients' signs into a direction.

    ``counts``: ĝ = Σ_i w_i·b_i/(2φ0)·s_i, an estimate of the weighted mean update; clients whose
    noise is larger count for more, which is what makes it unbiased. ``majority``: the sign of
    Σ_i w_i·s_i (Algorithms 1 and 3 of arXiv 1906.01736).

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "signs", M >= 1.
    weights : (M,) float64
        The clients' weights w_i, which add up to 1.
    layout : Layout
        The model's layout.
    noise : Noise or None
        The clients' noise family; ``counts`` needs one.
    decode : {"counts", "majority"}
        See above.
    ties : {"random", "unchanged"}
        What a tied majority means.
    rng : numpy.random.Generator
        Tosses the coins.

    Returns
    -------
    Aggregate
        The direction, with ``vote-agreement`` (the mean over coordinates of |Σ w_i·s_i|, where
        ``counts`` weighs clients with their noise as well) and, if there is noise and the votes
        do not all agree, ``signal-to-noise`` (the decoded mean's energy over its noise's,
        estimated; too low by about the mean of E[s_i]² where clients disagree).
    """
    packed = [payload.body for payload in payloads]
    vote_weights = np.repeat(weights[:, None], len(layout.voted), axis=1)
    if decode == "counts":
        assert noise is not None  # the strategy's constructor refuses counts without noise
        vote_weights *= votes_to_mean(noise) * _capped_scales(payloads)
    votes = weighted_votes(packed, layout.sizes, vote_weights)
    diagnostics = _vote_diagnostics(votes, vote_weights, layout, noise)
    if decode == "counts":
        return Aggregate(votes, diagnostics)
    # Sums of float32 weights that cancel on paper may leave a rounding error behind.
    tied = np.abs(votes) <= len(packed) * np.finfo(np.float32).eps
    direction = np.sign(votes)
    direction[tied] = 0
    if ties == "random":
        direction[tied] = rng.integers(0, 2, int(tied.sum())) * 2 - 1
    return Aggregate(direction, diagnostics)


def aggregate_vectors(
    payloads: Sequence[Payload], noise: Noise | None, layout: Layout
) -> Aggregate:
    """Take the coordinate-wise median of the clients' vectors.

    Algorithms 2 and 4 of arXiv 1906.01736.

    Parameters
    ----------
    payloads : sequence of M Payload
        The accepted answers, of kind "vector", M >= 1.
    noise : Noise or None
        The family of the noise that the vectors contain.
    layout : Layout
        The model's layout.

    Returns
    -------
    Aggregate
        The median, with ``median-mean-gap`` (the L2 norm of the median minus the mean of the
        vectors as received) and, if there is noise, ``signal-to-noise`` (the median's energy
        over its noise's, from the asymptotic variance b²/(4·φ0²·M)).
    """
    rows = [payload.body for payload in payloads]
    direction = coordinate_median(rows)
    gap = np.linalg.norm(direction - np.mean(rows, axis=0, dtype=np.float32))
    diagnostics = {"median-mean-gap": float(gap)}
    if noise is not None:
        scales = np.mean([payload.scales for payload in payloads], axis=0, dtype=np.float64)
        variance = np.square(votes_to_mean(noise) * scales) / len(rows)
        expected = float(np.dot(variance, layout.sizes))
        if expected > 0:
            energy = float(np.dot(direction, direction))
            diagnostics["signal-to-noise"] = max(energy / expected - 1.0, 0.0)
    return Aggregate(direction, diagnostics)


def _capped_scales(payloads: Sequence[Payload]) -> NDArray[np.float64]:
    """Return the clients' noise scales, (M, L), none above `SCALE_CAP` times the median."""
    scales = np.stack([payload.scales for payload in payloads]).astype(np.float64)
    return np.minimum(scales, SCALE_CAP * quantile_of_positive(scales, 0.5))


def _vote_diagnostics(
    votes: Float32, weights: NDArray[np.float64], layout: Layout, noise: Noise | None
) -> dict[str, float]:
    """Estimate, per array and then over all, how much of the votes is signal."""
    agreement = signal = spread = 0.0
    reach = weights.sum(axis=0)
    for part, total, column in zip(layout.split(votes), reach, weights.T, strict=True):
        if total == 0 or part.size == 0:
            continue
        mean_votes = part / np.float32(total)
        agreement += float(np.abs(mean_votes).sum())
        # E[v²] = μ² + (1 − μ²)·n for mean votes v of expectation μ, with n = Σw²/(Σw)².
        share = float(np.square(column).sum()) / total**2
        if share < 1:
            energy = float(np.mean(np.square(mean_votes)))
            expected = min(max((energy - share) / (1 - share), 0.0), 1.0)
            signal += part.size * total**2 * expected
            spread += part.size * total**2 * share * (1 - expected)
    diagnostics = {"vote-agreement": agreement / max(layout.dim, 1)}
    if noise is not None and spread > 0:
        diagnostics["signal-to-noise"] = signal / spread
    return diagnostics
