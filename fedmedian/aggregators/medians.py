"""Medians of the clients' vectors: robust to bad clients, in full precision."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedmedian.aggregators.base import Aggregator, Answers, coordinatewise
from fedmedian.aggregators.smoothing import smoothed_median
from fedmedian.kernels.medians import coordinate_median
from fedmedian.rules.noise import Noise, Uniform
from fedmedian.rules.trust import agreed_size
from fedmedian.steps.noise import top_up
from fedmedian.wire.scalars import Float32


@dataclass(frozen=True)
class Median(Aggregator):
    """The coordinate-wise median: Algorithms 2 and 4 of Chen et al. (arXiv 1906.01736).

    The median of two is their mean, so that neither is outvoted.
    """

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the median; see `Aggregator.direction`."""
        return coordinatewise(answers, rng, lambda _, rows: coordinate_median(rows))

    def usual_rate(self, noise: Noise | None) -> float | None:
        """Return 1, or what the scale rule's theorem says; see `Aggregator.usual_rate`."""
        theory = None if noise is None else noise.rule.learning_rate(self.encoding.name)
        return theory or 1.0

    def cost_of_few(self, noise: Noise | None) -> tuple[int, str]:
        """Protection: the median of two is their mean."""
        return 2, "the median of so few does not keep a bad one out; that of three or more does"


@dataclass(frozen=True)
class SmoothedMedian(Median):
    """What the noisy median tends to when its noise is averaged out.

    Neither clients nor the server add noise: the noise's distribution is part of the rule. See
    `smoothed_median`.
    """

    integrates_noise: ClassVar[bool] = True

    @property
    def needs_noise(self) -> bool:
        """True: the noise is part of the rule."""
        return True

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the smoothed median; see `Aggregator.direction`."""
        noise, blocks, scales = answers.noise, answers.blocks, answers.scales
        assert noise is not None  # `require_noise` refuses a rule without it
        assert scales is not None
        smoothing = scales[0]
        if answers.tops_up and answers.magnitudes is not None:
            smoothing = top_up(smoothing, agreed_size(answers.magnitudes))
        return coordinatewise(
            answers,
            rng,
            lambda part, rows: smoothed_median(rows, noise, blocks.repeat_within(part, smoothing)),
        )

    def require_noise(self, noise: Noise | None) -> None:
        """Raise ValueError unless the noise has a smooth CDF; see `Aggregator.require_noise`."""
        if noise is None or isinstance(noise, Uniform):
            raise ValueError(f"noise must have a smooth CDF with aggregator={self!r}, got {noise}")
