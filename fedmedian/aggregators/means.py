"""The mean of the clients' vectors, each clipped to what is usual among them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedmedian.aggregators.base import Aggregator, Answers, Weights, coordinatewise
from fedmedian.rules.trust import agreed_size
from fedmedian.steps.base import energy
from fedmedian.wire.scalars import Float32

LONGEST = 1.2
"""The largest norm of a block, relative to the median client's."""


@dataclass(frozen=True)
class ClippedMean(Aggregator):
    """The weighted mean of updates that are clipped to the cohort's own norms.

    Each block of a client's vector is clipped to `LONGEST` times the block's `agreed_size`, its
    median norm. The blocks are the model's arrays, or those that a rotation joins.
    """

    uses_weights: ClassVar[bool] = True

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the mean; see `Aggregator.direction`."""
        weights = answers.weights[:, None] * clipping_factors(answers)
        counted = weights.astype(np.float32)

        def mean(part: slice, rows: list[Float32]) -> Float32:
            total = np.zeros(part.stop - part.start, dtype=np.float32)
            for row, weight in zip(rows, counted, strict=True):
                total += row * answers.blocks.repeat_within(part, weight)
            return total

        return coordinatewise(answers, rng, mean)


def clipping_factors(answers: Answers) -> Weights:
    """Return the factors, (M, L) in [0, 1], by which `ClippedMean` multiplies clients' blocks."""
    blocks = answers.blocks
    norms = np.sqrt([[energy(part) for part in blocks.split(body)] for body in answers.bodies])
    most = np.broadcast_to(LONGEST * agreed_size(norms), norms.shape)
    return np.asarray(np.divide(most, norms, out=np.ones_like(norms), where=norms > most))
