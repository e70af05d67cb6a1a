"""Aggregators of votes, which decode signs with what the server knows about the noise."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb, pi, sqrt
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fedmedian.aggregators.base import Aggregator, Answers, Weights
from fedmedian.aggregators.diagnostics import describe_votes
from fedmedian.checks import require_choice, require_type
from fedmedian.kernels.signs import PackedSigns
from fedmedian.kernels.votes import count_against_majority, weighted_votes
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import Noise, mean_per_vote
from fedmedian.rules.scales import Adaptive
from fedmedian.rules.trust import agreed_size, in_proportion, mean_in_proportion, up_to_trusted
from fedmedian.steps.encodings import Signs
from fedmedian.wire.scalars import Float32, Float64

NOISE_ALLOWANCE = 0.25
"""The largest energy of a step's noise, as a share of the clients' mean update energy."""

Ties = Literal["random", "unchanged"]
"""The meaning of a tied vote: a fair coin, or no step for that coordinate."""

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Ballot:
    """A round's votes, and what the server knows about them.

    Parameters
    ----------
    packed : sequence of M (⌈d/8⌉,) uint8
        The clients' packed signs, M >= 1.
    weights : (M,) float64
        The clients' weights w_i, which add up to 1.
    blocks : Blocks
        The votes' L blocks, of d coordinates.
    noise : Noise or None
        The clients' noise family.
    scales : (M, L) float64 or None
        The clients' noise scales b_i; None without noise.
    magnitudes : (M, L) float64, optional
        The root mean squares σ_i of their updates, where clients report them.
    counts : (d,) integers, optional
        How many clients voted +1, where the server knows nothing but the sum, of equal weights.
    """

    packed: Sequence[PackedSigns]
    weights: Weights
    blocks: Blocks
    noise: Noise | None
    scales: Weights | None
    magnitudes: Weights | None = None
    counts: NDArray[np.integer[Any]] | None = None

    @classmethod
    def of(cls, answers: Answers) -> Self:
        """Return the votes in a cohort's answers, with scales capped by `in_proportion`."""
        noise, scales, magnitudes = answers.noise, None, None
        if noise is not None and answers.scales is not None:
            scales = in_proportion(answers.scales, answers.weights)
            if noise.rule.magnitude == "rms":
                magnitudes = answers.magnitudes
        votes = answers.bodies, answers.weights, answers.blocks
        return cls(*votes, noise, scales, magnitudes, answers.counts)

    def vote_weights(self) -> Weights:
        """Return the weights w_i of the clients' votes on each block, (M, L)."""
        return np.repeat(self.weights[:, None], len(self.blocks.sizes), axis=1)

    def mean_weights(self) -> Weights:
        """Return the weights w_i·b_i/(2φ0) that make votes an estimate of the mean, (M, L).

        Clients with larger noise count for more. Without noise these are the `vote_weights`.
        """
        return self._mean_weights

    @cached_property
    def _mean_weights(self) -> Weights:
        weights = self.vote_weights()
        if self.noise is None or self.scales is None:
            return weights
        return weights * mean_per_vote(self.noise) * self.scales

    def sum(self, weights: Weights, out: Float32 | None = None) -> Float32:
        """Return the sum of the votes times weights for each block, (M, L), as (d,) float32."""
        if self.counts is None:
            return weighted_votes(self.packed, self.blocks.sizes, weights, out)
        # All clients have the weight of the first.
        total = self.counts.astype(np.float32)
        total *= 2
        total -= len(weights)
        return self.scale(total, weights[0])

    def scale(self, direction: Float32, factors: Weights) -> Float32:
        """Multiply a direction, (d,), by a factor for each block, (L,), in place; return it."""
        for part, factor in zip(self.blocks.split(direction), factors, strict=True):
            if factor != 1:
                part *= np.float32(factor)
        return direction

    def step_lengths(self, energy: Weights) -> Weights:
        """Return the factor that turns each block's estimate of the mean into a step, (L,).

        Where noise tops updates up, a client whose σ_i is above its scale b_i counts as if clipped
        to it, with min(1, b_i/σ_i) of its weight w_i. The step is lengthened to undo this, except
        for what t clients could fake, with t = `num_tolerated`: the factor is 1 over

            Σ_i w_i·min(1, b_i/σ'_i), σ'_i = min(σ_i, the (t + 1)-th largest of them).

        With few clients a full step is mostly noise and diverges. Its noise has energy
        E = `energy` − Σ_i w_i²σ_i² per coordinate: what remains after the updates' known energy. It
        is bounded by `NOISE_ALLOWANCE` times the mean energy of the clients' updates, so the factor
        is at most

            √(NOISE_ALLOWANCE · Σ_i w_i·σ_i² / E),

        where each σ_i counts as at most b_i. For similar clients the factor is 0.66, 0.81, 0.93
        with one, two, three of them, and 1 with four or more.

        Parameters
        ----------
        energy : (L,) float64
            The estimate's mean square where the clients' votes agree by chance only.

        Returns
        -------
        (L,) float64
            The factors, not negative; all 1 unless noise tops updates up.
        """
        tops_up = self.noise is not None and self.noise.rule.tops_up
        if self.magnitudes is None or self.scales is None or not tops_up:
            return np.ones(len(self.blocks.sizes))
        squares = np.square(np.minimum(self.magnitudes, self.scales))
        noise = energy - np.square(self.weights) @ squares
        allowed = NOISE_ALLOWANCE * (self.weights @ squares)
        longest = np.full(len(self.blocks.sizes), np.inf)
        np.divide(allowed, noise, out=longest, where=noise > 0)
        sizes = up_to_trusted(self.magnitudes)
        counted = np.ones_like(sizes)
        np.divide(self.scales, sizes, out=counted, where=sizes > self.scales)
        missing = self.weights @ (1 - counted)
        whole = np.ones_like(missing)
        np.divide(1, 1 - missing, out=whole, where=missing < 1)  # 1 where all scales are 0
        return np.asarray(np.minimum(whole, np.sqrt(longest)))


