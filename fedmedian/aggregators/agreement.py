"""Weights by agreement: clients count for more, the more others point in their direction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregators.base import Aggregator, Answers, Weights
from fedmedian.aggregators.means import LONGEST
from fedmedian.checks import require_type
from fedmedian.kernels.agreement import count_agreements
from fedmedian.rules.noise import Noise
from fedmedian.rules.trust import agreed_size, clipping_factors, largest_cap, num_tolerated
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.wire.scalars import Float32

LEAST = 0.1
"""The least that a client counts for, relative to the others."""

MOST = 1.45
"""The most that a client counts for, relative to the average; of three clients less than half."""

APART = 0.1
"""The relative count below which a client is reported as apart from the others."""

_NO_SHARE = 1 / 3
"""The relative count at which a client's share is 0."""

# The most pairs of coordinates that are compared, and the fewest coordinates that are sampled.
_PAIRS, _COORDINATES = 1 << 30, 1 << 14
# The number of entries, or bytes, of each answer that determine the sample.
_HASHED = 512
# The number of values of vectors, or of pairs of clients, that are compared at once.
_VALUES = 1 << 20


@dataclass(frozen=True)
class Agreement(Aggregator):
    """Another rule with weights by agreement, for votes and for vectors.

    Each of M clients has M − t − 1 nearest others, by the angle between their updates, with
    t = `num_tolerated`. Where r is how many others count a client among theirs, relative to the
    average, see `relative_counts`, the client's weight is multiplied by its share, see `shares`: 1
    for r >= 1 and 0 for r <= 1/3. A share counts as at least `LEAST`, so that an honest client that
    is unlike all others still counts. No client then counts for more than `MOST` times the average.

    The angle between votes follows from the bits that agree. Vectors are compared after clipping as
    in `ClippedMean`. With many coordinates or clients a random sample of coordinates is compared;
    in a random basis, the default, it is as good as all of them.

    Parameters
    ----------
    then : Aggregator
        The rule that uses the weights: `Counts`, `Majority`, `ClippedMean`, or a custom one that
        `uses_weights`.

    Raises
    ------
    TypeError, ValueError
        If `then` is not an aggregator, does not use weights, or has a custom encoding.

    Examples
    --------
    >>> from fedmedian import ClippedMean, Counts
    >>> from fedmedian.strategies import MedianSGD, SignSGD
    >>> votes = SignSGD(aggregator=Agreement(Counts()))
    >>> vectors = MedianSGD(noise=None, aggregator=Agreement(ClippedMean()))
    """

    then: Aggregator

    uses_weights: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wanted = "a rule of signs or vectors that uses weights, such as Counts() or ClippedMean()"
        require_type("then", self.then, Aggregator, wanted)
        if not self.then.uses_weights or not isinstance(self.encoding, Signs | Vector):
            raise ValueError(f"then must be {wanted}, got {self.then!r}")

    @property
    def encoding(self) -> Encoding:
        """The other rule's."""
        return self.then.encoding

    @property
    def integrates_noise(self) -> bool:
        """The other rule's."""
        return self.then.integrates_noise

    @property
    def needs_noise(self) -> bool:
        """The other rule's."""
        return self.then.needs_noise

    def direction(self, answers: Answers, rng: np.random.Generator) -> Float32:
        """Return the other rule's direction; see `Aggregator.direction`."""
        of_votes = isinstance(self.encoding, Signs)
        likeness = _likeness_of_votes if of_votes else _likeness_of_vectors
        counts = relative_counts(likeness(answers, rng))
        if answers.report is not None:
            answers.report["agreement-per-client"] = counts.tolist()
            answers.report["clients-apart"] = int(np.count_nonzero(counts < APART))
        weights = answers.weights * np.maximum(shares(counts), LEAST)
        weights = np.minimum(weights, largest_cap(weights, MOST))
        return self.then.direction(replace(answers, weights=weights / weights.sum()), rng)

    def center(self, values: Weights, weights: Weights) -> Weights:
        """Return the other rule's center; see `Aggregator.center`."""
        return self.then.center(values, weights)

    def usual_rate(self, noise: Noise | None) -> float | None:
        """Return the other rule's rate; see `Aggregator.usual_rate`."""
        return self.then.usual_rate(noise)

    def cost_of_few(self, noise: Noise | None) -> tuple[int, str]:
        """Return the other rule's; see `Aggregator.cost_of_few`."""
        return self.then.cost_of_few(noise)

    def require_noise(self, noise: Noise | None) -> None:
        """Raise as the other rule does; see `Aggregator.require_noise`."""
        self.then.require_noise(noise)


