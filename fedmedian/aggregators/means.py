"""The mean of the clients' vectors, each clipped to what is usual among them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedmedian.aggregators.base import Aggregator, Answers, adds_no_noise, coordinatewise
from fedmedian.rules.trust import agreed_size, clipping_factors, up_to_trusted
from fedmedian.steps.base import energy
from fedmedian.wire.scalars import Float32

LONGEST = 1.5
"""The largest norm of a block, relative to the median client's."""


@dataclass(frozen=True)
class ClippedMean(Aggregator):
    """The weighted mean of updates that are clipped to the cohort's own norms.

    Each block of a client's vector is clipped to `LONGEST` times the block's `agreed_size`, its
    median norm. The blocks are the model's arrays, or those that a rotation joins. The mean is
    lengthened to undo clipping, except for what t clients could fake, with t = `num_tolerated`:
    their norms count as at most the (t + 1)-th largest.
    """

    uses_weights: ClassVar[bool] = True

    def is_separable(self, answers: Answers) -> bool:
        """Return whether nothing is drawn, except for a subclass; see `Aggregator.is_separable`."""
        return type(self) is ClippedMean and adds_no_noise(answers)

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the mean; see `Aggregator.direction`."""
        split = answers.blocks.split
        norms = np.sqrt([[energy(part) for part in split(body)] for body in answers.bodies])
        most = LONGEST * agreed_size(norms)
        weights = answers.weights[:, None] * clipping_factors(norms, most)
        kept = answers.weights @ clipping_factors(up_to_trusted(norms), most)
        counted = np.divide(weights, kept, out=weights, where=kept > 0).astype(np.float32)

        def mean(part: slice, rows: list[Float32]) -> Float32:
            total = np.zeros(part.stop - part.start, dtype=np.float32)
            for row, weight in zip(rows, counted, strict=True):
                total += row * answers.blocks.repeat_within(part, weight)
            return total

        return coordinatewise(answers, rng, mean, float(np.square(answers.weights).sum()))
