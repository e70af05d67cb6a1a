"""Medians of the clients' vectors: robust to bad clients, in full precision."""

from dataclasses import dataclass

import numpy as np

from fedmedian.aggregators.base import Aggregator, Answers, adds_no_noise, coordinatewise
from fedmedian.aggregators.smoothing import smoothed_median
from fedmedian.kernels.medians import coordinate_median
from fedmedian.rules.noise import Noise, Uniform
from fedmedian.rules.trust import agreed_size
from fedmedian.steps.noise import top_up
from fedmedian.wire.scalars import Float32


@dataclass(frozen=True)
class Median(Aggregator):
    """The coordinate-wise median: Algorithms 2 and 4 of Chen et al. (arXiv 1906.01736).

    The median of two is their mean, so neither is outvoted.
    """

    def is_separable(self, answers: Answers) -> bool:
        """Return whether nothing is drawn, except for a subclass; see `Aggregator.is_separable`."""
        return type(self) in (Median, SmoothedMedian) and adds_no_noise(answers)

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the median; see `Aggregator.direction`."""
        return coordinatewise(answers, rng, lambda _, rows: coordinate_median(rows))

    def usual_rate(self, noise: Noise | None) -> float | None:
        """Return 1, or the rate of the scale rule's theorem; see `Aggregator.usual_rate`."""
        theory = None if noise is None else noise.rule.learning_rate(self.encoding.name)
        return theory or 1.0

    def cost_of_few(self, noise: Noise | None) -> tuple[int, str]:
        """Return 2: the median of two is their mean, which a bad one can move."""
        return 2, "the median of so few does not exclude a bad one; with three or more it does"


@dataclass(frozen=True)
class SmoothedMedian(Median):
    """The limit of the noisy median when its noise averages out; see `smoothed_median`.

    Neither clients nor the server add noise: its distribution is part of the rule.
    """

    integrates_noise = True
    needs_noise = True

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the smoothed median; see `Aggregator.direction`."""
        noise, blocks, scales = answers.noise, answers.blocks, answers.scales
        assert noise is not None  # checked by `require_noise`
        assert scales is not None
        smoothing = scales[0]
        if answers.tops_up and answers.magnitudes is not None:
            smoothing = top_up(smoothing, agreed_size(answers.magnitudes))

        def center(part: slice, rows: list[Float32]) -> Float32:
            return smoothed_median(rows, noise, blocks.repeat_within(part, smoothing))

        return coordinatewise(answers, rng, center)

    def require_noise(self, noise: Noise | None) -> None:
        """Raise ValueError unless the noise has a smooth CDF; see `Aggregator.require_noise`."""
        if noise is None or isinstance(noise, Uniform):
            raise ValueError(
                f"noise must have a smooth CDF with aggregator={self!r}, such as Gaussian(), got "
                f"{noise}"
            )