class VoteAggregator(Aggregator):
    """An aggregator of signs: sums of votes, weighted and then decoded.

    A custom one derives from this class and implements `weights` and `decode`.
    """

    encoding = Signs()
    uses_weights = True

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the decoded sums; see `Aggregator.direction`."""
        ballot = Ballot.of(answers)
        weights = self.weights(ballot)
        votes = ballot.sum(weights, answers.new_direction())
        if answers.report is not None:
            known = ballot.blocks, ballot.noise, ballot.scales, ballot.magnitudes
            opposite = _contradictions(ballot, weights, votes, answers.stride)
            answers.note(describe_votes(votes, weights, *known, answers.stride, opposite))
        return self.decode(votes, ballot, rng)

    @abstractmethod
    def weights(self, ballot: Ballot) -> Weights:
        """Return the weight of each client's votes on each block, (M, L) float64, >= 0."""

    @abstractmethod
    def decode(self, votes: Float32, ballot: Ballot, rng: np.random.Generator) -> Float32:
        """Return the direction.

        Parameters
        ----------
        votes : (d,) float32
            The weighted sums of the votes. They may be overwritten.
        ballot : Ballot
            The votes.
        rng : numpy.random.Generator
            Breaks ties.

        Returns
        -------
        (d,) float32
            The direction, pointing uphill.
        """

    def center(self, values: Weights, weights: Weights) -> Weights:
        """Return the weighted mean over clients, outliers clipped; see `mean_in_proportion`."""
        return mean_in_proportion(values, weights)


@dataclass(frozen=True)
class Counts(VoteAggregator):
    """An estimate of the mean update from the weighted sum of votes.

    ĝ = Σ_i w_i·b_i/(2φ0)·s_i, see `mean_from_votes`. Clients with larger noise count for more,
    which makes it unbiased. Steps are shorter than ĝ with very few clients, and longer where some
    clients count as if clipped; see `Ballot.step_lengths`.
    """

    takes_sums = True
    needs_noise = True  # without it a vote says nothing about size

    def is_separable(self, answers: Answers) -> bool:
        """Return True, except for a subclass; see `Aggregator.is_separable`."""
        return type(self) is Counts

    def weights(self, ballot: Ballot) -> Weights:
        """Return w_i·b_i/(2φ0)."""
        return ballot.mean_weights()

    def decode(self, votes: Float32, ballot: Ballot, rng: np.random.Generator) -> Float32:
        """Return the sums, each block times its step length."""
        lengths = ballot.step_lengths(np.square(ballot.mean_weights()).sum(axis=0))
        return ballot.scale(votes, lengths)

    def cost_of_few(self, noise: Noise | None) -> tuple[int, str]:
        """Return 3 where noise follows the updates: it is then long beside so few of them.

        Where it tops updates up, steps are shorter; see `Ballot.step_lengths`.
        """
        if noise is not None and noise.rule.tops_up:
            return 3, (
                "the votes of so few are noisy, so steps are shorter; with four or more clients "
                "they have their full length"
            )
        if noise is not None and isinstance(noise.rule, Adaptive):
            return 3, (
                "the votes of so few are mostly noise, and its scale follows the steps that it "
                "makes, so the model may drift away; use the scale TopUp() and a rotation, the "
                "defaults, or a smaller factor of Adaptive"
            )
        return 0, ""


