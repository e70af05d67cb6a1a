"""Custom aggregators, each a few lines, in a random basis on both of Flower's APIs."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from fedmedian import (
    Agreement,
    ClippedMean,
    Gaussian,
    Median,
    TopUp,
    register_client_step,
)
from fedmedian.aggregators.base import Aggregator
from fedmedian.steps.encodings import Encoding
from fedmedian.wire.scalars import require_vector


@dataclass(frozen=True)
class TrimmedMean(Aggregator):
    """The mean of each coordinate without its largest and smallest values."""

    trim: float = 0.2

    def direction(self, answers, rng):
        vectors, cut = answers.vectors(rng), int(self.trim * len(answers))
        return np.sort(vectors, axis=0)[cut : len(answers) - cut].mean(axis=0)


@dataclass(frozen=True)
class GeometricMedian(Aggregator):
    """The vector of the least sum of distances to the clients', by Weiszfeld's iteration."""

    iterations: int = 30

    def direction(self, answers, rng):
        vectors = answers.vectors(rng)
        center = np.median(vectors, axis=0)
        for _ in range(self.iterations):
            weights = 1 / np.maximum(np.linalg.norm(vectors - center, axis=1), 1e-6)
            center = (weights / weights.sum()).astype(np.float32) @ vectors
        return center


@dataclass(frozen=True)
class NearestNeighbors(Aggregator):
    """Each vector replaced by the mean of its nearest ones, and then another rule."""

    then: Aggregator
    share: float = 0.6

    def direction(self, answers, rng):
        vectors = answers.vectors(rng)
        squares = np.square(vectors).sum(axis=1)
        distances = squares[:, None] + squares - 2 * vectors @ vectors.T
        nearest = np.argsort(distances, axis=1)[:, : int(self.share * len(answers))]
        # The noise has been added already.
        mixed = replace(answers, bodies=list(vectors[nearest].mean(axis=1)), noise_at=None)
        return self.then.direction(mixed, rng)


@dataclass(frozen=True)
class WeightedByLoss(Aggregator):
    """The mean of the clients whose loss is at most the median one."""

    def direction(self, answers, rng):
        losses = np.array([metrics["loss"] for metrics in answers.metrics])
        weights = np.float32(losses <= np.median(losses))
        return weights / weights.sum() @ answers.vectors(rng)


@dataclass(frozen=True)
class TwoBits(Encoding):
    """For each coordinate its sign, and whether it exceeds a threshold."""

    threshold: float

    name: ClassVar[str] = "coarse"
    bits: ClassVar[float] = 2

    def pack(self, draft):
        large = np.abs(draft.vector) > self.threshold
        return np.packbits(np.stack([draft.vector > 0, large], axis=1).ravel())

    def check_body(self, body, blocks):
        require_vector("two-bit votes", body, -(-blocks.dim // 4), np.uint8)


@dataclass(frozen=True)
class CoarseMedian(Aggregator):
    """The coordinate-wise median of votes of two bits."""

    encoding: ClassVar[Encoding] = TwoBits(1.0)

    def direction(self, answers, rng):
        dim = answers.blocks.dim
        bits = np.stack([np.unpackbits(body)[: 2 * dim] for body in answers.bodies])
        votes = (2.0 * bits[:, ::2] - 1) * (0.5 + bits[:, 1::2])
        return np.median(votes, axis=0).astype(np.float32)


@dataclass(frozen=True)
class FirstClient(Aggregator):
    """One client's own body, which nobody may write to."""

    def direction(self, answers, rng):
        return answers.bodies[0]


@dataclass(frozen=True)
class Returning(Aggregator):
    """Whatever it is told to."""

    made: object

    def direction(self, answers, rng):
        return self.made

    def __repr__(self):
        return "Returning()"


@pytest.fixture(scope="module", autouse=True)
def _registered(registries):
    register_client_step(TwoBits)


DIM, CLIENTS, HOSTILE = 200, 10, 2
UPDATES = np.random.default_rng(0).normal(0.5, 0.2, (CLIENTS, DIM)).astype(np.float32)
HONEST = UPDATES[HOSTILE:].mean(axis=0)


def train(model, partition):
    hostile = partition < HOSTILE
    update = -1000 * UPDATES[partition] if hostile else UPDATES[partition]
    metrics = {"num-examples": 1, "loss": 50.0 if hostile else 1.0 + 0.01 * partition}
    return {"x": model["x"] - update}, metrics


@pytest.fixture
def moved(api, run):
    """Returns how far one round with two hostile clients of ten moves the model."""

    def moved(strategy, **options):
        strategy = api.make(strategy, fraction_evaluate=0.0, **options)
        outcome = run(strategy, train, {"x": np.zeros(DIM, np.float32)}, CLIENTS)
        assert outcome.reports[1]["replies-accepted"] == CLIENTS
        return -outcome.model["x"]

    return moved


@pytest.mark.parametrize(
    "aggregator",
    [
        TrimmedMean(),
        GeometricMedian(),
        NearestNeighbors(then=Median()),
        NearestNeighbors(then=GeometricMedian()),
        WeightedByLoss(),
        Agreement(ClippedMean()),
    ],
    ids=repr,
)
class TestTwoHostileClientsOfTen:
    def test_do_not_move_the_model_far(self, aggregator, moved):
        step = moved("MedianSGD", noise=None, aggregator=aggregator)
        assert np.linalg.norm(step - HONEST) < 0.4 * np.linalg.norm(HONEST)

    @pytest.mark.parametrize("noise_at", ["client", "server"])
    def test_do_not_move_it_far_if_there_is_noise(self, aggregator, noise_at, moved):
        noise = Gaussian(0.1)
        step = moved("MedianSGD", noise=noise, aggregator=aggregator, noise_at=noise_at)
        assert np.linalg.norm(step - HONEST) < 0.5 * np.linalg.norm(HONEST)


@pytest.mark.parametrize("noise", [None, Gaussian(TopUp())], ids=repr)
def test_votes_of_two_bits_are_aggregated_by_a_rule_that_reads_them(noise, moved):
    step = moved("SignSGD", noise=noise, aggregator=CoarseMedian())
    assert 0 < np.linalg.norm(step) <= 1.5 * np.sqrt(DIM + 64)
    assert step @ HONEST > 0.5 * np.linalg.norm(step) * np.linalg.norm(HONEST)


@pytest.mark.parametrize("options", [{}, {"rotation": None}], ids=["rotated", "in place"])
def test_one_clients_own_update_may_be_the_direction(options, moved):
    step = moved("MedianSGD", noise=None, aggregator=FirstClient(), **options)
    assert (
        min(np.abs(step - own).max() for own in [*UPDATES[HOSTILE:], *-1000 * UPDATES[:HOSTILE]])
        < 1
    )


@pytest.mark.parametrize(
    "made",
    [None, [0.0] * DIM, np.zeros(DIM + 1), np.zeros((DIM, 1)), np.zeros(DIM, complex)],
    ids=["None", "a list", "too long", "a column", "complex"],
)
def test_what_is_no_direction_ends_the_run_with_the_rules_name(made, moved):
    with pytest.raises(ValueError, match=rf"^Returning\(\) must return .* shape \({DIM},\), got"):
        moved("MedianSGD", noise=None, rotation=None, aggregator=Returning(made))
