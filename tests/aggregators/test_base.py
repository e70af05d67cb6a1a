"""From answers to a direction: what it estimates, who counts how much, and what it costs."""

import tracemalloc
from copy import deepcopy
from dataclasses import replace
from math import pi, sqrt
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import (
    Agreement,
    Blocks,
    ClippedMean,
    Counts,
    Gaussian,
    Laplace,
    Logistic,
    Majority,
    Median,
    SmoothedMedian,
    TopUp,
    Uniform,
    coordinate_median,
    count_votes,
    majority_vote,
    mean_from_votes,
    pack_signs,
    smoothed_median,
)
from fedmedian.aggregators import base
from fedmedian.aggregators.base import Answers
from fedmedian.aggregators.votes import majority_gain
from fedmedian.kernels.votes import weighted_votes
from fedmedian.rules.trust import PROPORTION, voting_weights
from fedmedian.steps.encodings import Vector

GAUSSIAN = Gaussian()
FAMILIES = [GAUSSIAN, Logistic(), Laplace(), Uniform()]
UNCHANGED = Majority(ties="unchanged")


class Aggregated(NamedTuple):
    """A direction, and what is reported of it."""

    direction: np.ndarray
    report: dict


def signs(rows, scales, **known):
    """Answers of signs, one per row of numbers, with each client's noise scales."""
    bodies = [pack_signs(row) for row in rows]
    scales = np.array(scales, np.float32)
    return Answers(bodies, equal_weights(len(bodies)), Blocks(()), scales=scales, **known)


def vectors(rows, sizes=None):
    rows = np.float32(rows)
    blocks = Blocks((rows.shape[1],) if sizes is None else sizes)
    return Answers(list(rows), equal_weights(len(rows)), blocks)


def noisy_rows(updates, noise, scales, size, seed):
    """Rows of u_i + b_i·ξ."""
    rng = np.random.default_rng(seed)
    return [
        u + b * noise.sample(rng, size)
        for u, b in zip(np.float32(updates), np.float32(scales), strict=True)
    ]


def equal_weights(clients):
    return np.full(clients, 1 / clients)


def apply(rule, answers, rng=None, **known):
    answers = replace(answers, report={}, **known)
    direction = rule.direction(answers, np.random.default_rng(0) if rng is None else rng)
    return Aggregated(direction, answers.report)


def aggregate(answers, sizes, weights=None, noise=GAUSSIAN, rule=None):
    weights = answers.weights if weights is None else np.asarray(weights, float)
    return apply(rule or Counts(), answers, weights=weights, blocks=Blocks(sizes), noise=noise)


def median(answers, noise=None, added=None, smoothing=None, rng=None):
    """The median, with noise of the scales `added`, or smoothed by scales."""
    rule = Median() if smoothing is None else SmoothedMedian()
    scales = added if smoothing is None else smoothing
    scales = None if scales is None else np.tile(np.float32(scales), (len(answers), 1))
    side = "server" if added is not None else None
    return apply(rule, answers, rng, noise=noise, scales=scales, noise_at=side)


@st.composite
def elections(draw):
    """Votes of M clients on two blocks, with weights as from examples, and scales for each."""
    clients, first, second = (draw(st.integers(low, 9)) for low in (1, 0, 0))
    rows = draw(hnp.arrays(np.int8, (clients, first + second), elements=st.sampled_from([-1, 1])))
    examples = draw(hnp.arrays(np.float64, clients, elements=st.integers(1, 10)))
    # So little apart that, with any weights, no cap touches them.
    scales = draw(hnp.arrays(np.float32, (clients, 2), elements=st.floats(0.75, 1.0, width=32)))
    return rows, voting_weights(examples), scales, (first, second)