@dataclass(frozen=True)
class Majority(VoteAggregator):
    """The sign of the majority: Algorithms 1 and 3 of Chen et al. (arXiv 1906.01736).

    An uncalibrated majority moves each coordinate by exactly the learning rate. It must be given,
    unless the noise scale is `Theory`, which knows it.

    Parameters
    ----------
    ties : {"random", "unchanged"} (default: "random")
        The meaning of a tie: a fair coin, or no step for that coordinate.
    calibrated : bool (default: False)
        Whether a majority counts as b/(2κ_M) instead of 1, with b the median client's noise scale.
        This estimates the mean update from what a one-bit downlink can carry, so learning rates
        mean the same as with `Counts`. It needs noise.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is not allowed.
    """

    ties: Ties = "random"
    calibrated: bool = False

    takes_sums = True

    def __post_init__(self) -> None:
        require_choice("ties", self.ties, get_args(Ties))
        require_type("calibrated", self.calibrated, bool, "a bool")

    @property
    def needs_noise(self) -> bool:
        """Whether it is calibrated."""
        return self.calibrated

    def usual_rate(self, noise: Noise | None) -> float | None:
        """Return 1 if calibrated, else the rate of the scale rule's theorem, if any."""
        if self.calibrated:
            return 1.0
        return None if noise is None else noise.rule.learning_rate(self.encoding.name)

    def is_separable(self, answers: Answers) -> bool:
        """Return whether ties stay, except for a subclass; see `Aggregator.is_separable`."""
        return type(self) is Majority and self.ties == "unchanged"

    def weights(self, ballot: Ballot) -> Weights:
        """Return w_i."""
        return ballot.vote_weights()

    def decode(self, votes: Float32, ballot: Ballot, rng: np.random.Generator) -> Float32:
        """Return the sums' signs, scaled to a mean update if calibrated."""
        for start in range(0, votes.size, _CHUNK):
            chunk = votes[start : start + _CHUNK]
            # Unequal float32 weights that should cancel may leave a rounding error.
            tied = np.flatnonzero(np.abs(chunk) <= 4 * np.finfo(np.float32).eps)
            np.copysign(np.float32(1), chunk, out=chunk)  # three times as fast as np.sign
            chunk[tied] = rng.integers(0, 2, tied.size) * 2 - 1 if self.ties == "random" else 0
        if self.calibrated:
            assert ballot.noise is not None  # checked by the strategy's constructor
            assert ballot.scales is not None
            scales = agreed_size(ballot.scales)
            worth = scales / majority_gain(ballot.noise, ballot.weights)
            votes = ballot.scale(votes, worth * ballot.step_lengths(np.square(worth)))
        return votes


def mean_from_votes(counts: ArrayLike, num_votes: int, noise: Noise, scale: ArrayLike) -> Float32:
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
        The family of the noise that the clients added; its own scale is ignored.
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
    # In this order, a tie is exactly 0.
    excess = np.asarray(counts, dtype=np.float32) * np.float32(2) - np.float32(num_votes)
    mean_sign = excess / np.float32(num_votes)
    return mean_sign * (np.asarray(scale, dtype=np.float32) * np.float32(mean_per_vote(noise)))


def majority_gain(noise: Noise, weights: Float64) -> float:
    """Return 2·κ_M: the expected majority per unit of mean update over noise scale.

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


def _contradictions(ballot: Ballot, weights: Weights, votes: Float32, stride: int) -> int | None:
    """Return the number of coordinates where majority and decoded mean have opposite signs.

    The sums of the votes are the decoded mean if their weights are the mean's. None if there is no
    mean, or no vote is known by itself. Of long votes only every (stride/4)-th byte is counted.
    """
    if ballot.noise is None or ballot.counts is not None:
        return None
    packed, sizes, mean_weights = ballot.packed, ballot.blocks.sizes, ballot.mean_weights()
    if stride >= 8:
        ends = np.cumsum(sizes).tolist()
        spans = [
            np.arange(-(-(end - size) // 8), end // 8, stride // 4)
            for end, size in zip(ends, sizes, strict=True)
        ]
        sample = np.concatenate(spans)
        packed, sizes = [one[sample] for one in packed], tuple(8 * span.size for span in spans)
        votes = votes[np.add.outer(8 * sample, np.arange(8)).reshape(-1)]
    is_mean = np.array_equal(weights, mean_weights)
    mean = votes if is_mean else weighted_votes(packed, sizes, mean_weights)
    opposite = count_against_majority(packed, mean)
    return round(opposite * ballot.blocks.dim / max(mean.size, 1))
