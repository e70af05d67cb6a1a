"""The base class of aggregators, and the answers that they combine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregators.diagnostics import (
    MeanGap,
    Report,
    Seen,
    describe_median,
    excess_of_signs,
    report_of,
    sample_stride,
)
from fedmedian.model.blocks import Blocks
from fedmedian.rules.noise import Noise
from fedmedian.rules.trust import PROPORTION, clipping_factors
from fedmedian.steps.base import energy
from fedmedian.steps.encodings import Encoding, Vector
from fedmedian.steps.noise import top_up
from fedmedian.wire.scalars import Float32, Float64

Weights = Float64

NoiseAt = Literal["client", "server"]
"""The side that adds the noise."""

_PART = 1 << 16
# Noise that the server adds needs copies of all clients' vectors.
_NOISY_VALUES = 1 << 21


@dataclass(frozen=True, eq=False)
class Answers:
    """A cohort's accepted answers to one question.

    Parameters
    ----------
    bodies : sequence of M arrays
        The clients' updates in the aggregator's encoding; M >= 1. Must not be changed.
    weights : (M,) float64
        The clients' weights, which add up to 1.
    blocks : Blocks
        The L blocks of the encoded vectors, d coordinates in all.
    noise : Noise or None
        The noise family.
    scales : (M, L) float32, optional
        The noise scale b of each client and block, or the level that noise tops updates up to.
    magnitudes : (M, L) float64, optional
        The magnitude of each client's update before noise, per block, where clients report it.
    noise_at : {"client", "server"} or None
        The side that adds the noise; None for neither.
    metrics : sequence of M mappings
        The clients' own metrics.
    report : dict, optional
        Receives measurements for the round's report; None to skip them.
    counts : (d,) integers, optional
        How many clients voted +1, where the server knows nothing but the sum. Then there are no
        bodies.
    seen : list of Seen, optional
        Receives the measurements in place of the report if these answers are of only some blocks.
    stride : int, optional
        The stride of the report's sample of coordinates. By default `sample_stride`.
    out : list of (d,) float32, optional
        Memory for a direction, to be used again; see `new_direction`.
    """

    bodies: Sequence[NDArray[Any]]
    weights: Weights
    blocks: Blocks
    noise: Noise | None = None
    scales: Float32 | None = None
    magnitudes: Weights | None = None
    noise_at: NoiseAt | None = "client"
    metrics: Sequence[Mapping[str, Any]] = ()
    report: Report | None = None
    counts: NDArray[np.integer[Any]] | None = None
    seen: list[Seen] | None = None
    stride: int = 0
    out: list[Float32] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.stride:
            object.__setattr__(self, "stride", sample_stride(self.blocks.dim))

    def __len__(self) -> int:
        return len(self.weights)

    def note(self, seen: Seen) -> None:
        """Report measurements of the answers, replacing those of an earlier rule."""
        if self.seen is not None:
            self.seen[:] = [seen]  # as in a report, the last rule counts
        elif self.report is not None:
            self.report.update(report_of([seen]))

    def new_direction(self) -> Float32:
        """Return memory for a direction, (d,) float32, which only the caller uses."""
        return self.out.pop() if self.out else np.empty(self.blocks.dim, dtype=np.float32)

    def within(self, blocks: range, encoding: Encoding, out: Float32) -> Self:
        """Return the answers in some consecutive blocks; their measurements go to `seen`.

        Parameters
        ----------
        blocks : range
            The indices of the blocks.
        encoding : Encoding
            The encoding of the bodies.
        out : (n,) float32
            Memory for at least as many coordinates.
        """
        seen: list[Seen] | None = None if self.report is None else []
        if len(blocks) == len(self.blocks.sizes):
            return replace(self, seen=seen, out=[out[: self.blocks.dim]])
        own = slice(blocks.start, blocks.stop)
        ends = (0, *self.blocks.ends.tolist())
        part = slice(ends[blocks.start], ends[blocks.stop])
        return replace(
            self,
            bodies=[encoding.cut(body, part) for body in self.bodies],
            blocks=Blocks(self.blocks.sizes[own]),
            scales=None if self.scales is None else self.scales[:, own],
            magnitudes=None if self.magnitudes is None else self.magnitudes[:, own],
            counts=None if self.counts is None else self.counts[part],
            seen=seen,
            out=[out[: part.stop - part.start]],
        )

    @property
    def tops_up(self) -> bool:
        """Whether noise tops updates up to its scale."""
        return self.noise is not None and self.noise.rule.tops_up

    def noise_scales(self) -> Float32:
        """Return the scale of the noise on each client's vector, (M, L); 0 for none."""
        if self.scales is None or self.noise_at is None:
            return np.zeros((len(self), len(self.blocks)), dtype=np.float32)
        if not self.tops_up or self.magnitudes is None:
            return self.scales
        return top_up(self.scales, self.magnitudes)

    def parts(self, rng: np.random.Generator) -> Iterator[tuple[slice, list[Float32]]]:
        """Yield the clients' vectors part by part, with the server's noise if it adds any.

        With two clients, each block is clipped to `PROPORTION` times the norm of the other
        client's. The center of two vectors is their mean, so nothing else bounds a bad one.

        Parameters
        ----------
        rng : numpy.random.Generator
            Draws the noise, part by part and client by client.

        Yields
        ------
        part : slice
            The part's coordinates.
        rows : list of M (n,) float32
            The clients' vectors there.
        """
        factors = self._factors_of_pair() if len(self) == 2 else None
        added = self.noise_scales() if self.noise_at == "server" and self.noise else None
        length = _PART if added is None else max(_NOISY_VALUES // len(self), 1)
        for start in range(0, self.blocks.dim, length):
            part = slice(start, min(start + length, self.blocks.dim))
            rows = [body[part] for body in self.bodies]
            if factors is not None:
                rows = [
                    row * self.blocks.repeat_within(part, factor)
                    for row, factor in zip(rows, factors, strict=True)
                ]
            if added is not None:
                rows = [
                    self._noisy(row, self.blocks.repeat_within(part, scale), rng)
                    for row, scale in zip(rows, added, strict=True)
                ]
            yield part, rows

    def vectors(self, rng: np.random.Generator) -> Float32:
        """Return a copy of the clients' whole vectors, (M, d) float32; see `parts`."""
        vectors = np.empty((len(self), self.blocks.dim), dtype=np.float32)
        for part, rows in self.parts(rng):
            vectors[:, part] = rows
        return vectors

    def _factors_of_pair(self) -> Float32 | None:
        """Return the factors that clip each block of two vectors, (2, L); None if all are 1."""
        norms = np.sqrt([[energy(part) for part in self.blocks.split(one)] for one in self.bodies])
        factors = clipping_factors(norms, PROPORTION * norms.min(axis=0))
        return None if (factors == 1).all() else factors.astype(np.float32)

    def _noisy(self, row: Float32, scale: Float32, rng: np.random.Generator) -> Float32:
        assert self.noise is not None  # `parts` adds no noise without a family
        noisy = self.noise.sample(rng, row.size)
        noisy *= scale
        noisy += row
        return noisy


class Aggregator(ABC):
    """A rule that turns a cohort's answers into a direction.

    An aggregator is a frozen value. Only the server uses it; clients see nothing but its
    `encoding`. It may pass changed answers to another one, see ``dataclasses.replace``.
    """

    uses_weights: ClassVar[bool] = False
    """Whether the rule counts clients by their weights."""

    @property
    def encoding(self) -> Encoding:
        """The form in which clients send their updates."""
        return Vector()

    @property
    def integrates_noise(self) -> bool:
        """Whether the rule itself averages over the noise, so that neither side adds any."""
        return False

    def is_separable(self, answers: Answers) -> bool:
        """Return whether the direction of each block depends on that block's answers alone.

        Then `direction` may be called for some blocks at a time, on several threads at once. It
        must not use `rng`, and must report only through `Answers.note`. By default False.
        """
        return False

    takes_sums: ClassVar[bool] = False
    """Whether the rule needs no more than the sum of votes of equal weight, `Answers.counts`."""

    @property
    def needs_noise(self) -> bool:
        """Whether the rule cannot use answers without noise."""
        return False

    @abstractmethod
    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the direction.

        Parameters
        ----------
        answers : Answers
            The accepted answers.
        rng : numpy.random.Generator
            Makes the rule's random choices.

        Returns
        -------
        (d,) float32
            The direction in the answers' blocks, pointing uphill: the server steps against it.
        """

    def center(self, values: Weights, weights: Weights) -> Weights:
        """Return the center, (*shape), of the clients' values of an exact array, (M, *shape).

        By default the median over clients.
        """
        return np.asarray(np.median(values, axis=0))

    def usual_rate(self, noise: Noise | None) -> float | None:
        """Return the default learning rate; None if one must be given."""
        return 1.0

    def cost_of_few(self, noise: Noise | None) -> tuple[int, str]:
        """Return the cohort size at or below which a warning is logged, and its text."""
        return 0, ""

    def require_noise(self, noise: Noise | None) -> None:
        """Raise if the rule cannot work with this noise.

        Raises
        ------
        ValueError
            If there is no noise and the rule needs some.
        """
        if noise is None and self.needs_noise:
            raise ValueError(f"noise must not be None with aggregator={self!r}")


def coordinatewise(
    answers: Answers,
    rng: np.random.Generator,
    center: Callable[[slice, list[Float32]], Float32],
    variance: float | None = None,
) -> Float32:
    """Return a center of vectors, computed part by part, and report its distance from the mean.

    It allocates only one vector of the model's length, the result.

    Parameters
    ----------
    answers : Answers
        Answers whose bodies are vectors.
    rng : numpy.random.Generator
        See `Answers.parts`.
    center : callable
        Maps a part and the clients' vectors there, M times (n,) float32, to their center, (n,).
    variance : float, optional
        The variance of the center of M independent draws of variance 1, for the report. By default
        that of their median.

    Returns
    -------
    (d,) float32
        The centers.
    """
    blocks, is_reported = answers.blocks, answers.report is not None
    direction = answers.new_direction()
    gap, excess, stride = MeanGap(), [], answers.stride
    for part, rows in answers.parts(rng):
        direction[part] = center(part, rows)
        if is_reported:
            gap.add(direction[part], rows)
            excess.append(excess_of_signs([row[::stride] for row in rows], answers.weights))
        del rows  # before the next part's noisy copies are made
    if is_reported:
        squares, levels = np.square(answers.noise_scales(), dtype=np.float64), None
        if answers.tops_up and answers.magnitudes is not None:
            totals = squares + np.square(answers.magnitudes)
            levels = np.sqrt(np.median(totals, axis=0))
        scales = np.sqrt(squares.mean(axis=0))
        found = direction, gap, excess, len(answers)
        answers.note(describe_median(*found, scales, blocks, answers.noise, levels, variance))
    return direction


def adds_no_noise(answers: Answers) -> bool:
    """Return whether the server adds no noise to the clients' vectors."""
    return answers.noise is None or answers.noise_at != "server"
