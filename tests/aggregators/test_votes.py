"""The mean decoded from votes: its bias and its variance. Every draw is seeded."""

from dataclasses import dataclass, replace
from itertools import product
from math import comb, pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import (
    Blocks,
    Counts,
    Gaussian,
    Laplace,
    Logistic,
    Majority,
    Theory,
    TopUp,
    Uniform,
    count_votes,
    mean_from_votes,
    pack_signs,
)
from fedmedian.aggregators.base import Answers
from fedmedian.aggregators.votes import NOISE_ALLOWANCE, Ballot, VoteAggregator, majority_gain

FAMILIES = [Gaussian(), Logistic(), Laplace(), Uniform()]

each_family = pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)


def expected_estimate(updates, noise, b):
    """E[ĝ], by decoding the expected number of positive votes."""
    positive = noise.cdf(np.asarray(updates) / b).sum()
    return float(mean_from_votes([positive], len(updates), noise, b)[0])


def estimates(updates, noise, b, n, seed):
    """n independent estimates of the mean of `updates`, through packed votes."""
    rng = np.random.default_rng(seed)
    votes = [pack_signs(g + np.float32(b) * noise.sample(rng, n), rng) for g in updates]
    decoded = mean_from_votes(count_votes(votes, n), len(updates), noise, b)
    return decoded.astype(np.float64)


def equal(clients):
    return np.full(clients, 1 / clients)


@given(
    counts=st.integers(1, 50).flatmap(
        lambda m: st.tuples(
            st.just(m), hnp.arrays(np.int32, st.integers(0, 9), elements=st.integers(0, m))
        )
    ),
    noise=st.sampled_from(FAMILIES),
    b=st.floats(1e-6, 1e6),
)
def test_the_decoded_mean_is_the_mean_sign_times_what_a_sign_is_worth(counts, noise, b):
    clients, positive = counts
    decoded = mean_from_votes(positive, clients, noise, b)
    assert decoded.dtype == np.float32
    expected = [
        b / (2 * noise.density_at_zero) * (k - (clients - k)) / clients for k in positive.tolist()
    ]
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-6 * b)


def test_a_tie_is_decoded_to_exactly_nothing_and_no_mean_is_beyond_what_all_votes_say():
    for clients in range(1, 500):
        none, half, every = mean_from_votes([0, clients / 2, clients], clients, Uniform(), 1.0)
        assert half == 0
        assert every == -none == np.float32(sqrt(3))


def test_votes_on_each_coordinate_may_be_decoded_with_a_scale_of_its_own():
    decoded = mean_from_votes([2, 2, 0], 2, Uniform(), np.array([1.0, 2.0, 3.0]))
    assert decoded == pytest.approx([sqrt(3), 2 * sqrt(3), -3 * sqrt(3)])


def test_the_scale_that_votes_are_decoded_with_is_not_the_noises_own():
    assert mean_from_votes([3], 4, Gaussian(7.0), 1.0) == mean_from_votes([3], 4, Gaussian(), 1.0)


@pytest.mark.parametrize("num_votes", [0, -1])
def test_without_votes_there_is_no_mean_to_decode(num_votes):
    with pytest.raises(ValueError, match=f"^num_votes must .*{num_votes}"):
        mean_from_votes([0], num_votes, Gaussian(), 1.0)


def test_the_bias_of_decoded_gaussian_votes_is_minus_the_mean_cube_over_six_b_squared():
    updates = np.array([0.5, 1.0, 2.0, -0.3])
    for b in (5.0, 10.0, 20.0):
        bias = expected_estimate(updates, Gaussian(), b) - updates.mean()
        leading = -np.mean(updates**3) / (6 * b**2)
        # The next term is smaller by about 3/20·(g/b)².
        assert bias == pytest.approx(leading, rel=0.2 * (2 / b) ** 2, abs=3e-7)


@each_family
def test_noise_much_larger_than_the_updates_leaves_decoded_votes_no_bias(noise):
    updates = np.array([1.0, 2.0, 10.0])
    assert expected_estimate(updates, noise, 1e4) == pytest.approx(updates.mean(), rel=2e-3)