# Bounds on means of n draws are five standard errors: 1 in 1.7 million would be outside, had the
# draws no seed.
class TestCounts:
    @given(election=elections(), noise=st.sampled_from(FAMILIES))
    def test_are_the_sum_of_signs_times_weight_times_scale_over_twice_the_density(
        self, election, noise
    ):
        rows, weights, scales, sizes = election
        direction = aggregate(signs(rows, scales), sizes, weights, noise).direction
        expected = [
            sum(
                weights[i] * scales[i, int(k >= sizes[0])] / (2 * noise.density_at_zero) * row[k]
                for i, row in enumerate(rows)
            )
            for k in range(sum(sizes))
        ]
        assert direction.dtype == np.float32
        np.testing.assert_allclose(direction, expected, rtol=1e-5, atol=1e-5)

    @given(election=elections(), noise=st.sampled_from(FAMILIES))
    def test_of_equal_scales_and_weights_are_the_mean_from_votes(self, election, noise):
        rows, _, _, sizes = election
        payloads = signs(rows, np.full((len(rows), 2), 0.3))
        counts = count_votes(payloads.bodies, sum(sizes))
        np.testing.assert_allclose(
            aggregate(payloads, sizes, noise=noise).direction,
            mean_from_votes(counts, len(rows), noise, 0.3),
            rtol=1e-5,
            atol=1e-6,
        )

    @pytest.mark.parametrize(
        ("scales", "weights"),
        [((0.7, 0.7, 0.7), (1 / 3, 1 / 3, 1 / 3)), ((0.6, 0.9, 1.8), (0.4, 0.35, 0.25))],
        ids=["equal clients", "clients of own scales and weights"],
    )
    def test_estimate_the_weighted_mean_update_without_bias(self, scales, weights):
        updates, n, noise = np.array([0.2, -0.5, 1.0]), 100_000, Uniform()
        rows, own = noisy_rows(updates, noise, scales, n, seed=1), np.array(scales)[:, None]
        estimate = np.float64(aggregate(signs(rows, own), (n,), weights, noise).direction)
        assert estimate.mean() == pytest.approx(
            np.dot(weights, updates), abs=5 * estimate.std() / sqrt(n)
        )
        # Uniform votes have variance at most 3b².
        assert estimate.var() < 3 * np.square(np.multiply(weights, scales)).sum()

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_estimate_the_mean_with_any_noise_that_is_much_larger(self, noise):
        updates, scales, n = np.array([0.02, -0.05, 0.1]), np.array([0.6, 0.9, 1.8]), 200_000
        rows = noisy_rows(updates, noise, scales, n, seed=2)
        estimate = np.float64(aggregate(signs(rows, scales[:, None]), (n,), noise=noise).direction)
        # Beyond chance a bias of order |g|·(g/b), the largest that any of the four has.
        bias = np.mean(np.square(updates) / scales)
        error = abs(estimate.mean() - updates.mean())
        assert error < 5 * estimate.std() / sqrt(n) + bias


class TestScalesThatClientsChoose:
    def test_a_client_weighs_at_most_the_cap_times_the_median_client(self):
        scales = np.array([[1.0], [1.0], [2.0], [5.0], [1e6]])
        rows = [[-1.0]] * 4 + [[1.0]]
        expected = sqrt(3) * (PROPORTION * 2.0 - 1 - 1 - 2 - 5) / 5
        result = aggregate(signs(rows, scales), (1,), noise=Uniform())
        assert result.direction == pytest.approx([expected])

    def test_each_block_has_a_cap_of_its_own(self):
        scales = np.array([[1.0, 100.0], [1.0, 100.0], [100.0, 100.0]])
        result = aggregate(signs(np.ones((3, 2)), scales), (1, 1), noise=Uniform())
        assert result.direction == pytest.approx([sqrt(3) * (2 + 2) / 3, sqrt(3) * 100])

    def test_clients_that_did_not_move_a_block_neither_vote_nor_lower_the_cap(self):
        scales = np.array([[0.0], [0.0], [0.0], [2.0], [3.0]])
        result = aggregate(signs([[-1.0]] * 3 + [[1.0]] * 2, scales), (1,), noise=Uniform())
        assert result.direction == pytest.approx([sqrt(3) * (2 + 3) / 5])

    def test_a_block_that_nobody_moved_stays(self):
        scales = np.array([[0.0, 1.0]] * 3)
        result = aggregate(signs(np.ones((3, 5)), scales), (3, 2))
        assert result.direction.tolist()[:3] == [0.0, 0.0, 0.0]
        assert result.report["vote-agreement"] == pytest.approx(2 / 5)


