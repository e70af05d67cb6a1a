"""The mean decoded from votes: its bias and its variance."""

from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Gaussian, Laplace, Logistic, Uniform, count_votes, mean_from_votes, pack_signs

FAMILIES = [Gaussian(), Logistic(), Laplace(), Uniform()]


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


class TestFormula:
    @given(
        counts=st.integers(1, 50).flatmap(
            lambda m: st.tuples(
                st.just(m), hnp.arrays(np.int32, st.integers(0, 9), elements=st.integers(0, m))
            )
        ),
        noise=st.sampled_from(FAMILIES),
        b=st.floats(1e-6, 1e6),
    )
    def test_is_the_mean_sign_times_what_a_sign_is_worth(self, counts, noise, b):
        clients, positive = counts
        decoded = mean_from_votes(positive, clients, noise, b)
        assert decoded.dtype == np.float32
        expected = [
            b / (2 * noise.density_at_zero) * (k - (clients - k)) / clients
            for k in positive.tolist()
        ]
        np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-6 * b)

    def test_each_coordinate_may_have_a_scale_of_its_own(self):
        decoded = mean_from_votes([2, 2, 0], 2, Uniform(), np.array([1.0, 2.0, 3.0]))
        assert decoded == pytest.approx([sqrt(3), 2 * sqrt(3), -3 * sqrt(3)])

    def test_the_noises_own_scale_plays_no_part(self):
        assert mean_from_votes([3], 4, Gaussian(7.0), 1.0) == mean_from_votes(
            [3], 4, Gaussian(), 1.0
        )

    @pytest.mark.parametrize("num_votes", [0, -1])
    def test_without_votes_there_is_nothing_to_decode(self, num_votes):
        with pytest.raises(ValueError, match=f"num_votes must be >= 1, got {num_votes}"):
            mean_from_votes([0], num_votes, Gaussian(), 1.0)


class TestBias:
    @pytest.mark.parametrize("b", [5.0, 10.0, 20.0])
    def test_gaussian_bias_is_minus_the_mean_cube_over_six_b_squared(self, b):
        updates = np.array([0.5, 1.0, 2.0, -0.3])
        bias = expected_estimate(updates, Gaussian(), b) - updates.mean()
        leading = -np.mean(updates**3) / (6 * b**2)
        # The next term is smaller by about 3/20·(g/b)².
        assert bias == pytest.approx(leading, rel=0.2 * (2 / b) ** 2, abs=3e-7)

    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_noise_much_larger_than_the_updates_leaves_no_bias(self, noise):
        updates = np.array([1.0, 2.0, 10.0])
        assert expected_estimate(updates, noise, 1e4) == pytest.approx(updates.mean(), rel=2e-3)

    @given(
        updates=hnp.arrays(np.float64, st.integers(1, 9), elements=st.floats(-1, 1)),
        b=st.floats(1 / sqrt(3), 100),
    )
    def test_uniform_noise_that_covers_the_updates_has_exactly_none(self, updates, b):
        estimate = expected_estimate(updates, Uniform(), b)
        assert estimate == pytest.approx(updates.mean(), abs=1e-6 * (1 + b))

    def test_uniform_noise_that_does_not_cover_an_update_clips_it(self):
        assert expected_estimate([1.0, 100.0], Uniform(), 1.0) == pytest.approx((1 + sqrt(3)) / 2)

    @pytest.mark.parametrize(
        ("noise", "b"), [(Gaussian(), 1.0), (Logistic(), 1.0), (Laplace(), 1.0), (Uniform(), 0.6)]
    )
    def test_real_votes_have_that_expectation(self, noise, b):
        updates, n = (0.1, 0.2, 1.0), 200_000
        decoded = estimates(updates, noise, b, n, seed=1)
        expected = expected_estimate(updates, noise, b)
        assert abs(decoded.mean() - expected) < 4 * decoded.std() / sqrt(n)

    def test_the_gaussian_bias_shows_in_real_votes(self):
        updates, b, n = np.array([0.1, 0.2, 1.0]), 1.5, 400_000
        decoded = estimates(updates, Gaussian(), b, n, seed=2)
        bias, standard_error = decoded.mean() - updates.mean(), decoded.std() / sqrt(n)
        leading = -np.mean(updates**3) / (6 * b**2)
        assert abs(bias - leading) < 4 * standard_error + 0.1 * abs(leading)
        assert bias < -4 * standard_error

    def test_uniform_votes_show_none(self):
        updates, n = np.array([0.1, 0.2, 1.0]), 400_000
        decoded = estimates(updates, Uniform(), 1 / sqrt(3), n, seed=3)
        assert abs(decoded.mean() - updates.mean()) < 4 * decoded.std() / sqrt(n)


class TestVariance:
    """Of (1/M) Σ s_i times b/(2φ0): largest, and reached, where there is no signal."""

    @pytest.mark.parametrize("clients", [1, 3, 10])
    @pytest.mark.parametrize(
        ("noise", "constant"),
        [(Gaussian(), pi / 2), (Uniform(), 3.0), (Laplace(), 1 / 2), (Logistic(), 12 / pi**2)],
    )
    def test_without_signal_it_is_a_constant_times_b_squared_over_m(self, clients, noise, constant):
        b, n = 2.0, 50_000
        decoded = estimates([0.0] * clients, noise, b, n, seed=4)
        squares = np.square(decoded)
        bound = constant * b**2 / clients
        tolerance = 4 * squares.std() / sqrt(n) + 1e-4 * bound
        assert abs(squares.mean() - bound) < tolerance

    @pytest.mark.parametrize(("noise", "constant"), [(Gaussian(), pi / 2), (Uniform(), 3.0)])
    @pytest.mark.parametrize("updates", [(0.5, 0.5, 0.5), (-1.0, 0.3, 1.5), (1.7, 1.7, 1.7)])
    def test_signal_only_makes_it_smaller(self, noise, constant, updates):
        b, n = 1.0, 50_000
        decoded = estimates(updates, noise, b, n, seed=5)
        naive = sum(4 * p * (1 - p) for p in noise.cdf(np.array(updates) / b))
        naive *= (b / (2 * noise.density_at_zero) / len(updates)) ** 2
        assert decoded.var() == pytest.approx(naive, rel=0.05, abs=1e-6)
        assert naive < constant * b**2 / len(updates)
