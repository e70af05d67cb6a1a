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
        split = answers.blocks.split
        norms = np.sqrt([[energy(part) for part in split(body)] for body in answers.bodies])
        counted = (answers.weights[:, None] * clipping_factors(norms)).astype(np.float32)

        def mean(part: slice, rows: list[Float32]) -> Float32:
            total = np.zeros(part.stop - part.start, dtype=np.float32)
            for row, weight in zip(rows, counted, strict=True):
                total += row * answers.blocks.repeat_within(part, weight)
            return total

        return coordinatewise(answers, rng, mean, float(np.square(answers.weights).sum()))


def clipping_factors(norms: Weights) -> Weights:
    """Return the factors in [0, 1] that clip blocks of these norms, both (M, L)."""
    most = np.broadcast_to(LONGEST * agreed_size(norms), norms.shape)
    return np.asarray(np.divide(most, norms, out=np.ones_like(norms), where=norms > most))