class TestMajority:
    @given(election=elections())
    def test_is_the_sign_of_the_weighted_sum_and_a_tie_is_zero_or_a_coin(self, election):
        rows, weights, scales, sizes = election
        given_votes = signs(rows, scales), sizes, weights
        unchanged = aggregate(*given_votes, rule=UNCHANGED).direction
        assert unchanged.dtype == np.float32
        assert unchanged.tolist() == np.sign((weights @ rows).round(6)).tolist()
        tossed, again = (aggregate(*given_votes, rule=Majority()).direction for _ in range(2))
        assert np.all(np.abs(tossed) == 1)
        np.testing.assert_array_equal(tossed[unchanged != 0], unchanged[unchanged != 0])
        np.testing.assert_array_equal(tossed, again)

    def test_random_ties_are_fair_coins(self):
        n = 100_000
        rows = np.ones((2, n)) * [[1], [-1]]
        direction = aggregate(signs(rows, np.ones((2, 1))), (n,), rule=Majority()).direction
        assert set(direction.tolist()) == {-1.0, 1.0}
        assert abs(direction.sum()) < 5 * sqrt(n)

    def test_weights_that_cancel_only_on_paper_are_a_tie(self):
        payloads = signs([[1.0], [-1.0], [-1.0]], np.ones((3, 1)))
        weights = np.array([3, 1, 2]) / 6
        assert weighted_votes(payloads.bodies, [1], weights[:, None]) != 0
        assert aggregate(payloads, (1,), weights, rule=UNCHANGED).direction.tolist() == [0.0]

    @pytest.mark.parametrize("clients", [1, 10, 101])
    def test_of_equal_weights_is_the_majority_vote(self, clients):
        rows = np.random.default_rng(clients).standard_normal((clients, 200))
        payloads = signs(rows, np.ones((clients, 1)))
        expected = majority_vote(payloads.bodies, 200)
        direction = aggregate(payloads, (200,), rule=UNCHANGED).direction
        np.testing.assert_array_equal(direction, expected)

    def test_noise_and_its_scales_play_no_part(self):
        rows = np.random.default_rng(0).standard_normal((3, 9))
        directions = [
            aggregate(signs(rows, scales), (9,), noise=noise, rule=Majority()).direction
            for scales in (np.ones((3, 1)), [[1.0], [1.0], [1e9]], np.zeros((3, 1)))
            for noise in (None, Gaussian(), Uniform())
        ]
        assert all(np.array_equal(direction, directions[0]) for direction in directions)


vector_rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(0, 9)),
    elements=st.floats(-1000, 1000, width=32),
)


class TestVectors:
    @given(rows=vector_rows)
    def test_the_direction_is_the_coordinate_wise_median_of_three_or_more(self, rows):
        assume(len(rows) != 2)
        direction = median(vectors(rows)).direction
        assert direction.dtype == np.float32
        np.testing.assert_array_equal(direction, coordinate_median(rows))

    def test_of_two_the_longer_is_clipped_block_by_block_to_four_times_the_other(self):
        rows = np.float32([[3, 4, 1, 0, 0], [30, -40, -2, 5, 7]])
        clipped = np.float32([[3, 4, 1, 0, 0], [12, -16, -2, 0, 0]])
        direction = median(vectors(rows, (2, 1, 2))).direction
        np.testing.assert_allclose(direction, clipped.mean(axis=0), rtol=1e-6)

    @pytest.mark.parametrize("dim", [0, 1, 9])
    def test_each_block_is_smoothed_with_its_own_scale(self, dim):
        rows = np.random.default_rng(0).standard_normal((5, dim + 4)).astype(np.float32)
        sizes, smoothing = (3, dim, 1), np.float32([0.3, 2.0, 0.0])
        result = median(vectors(rows, sizes), GAUSSIAN, smoothing=smoothing)
        expected = smoothed_median(rows, GAUSSIAN, np.repeat(smoothing, sizes))
        np.testing.assert_array_equal(result.direction, expected)