def relative_counts(likeness: NDArray[Any]) -> Weights:
    """Return how many others count each client among their nearest, relative to the average.

    Of c others that do, t − 1 may be accomplices, with t = `num_tolerated`. The average of
    c − (t − 1) over M clients is M − 2t. Others that are equally near at the border count in part.

    Parameters
    ----------
    likeness : (M, M) array
        How like each pair of clients are, M >= 1; any increasing function of the cosine.

    Returns
    -------
    (M,) float64
        max(c − (t − 1), 0)/(M − 2t); all 1 with one client or two.

    Examples
    --------
    >>> cosines = np.array([[1, 0.8, 0.7, -0.5], [0.8, 1, 0.6, -0.5],
    ...                     [0.7, 0.6, 1, -0.5], [-0.5, -0.5, -0.5, 1]])
    >>> relative_counts(cosines).round(2).tolist()
    [1.33, 1.33, 1.33, 0.0]
    """
    clients = len(likeness)
    tolerated = num_tolerated(clients)
    if (near := clients - tolerated - 1) < 1:
        return np.ones(clients)
    counted = np.zeros(clients)
    length = max(_VALUES // clients, 1)
    for start in range(0, clients, length):
        others = likeness[start : start + length].astype(np.float64)
        np.fill_diagonal(others[:, start:], -np.inf)
        border = np.partition(others, tolerated + 1, axis=1)[:, tolerated + 1, None]
        nearer, at = others > border, others == border
        left = near - nearer.sum(axis=1, keepdims=True)
        counted += (nearer + at * (left / at.sum(axis=1, keepdims=True))).sum(axis=0)
    return np.asarray(np.maximum(counted - (tolerated - 1), 0) / (clients - 2 * tolerated))


def shares(counts: Weights) -> Weights:
    """Return each client's share of its weight: 1 at the average count or more, 0 up to a third.

    Parameters
    ----------
    counts : (M,) float64
        The `relative_counts`.

    Returns
    -------
    (M,) float64
        The shares, linear between a third and 1.
    """
    return np.clip((counts - _NO_SHARE) / (1 - _NO_SHARE), 0, 1)


def _likeness_of_votes(answers: Answers, rng: np.random.Generator) -> NDArray[Any]:
    """Return the number of coordinates on which each pair of clients votes alike, (M, M)."""
    dim = answers.blocks.dim
    first, stride = _sample(answers, rng)
    if stride == 1:
        return count_agreements(answers.bodies, dim)
    rows = [body[first : dim // 8 : stride] for body in answers.bodies]
    return count_agreements(rows, 8 * rows[0].size)


def _likeness_of_vectors(answers: Answers, rng: np.random.Generator) -> NDArray[Any]:
    """Return the cosine of each pair of vectors, clipped block by block, (M, M); 0 for zeros."""
    products = np.zeros((len(answers), len(answers)))
    first, stride = _sample(answers, rng)
    parts = zip(*(answers.blocks.split(body) for body in answers.bodies), strict=True)
    for block in parts:
        own = _products([part[first::stride] for part in block])
        norms = np.sqrt(own.diagonal())
        factors = clipping_factors(norms[:, None], LONGEST * agreed_size(norms[:, None]))
        products += own * (factors * factors.T)
    norms = np.sqrt(products.diagonal())
    norms = np.outer(norms, norms)
    return np.asarray(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0))


def _products(rows: Sequence[Float32]) -> Weights:
    """Return the inner product of each pair of M vectors, (M, M) float64, part by part."""
    products, length = np.zeros((len(rows), len(rows))), max(_VALUES // len(rows), 1)
    for start in range(0, rows[0].size, length):
        part = np.stack([row[start : start + length] for row in rows])
        products += part @ part.T
    return products


def _sample(answers: Answers, rng: np.random.Generator) -> tuple[int, int]:
    """Return the first place of a random sample of coordinates, or bytes, and its stride.

    It depends on the answers too: a client that knew the sample could behave well there alone.
    """
    most = max(_PAIRS // len(answers) ** 2, _COORDINATES)
    stride = max(-(-answers.blocks.dim // most), 1)
    if stride == 1:
        return 0, 1
    said = blake2b(rng.bytes(32))
    for body in answers.bodies:
        said.update(body[:_HASHED].tobytes())
    return int.from_bytes(said.digest(), "big") % stride, stride
