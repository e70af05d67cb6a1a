"""The mean decoded from votes: its bias and its variance. Every draw is seeded."""

from itertools import product
from math import comb, pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Gaussian, Laplace, Logistic, Uniform, count_votes, mean_from_votes, pack_signs
from fedmedian.decoding import majority_gain

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