class TestNoiseAddedToVectors:
    BLOCKS, SCALES = Blocks((40, 0, 60)), np.float32([0.5, 1.0, 3.0])

    @pytest.fixture
    def payloads(self):
        return vectors(np.random.default_rng(0).standard_normal((7, 100)), self.BLOCKS.sizes)

    def add(self, payloads, noise=GAUSSIAN, seed=1):
        rng = np.random.default_rng(seed)
        return median(payloads, noise, self.SCALES, rng=rng)

    @pytest.mark.parametrize(
        ("noise", "values"),
        [(GAUSSIAN, 7 * 100), (Laplace(), 7 * 13), (Uniform(), 1)],
        ids=["one part", "some parts", "a part per coordinate"],
    )
    def test_is_as_if_the_clients_had_added_it(self, payloads, noise, values, monkeypatch):
        """For one part of the coordinates after the other, client by client."""
        monkeypatch.setattr(base, "_NOISY_VALUES", values)
        length, rng = max(values // 7, 1), np.random.default_rng(1)
        noisy = np.stack(payloads.bodies)
        for start in range(0, 100, length):
            for row in noisy:
                part = row[start : start + length]
                scale = np.repeat(self.SCALES, self.BLOCKS.sizes)[start : start + length]
                part += scale * noise.sample(rng, part.size)
        sent, scales = vectors(noisy, self.BLOCKS.sizes), np.tile(self.SCALES, (7, 1))
        theirs = apply(Median(), sent, noise=noise, scales=scales, noise_at="client")
        ours = self.add(payloads, noise)
        np.testing.assert_array_equal(ours.direction, theirs.direction)
        assert ours.report == {name: pytest.approx(value) for name, value in theirs.report.items()}
        assert "signal-to-noise" in ours.report

    def test_follows_from_the_generator(self, payloads):
        first, again, other = (self.add(payloads, seed=seed).direction for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert np.all(first != other)

    def test_leaves_the_clients_vectors_as_they_are(self, payloads):
        before = [one.copy() for one in payloads.bodies]
        self.add(payloads)
        np.testing.assert_array_equal(payloads.bodies, before)

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_has_each_blocks_scale_and_is_independent_between_clients(self, noise):
        n, scales = 100_000, np.float32([0.5, 2.0])
        for clients in (1, 2):
            still, rng = vectors(np.zeros((clients, 2 * n)), (n, n)), np.random.default_rng(3)
            result = median(still, noise, scales, rng=rng)
            # The median of two is their mean, of half the variance if they are independent.
            spread = result.direction.reshape(2, n).std(axis=1)
            assert spread == pytest.approx(scales / sqrt(clients), rel=0.02)


@pytest.mark.parametrize("length", [8, 64])
class TestPartByPart:
    """The coordinates are worked on in parts, which gives what the whole would give."""

    BLOCKS = Blocks((13, 0, 30, 1, 56))

    def test_medians_are_the_same(self, length, monkeypatch):
        monkeypatch.setattr(base, "_PART", length)
        rows = np.random.default_rng(0).standard_normal((5, 100), dtype=np.float32)
        for smoothing in (None, np.float32([0.5, 1, 0, 2, 3])):
            result = median(vectors(rows, self.BLOCKS.sizes), GAUSSIAN, smoothing=smoothing)
            scale = 0 if smoothing is None else np.repeat(smoothing, self.BLOCKS.sizes)
            np.testing.assert_array_equal(result.direction, smoothed_median(rows, GAUSSIAN, scale))
            gap = np.linalg.norm(result.direction - rows.mean(axis=0))
            assert result.report["median-mean-gap"] == pytest.approx(gap, rel=1e-5)


class TestWhatOneClientCanDo:
    """One client of 2 to 8 sends anything that is read; the others' votes and vectors stay."""

    WIDTH = 16

    @staticmethod
    def others_and_two_of_one(draw, elements, dtype):
        others = draw(st.integers(1, 7))
        rows = draw(hnp.arrays(dtype, (others + 2, 16), elements=elements))
        return np.delete(rows, 0, axis=0), np.delete(rows, 1, axis=0)

    @given(
        data=st.data(),
        claim=st.floats(0, 2.0**100, width=32),
        longer=st.floats(1, 2.0**100, width=32),
        tops_up=st.booleans(),
    )
    def test_counts_move_by_the_votes_of_one_client_at_four_times_the_median_level_or_less(
        self, data, claim, longer, tops_up
    ):
        usual, other = self.others_and_two_of_one(data.draw, st.sampled_from([-1, 1]), np.int8)
        clients = len(usual)
        noise = Gaussian(TopUp()) if tops_up else GAUSSIAN
        scales = np.ones((clients, 1), np.float32)
        claimed = scales.copy()
        claimed[0] = claim
        # Of a size that leaves room for noise; a claim of a smaller one makes the step shorter.
        sizes = np.full((clients, 1), 0.8, np.float32)
        lied = sizes.copy()
        lied[0] = longer
        before, after = (
            aggregate(signs(rows, own, magnitudes=measured), (self.WIDTH,), noise=noise).direction
            for rows, own, measured in ((usual, scales, sizes), (other, claimed, lied))
        )
        moved = np.linalg.norm(after.astype(np.float64) - before)
        most = 1 + (PROPORTION if claim > 1 else 1)
        assert moved <= most * sqrt(pi / 2) * sqrt(self.WIDTH) / clients * (1 + 1e-5)

    @given(data=st.data(), calibrated=st.booleans(), claim=st.floats(0, 2.0**100, width=32))
    def test_a_majority_moves_by_no_more_than_from_one_sign_to_the_other(
        self, data, calibrated, claim
    ):
        usual, other = self.others_and_two_of_one(data.draw, st.sampled_from([-1, 1]), np.int8)
        clients, rule = len(usual), Majority(calibrated=calibrated)
        claimed = np.ones((clients, 1), np.float32)
        claimed[0] = claim
        before, after = (
            aggregate(signs(rows, own), (self.WIDTH,), rule=rule).direction
            for rows, own in ((usual, np.ones_like(claimed)), (other, claimed))
        )
        # Of the scales at most the lower median of all is what a calibrated majority is worth.
        worth = 1 / majority_gain(GAUSSIAN, equal_weights(clients)) if calibrated else 1
        assert np.abs(after - before).max() <= 2 * worth * (1 + 1e-5)

    @given(data=st.data(), smoothing=st.sampled_from([None, np.float32([0.5])]))
    def test_a_median_stays_between_the_other_clients_values_of_three_or_more(
        self, data, smoothing
    ):
        finite = st.floats(-1e6, 1e6, width=32)
        usual, other = self.others_and_two_of_one(data.draw, finite, np.float32)
        others = usual[1:]
        assume(len(others) > 1)
        for rows in (usual, other):
            found = median(vectors(rows), GAUSSIAN, smoothing=smoothing).direction
            # A smoothed median may lie a noise scale and a bit beyond the outermost.
            slack = 0.0 if smoothing is None else 1.0
            assert np.all(found >= others.min(axis=0) - slack)
            assert np.all(found <= others.max(axis=0) + slack)


def model(dim):
    return Blocks((dim // 3, 5, dim - dim // 3 - 5))


def prepared(rule, own=False, weighted=False, **known):
    """Prepares an aggregation of M clients' answers; they share two clients' buffers."""

    def prepare(clients, dim):
        rng, ones = np.random.default_rng(0), np.ones((clients, 3), np.float32)
        if isinstance(rule.encoding, Vector):
            bodies = [rng.standard_normal(dim, np.float32) for _ in range(2)]
        else:
            bodies = [rng.integers(0, 256, -(-dim // 8), np.uint8) for _ in range(2)]
        answers = Answers(
            [bodies[i % 2] for i in range(clients)],
            rng.dirichlet(np.ones(clients)) if weighted else equal_weights(clients),
            model(dim),
            GAUSSIAN,
            ones * rng.uniform(0.5, 1, (clients, 3)).astype(np.float32) if own else ones,
            report={},
            **known,
        )
        return lambda: rule.direction(answers, rng)

    return prepare


AGGREGATIONS = {
    "counts": prepared(Counts()),
    "counts of own scales": prepared(Counts(), own=True),
    "weighted counts": prepared(Counts(), weighted=True),
    "majority": prepared(Majority()),
    "majority of own scales": prepared(Majority(), own=True),
    "weighted majority": prepared(Majority(), weighted=True),
    "calibrated majority": prepared(Majority(calibrated=True), own=True),
    "median": prepared(Median()),
    "median with noise added": prepared(Median(), noise_at="server"),
    "smoothed median": prepared(SmoothedMedian(), noise_at=None),
    "counts by agreement": prepared(Agreement(Counts())),
    "mean of clipped vectors by agreement": prepared(Agreement(ClippedMean()), noise_at=None),
}


def peak_bytes(run):
    """The most memory that a call takes, its result included and its arguments not."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("prepare", AGGREGATIONS.values(), ids=AGGREGATIONS)
def test_memory_is_the_direction_and_25_mib_for_101_clients(prepare):
    """At most 64 MiB for 10⁷ coordinates: 39 for the direction, 25 to work in."""
    clients, dim = 101, 80_000
    prepare(clients, 9)()  # programs are kept
    assert peak_bytes(prepare(clients, dim)) - 4 * dim < 25 * 2**20
    # Both are longer than what is worked on at once.
    small, large = (peak_bytes(prepare(2, dim)) for dim in (1_100_000, 2_200_000))
    assert large - small < 1.1 * 4 * 1_100_000


def test_memory_for_a_direction_is_given_once_to_whichever_rule_asks_first():
    memory = np.empty(2, np.float32)
    answers = replace(vectors([[1.0, 2.0], [3.0, 4.0]]), out=[memory])
    passed_on = replace(answers, weights=answers.weights)
    assert answers.new_direction() is memory
    assert passed_on.new_direction() is not memory
    first, second = (rule.direction(answers, None) for rule in (Median(), ClippedMean()))
    assert first is not second


def test_answers_can_be_compared_and_hashed_and_are_equal_to_themselves_alone():
    answers = vectors([[1, 2, 3], [4, 5, 6]])
    assert deepcopy(answers) != answers
    assert answers in {answers}