@given(
    updates=hnp.arrays(np.float64, st.integers(1, 9), elements=st.floats(-1, 1)),
    b=st.floats(1 / sqrt(3), 100),
)
def test_decoded_uniform_votes_have_no_bias_while_the_noise_covers_the_updates(updates, b):
    estimate = expected_estimate(updates, Uniform(), b)
    assert estimate == pytest.approx(updates.mean(), abs=1e-6 * (1 + b))


def test_uniform_noise_that_does_not_cover_an_update_clips_it_in_the_decoded_mean():
    assert expected_estimate([1.0, 100.0], Uniform(), 1.0) == pytest.approx((1 + sqrt(3)) / 2)


@each_family
def test_decoded_votes_have_the_expectation_of_their_law(noise):
    updates, n, b = (0.1, 0.2, 1.0), 200_000, 1.0
    decoded = estimates(updates, noise, b, n, seed=1)
    expected = expected_estimate(updates, noise, b)
    assert abs(decoded.mean() - expected) < 5 * decoded.std() / sqrt(n)


@each_family
def test_the_variance_of_the_decoded_mean_is_that_of_its_votes(noise):
    """And less than (b/2φ0)²/M, which it reaches where there is no signal."""
    n, b = 50_000, 2.0
    for updates in ([0.0], [0.0] * 10, (1.0, 1.0, 1.0), (-2.0, 0.6, 3.0)):
        most = (b / (2 * noise.density_at_zero)) ** 2 / len(updates)
        p = noise.cdf(np.array(updates) / b)
        expected = most * np.mean(4 * p * (1 - p))
        decoded = estimates(updates, noise, b, n, seed=4)
        squares = np.square(decoded - decoded.mean())
        assert abs(squares.mean() - expected) < 5 * squares.std() / sqrt(n) + 1e-4 * most
        assert expected <= most


@pytest.mark.parametrize(
    ("noise", "constant"),
    [(Gaussian(), pi / 2), (Logistic(), 12 / pi**2), (Laplace(), 1 / 2), (Uniform(), 3.0)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_variance_of_a_vote_without_signal_is_a_constant_of_the_family(noise, constant):
    b = 2.0
    for vote in (0, 1):
        decoded = mean_from_votes([vote], 1, noise, b)
        assert np.square(decoded).item() == pytest.approx(constant * b**2)


def test_the_majority_gain_of_gaussian_noise_is_the_tabulated_one():
    kappas = {1: 0.399, 3: 0.598, 5: 0.748, 7: 0.873, 9: 0.982}
    for clients, kappa in kappas.items():
        assert majority_gain(Gaussian(), equal(clients)) / 2 == pytest.approx(kappa, abs=5e-4)


@each_family
def test_the_majority_gain_is_the_slope_of_the_expected_majority(noise):
    ratio = 1e-4
    positive = float(noise.cdf(ratio))
    for clients in (1, 2, 3, 4, 9, 10):
        expected = sum(
            comb(clients, k)
            * positive**k
            * (1 - positive) ** (clients - k)
            * np.sign(2 * k - clients)
            for k in range(clients + 1)
        )
        gain = majority_gain(noise, equal(clients))
        assert gain == pytest.approx(expected / ratio, rel=1e-3), clients


def test_the_majority_of_an_even_number_of_clients_gains_as_much_as_that_of_one_less():
    for clients in (2, 4, 10, 100):
        expected = majority_gain(Logistic(), equal(clients - 1))
        assert majority_gain(Logistic(), equal(clients)) == pytest.approx(expected)


def test_the_majority_gain_grows_as_the_square_root_of_the_number_of_clients_over_pi():
    gain = majority_gain(Gaussian(), equal(10_001))
    assert gain / 2 == pytest.approx(sqrt(10_001) / pi, rel=1e-3)


def test_the_majority_gain_of_slightly_unequal_weights_is_about_that_of_equal_ones():
    nearly = equal(101) + np.linspace(-1e-5, 1e-5, 101)
    expected = majority_gain(Gaussian(), equal(101))
    assert majority_gain(Gaussian(), nearly) == pytest.approx(expected, rel=0.01)


@each_family
def test_the_majority_gain_of_unequal_weights_is_the_slope_of_the_weighted_majority(noise):
    """By the central limit theorem, which ten votes are enough for to a few percent."""
    weights = np.arange(5, 15) / np.arange(5, 15).sum()
    ratio, total = 1e-3, 0.0
    positive = float(noise.cdf(ratio))
    for votes in product((1, -1), repeat=10):
        yes = votes.count(1)
        chance = positive**yes * (1 - positive) ** (10 - yes)
        total += chance * np.sign(np.dot(weights, votes).round(12))
    assert majority_gain(noise, weights) == pytest.approx(total / ratio, rel=0.05)


@dataclass(frozen=True)
class Cautious(VoteAggregator):
    """A custom rule: a step of 1 where all but `dissenters` votes agree, else none."""

    dissenters: int = 0

    def weights(self, ballot):
        return np.ones((len(ballot.packed), len(ballot.blocks)))

    def decode(self, votes, ballot, rng):
        clear = np.abs(votes) >= len(ballot.packed) - 2 * self.dissenters
        return np.where(clear, np.sign(votes), np.float32(0))


RULES = [
    Counts(),
    Majority(),
    Majority(ties="unchanged"),
    Majority(calibrated=True),
    Cautious(1),
]
ROWS = np.random.default_rng(0).standard_normal((6, 50))


def ballot(rows=ROWS, sizes=(30, 0, 20), noise=FAMILIES[0], scales=None, weights=None):
    scales = np.ones((len(rows), len(sizes))) if scales is None else np.array(scales)
    weights = equal(len(rows)) if weights is None else np.array(weights)
    votes = [pack_signs(row) for row in rows]
    return Ballot(votes, weights, Blocks(sizes), noise, None if noise is None else scales)


def decide(rule, ballot, seed=0):
    votes = ballot.sum(rule.weights(ballot))
    return rule.decode(votes, ballot, np.random.default_rng(seed))


@pytest.mark.parametrize("rule", RULES, ids=repr)
class TestEveryVoteAggregator:
    def test_weighs_each_clients_votes_on_each_block(self, rule):
        weights = rule.weights(ballot())
        assert weights.shape == (6, 3)
        assert np.all(weights >= 0)

    def test_gives_a_direction_of_the_votes_dimension_that_follows_from_the_generator(self, rule):
        direction = decide(rule, ballot())
        assert direction.shape == (50,)
        assert direction.dtype == np.float32
        np.testing.assert_array_equal(direction, decide(rule, ballot()))

    def test_points_where_all_votes_point_and_the_other_way_if_they_are_turned_around(self, rule):
        agreed = np.tile(np.sign(ROWS[0]), (5, 1))
        np.testing.assert_array_equal(np.sign(decide(rule, ballot(agreed))), agreed[0])
        odd = ROWS[:5]  # no ties, which are tossed
        np.testing.assert_array_equal(decide(rule, ballot(-odd)), -decide(rule, ballot(odd)))

    def test_decodes_the_votes_in_a_cohorts_answers(self, rule):
        votes, scales = ballot(), np.ones((6, 3), np.float32)
        answers = Answers(votes.packed, equal(6), votes.blocks, votes.noise, scales, scales)
        direction = rule.direction(answers, np.random.default_rng(0))
        np.testing.assert_array_equal(direction, decide(rule, votes))


def test_rules_that_need_no_noise_decode_votes_without_any():
    needy = [rule for rule in RULES if rule.needs_noise]
    assert needy == [Counts(), Majority(calibrated=True)]
    for rule in RULES:
        assert rule in needy or decide(rule, ballot(noise=None)).shape == (50,)


class TestDefaultLearningRate:
    def test_is_1_where_the_direction_has_the_size_of_an_update(self):
        for rule in (Counts(), Majority(calibrated=True)):
            assert rule.usual_rate(Gaussian()) == 1.0

    def test_of_a_plain_majority_is_that_of_the_theorem_or_must_be_given(self):
        theory = Theory(rounds=4, dim=25)
        assert Majority().usual_rate(Gaussian(theory)) == theory.learning_rate("signs")
        assert Majority().usual_rate(Gaussian()) is None
        assert Majority().usual_rate(None) is None


class TestMajorityRule:
    @pytest.mark.parametrize("weights", [None, [0.3, 0.2, 0.2, 0.2, 0.1]])
    def test_calibrated_is_the_majority_times_the_median_scale_over_its_gain(self, weights):
        scales = np.array([[1.0, 5, 2], [1, 5, 2], [3, 5, 4], [4, 5, 8], [9, 5, 6]])
        votes = ballot(ROWS[:5], scales=scales, weights=weights)
        gain = majority_gain(Gaussian(), votes.weights)
        expected = decide(Majority(), votes) * np.repeat([3 / gain, 4 / gain], [30, 20])
        direction = decide(Majority(calibrated=True), votes)
        np.testing.assert_allclose(direction, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("argument", "value", "error"),
        [
            ("ties", "up", ValueError),
            ("ties", 1, TypeError),
            ("calibrated", 1, TypeError),
            ("calibrated", "yes", TypeError),
        ],
    )
    def test_an_argument_that_is_none_of_the_allowed_is_refused_by_name(
        self, argument, value, error
    ):
        with pytest.raises(error, match=f"^{argument} must .*{value!r}"):
            Majority(**{argument: value})


class TestBallot:
    @given(
        # Float32 on the wire: products of them cannot vanish in float64.
        scales=hnp.arrays(np.float64, (6, 3), elements=st.floats(0, 10, width=32)),
        noise=st.sampled_from(FAMILIES),
    )
    def test_weights_for_the_mean_are_those_of_the_vote_times_what_a_vote_is_worth(
        self, scales, noise
    ):
        votes = ballot(noise=noise, scales=scales, weights=np.arange(1, 7) / 21)
        assert votes.vote_weights().tolist() == [[k / 21] * 3 for k in range(1, 7)]
        worth = scales / (2 * noise.density_at_zero)
        np.testing.assert_allclose(votes.mean_weights(), votes.vote_weights() * worth)

    def test_without_noise_every_clients_votes_have_its_weight(self):
        votes = ballot(noise=None)
        np.testing.assert_array_equal(votes.mean_weights(), votes.vote_weights())

    def test_the_sum_is_of_signs_times_weights(self):
        weights = np.random.default_rng(1).uniform(0, 1, (6, 3))
        expected = (np.repeat(weights, (30, 0, 20), axis=1) * np.sign(ROWS)).sum(axis=0)
        np.testing.assert_allclose(ballot().sum(weights), expected, rtol=1e-5, atol=1e-6)


def topped_up(magnitudes, scales, weights=None, aggregator=None):
    """A ballot on one block of 8 coordinates, whose noise tops these magnitudes up."""
    magnitudes = np.array(magnitudes, dtype=np.float64)[:, None]
    packed = [np.full(1, 255, np.uint8)] * len(magnitudes)  # all clients agree
    scales = np.broadcast_to(np.array(scales, dtype=np.float64).reshape(-1, 1), magnitudes.shape)
    weights = equal(len(magnitudes)) if weights is None else weights
    return Ballot(packed, weights, Blocks((8,)), Gaussian(TopUp()), scales, magnitudes)


def length(ballot):
    (one,) = ballot.step_lengths(np.square(ballot.mean_weights()).sum(axis=0))
    return one


class TestStepLengths:
    """The factor of a decoded step: what clipped clients are short of, as far as noise allows."""

    @pytest.mark.parametrize(("clients", "share"), [(1, 0.66), (2, 0.81), (3, 0.93)])
    def test_a_step_of_few_clients_is_shortened(self, clients, share):
        assert length(topped_up([1.0] * clients, clients**0.08)) == pytest.approx(share, abs=0.005)

    @pytest.mark.parametrize("clients", [4, 5, 10, 30, 100])
    def test_a_step_of_four_clients_that_are_alike_and_more_is_taken_whole(self, clients):
        assert length(topped_up([1.0] * clients, clients**0.08)) == 1.0

    @given(
        sizes=hnp.arrays(np.float64, st.integers(1, 8), elements=st.floats(0, 100)),
        level=st.floats(1e-3, 100),
        seed=st.integers(0, 99),
    )
    def test_what_noise_is_left_is_at_most_a_quarter_of_the_updates_energy(
        self, sizes, level, seed
    ):
        weights = np.random.default_rng(seed).dirichlet(np.ones(len(sizes)))
        factor = length(topped_up(sizes, level, weights))
        known = [min(size, level) ** 2 for size in sizes]
        noise = sum(w**2 * (pi / 2 * level**2 - k) for w, k in zip(weights, known, strict=True))
        energy = sum(w * k for w, k in zip(weights, known, strict=True))
        assert 0 <= factor < np.inf
        assert factor**2 * noise <= NOISE_ALLOWANCE * energy * (1 + 1e-9)
        if factor < 1:
            assert factor**2 * noise == pytest.approx(NOISE_ALLOWANCE * energy)

    def test_what_clipped_clients_are_short_of_is_made_good(self):
        """Of ten, three count as if of size 1.2, by .6 of their weight: .88 in all."""
        assert length(topped_up([1.0] * 7 + [2.0] * 3, 1.2)) == pytest.approx(1 / 0.88)
        weights = np.array([0.05] * 7 + [0.3, 0.25, 0.1])
        factor = length(topped_up([1.0] * 7 + [2.0] * 3, 1.2, weights))
        assert factor == pytest.approx(1 / (0.35 + 0.65 * 0.6))

    def test_of_the_longest_fifth_no_more_is_made_good_than_of_the_next(self):
        """Two of ten may lie: they count as if of the size of the third."""
        assert length(topped_up([1.0] * 8 + [9.0] * 2, 1.2)) == 1.0
        three = length(topped_up([1.0] * 7 + [2.0, 9.0, 1e30], 1.2))
        assert three == pytest.approx(1 / 0.88)

    def test_no_more_is_made_good_than_noise_allows(self):
        """All of four are clipped to a hundredth: whole their noise would drown them."""
        factor = length(topped_up([100.0] * 4, 1.0))
        assert factor == pytest.approx(np.sqrt(NOISE_ALLOWANCE * 4 / (pi / 2 - 1)))

    def test_a_block_whose_level_is_zero_stays_as_it_is(self):
        assert length(topped_up([1.0] * 5, 0.0)) == 1.0

    def test_a_block_that_nobody_moved_does_not_move_though_there_is_noise(self):
        assert length(topped_up([0.0] * 5, 1.0)) == 0.0

    @pytest.mark.parametrize("claim", [0.0, 1e30])
    def test_no_claim_of_one_client_of_ten_changes_the_step(self, claim):
        assert length(topped_up([claim] + [1.0] * 9, 10**0.08)) == 1.0

    @pytest.mark.parametrize("claim", [0.0, 1e30])
    def test_no_claim_lengthens_a_step_by_more_than_if_it_were_the_level(self, claim):
        most = length(topped_up([1.0] + [0.1] * 3, 1.0))
        assert length(topped_up([claim] + [0.1] * 3, 1.0)) <= most

    @pytest.mark.parametrize("rule", [Counts(), Majority(calibrated=True)], ids=repr)
    def test_an_estimate_of_the_mean_takes_its_share(self, rule):
        ballot = topped_up([1.0, 1.0], 2**0.08)
        votes = ballot.sum(rule.weights(ballot))
        taken = rule.decode(votes.copy(), ballot, np.random.default_rng(0))
        unknown = replace(ballot, magnitudes=None)
        whole = rule.decode(votes.copy(), unknown, np.random.default_rng(0))
        assert 0 < taken[0] < whole[0]
        np.testing.assert_allclose(taken, taken[0])

    def test_a_majority_that_is_not_calibrated_moves_by_the_learning_rate_whatever_the_noise(self):
        ballot = topped_up([1.0], 1.0)
        votes = ballot.sum(Majority().weights(ballot))
        np.testing.assert_array_equal(
            Majority().decode(votes, ballot, np.random.default_rng(0)), 1.0
        )

    def test_noise_that_does_not_top_up_leaves_the_step_as_it_is(self):
        assert length(replace(topped_up([1.0], 1.0), magnitudes=None)) == 1.0
