"""The contract of every noise family, and each family's own law."""

from dataclasses import FrozenInstanceError
from math import erf, exp, inf, nan, pi, sqrt

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import kstest

from fedmedian import Adaptive, Gaussian, Laplace, Logistic, Theory, Uniform
from fedmedian.kernels.signs import pack_signs
from fedmedian.kernels.votes import count_votes
from fedmedian.noise import NOISE_FAMILIES
from fedmedian.scales import Fixed

FAMILIES = [Gaussian, Logistic, Laplace, Uniform]

NAIVE_CDF = {
    Gaussian: lambda x: (1 + erf(x / sqrt(2))) / 2,
    Logistic: lambda x: 1 / (1 + exp(-pi * x / sqrt(3))),
    Laplace: lambda x: exp(sqrt(2) * x) / 2 if x < 0 else 1 - exp(-sqrt(2) * x) / 2,
    Uniform: lambda x: min(max((x + sqrt(3)) / (2 * sqrt(3)), 0.0), 1.0),
}

GRID = np.linspace(-6.0, 6.0, 2401)


def test_every_family_is_known_on_the_wire_by_its_name():
    assert set(NOISE_FAMILIES) == set(FAMILIES)
    assert all(NOISE_FAMILIES.find(family.name) is family for family in FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_samples_are_float32_of_the_size_asked_for(self, family):
        rng = np.random.default_rng(0)
        for size in (0, 1, 5):
            sample = family().sample(rng, size)
            assert sample.shape == (size,)
            assert sample.dtype == np.float32

    def test_samples_have_mean_0_and_variance_1(self, family):
        n = 400_000
        sample = family().sample(np.random.default_rng(1), n).astype(np.float64)
        squares = np.square(sample)
        assert abs(sample.mean()) < 4 / sqrt(n)
        assert abs(squares.mean() - 1) < 4 * squares.std() / sqrt(n)

    def test_samples_follow_the_cdf(self, family):
        sample = family().sample(np.random.default_rng(2), 50_000).astype(np.float64)
        assert kstest(sample, family().cdf).pvalue > 1e-3

    def test_samples_follow_from_the_generator(self, family):
        first, second = (family().sample(np.random.default_rng(3), 9) for _ in range(2))
        other = family().sample(np.random.default_rng(4), 9)
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)

    def test_a_client_votes_plus_with_probability_cdf_of_its_update_over_the_scale(self, family):
        b, clients, ratios = 0.25, 20_000, np.linspace(-2.5, 2.5, 21)
        rng, noise = np.random.default_rng(5), family()
        update = (b * ratios).astype(np.float32)
        votes = [
            pack_signs(update + np.float32(b) * noise.sample(rng, update.size))
            for _ in range(clients)
        ]
        counts = count_votes(votes, update.size)
        expected = noise.cdf(ratios)
        certain = (expected == 0) | (expected == 1)
        assert np.array_equal(counts[certain], clients * expected[certain])
        spread = np.sqrt(clients * expected * (1 - expected))[~certain]
        z_scores = (counts - clients * expected)[~certain] / spread
        assert np.abs(z_scores).max() < 4
        # Chi-square over the grid: mean k, variance 2k.
        k = z_scores.size
        assert np.square(z_scores).sum() < k + 4 * sqrt(2 * k)

    def test_cdf_is_a_symmetric_unimodal_distribution(self, family):
        cdf = family().cdf(GRID)
        assert np.all(np.diff(cdf) >= 0)
        np.testing.assert_allclose(cdf + cdf[::-1], 1, atol=1e-12)
        bends = np.diff(cdf, 2)
        middle = bends.size // 2
        assert np.all(bends[:middle] >= -1e-12)
        assert np.all(bends[middle + 1 :] <= 1e-12)
        assert family().cdf([-inf, 0.0, inf]).tolist() == [0.0, 0.5, 1.0]

    def test_cdf_equals_the_textbook(self, family):
        expected = [NAIVE_CDF[family](float(x)) for x in GRID]
        np.testing.assert_allclose(family().cdf(GRID), expected, rtol=1e-9, atol=1e-12)

    def test_cdf_has_the_slope_density_at_zero(self, family):
        h = 1e-6
        below, above = family().cdf([-h, h])
        assert (above - below) / (2 * h) == pytest.approx(family().density_at_zero, rel=1e-5)

    def test_density_is_the_derivative_of_the_cdf(self, family):
        # Kinks, at 0 for Laplace and at ±√3 for the uniform, lie between the points.
        points, h = np.linspace(-6.0, 6.0, 500) + 1e-4, 1e-5
        slopes = (family().cdf(points + h) - family().cdf(points - h)) / (2 * h)
        np.testing.assert_allclose(family().density(points), slopes, rtol=1e-5, atol=1e-9)

    def test_density_is_symmetric_unimodal_and_adds_up_to_1(self, family):
        density = family().density(GRID)
        assert np.all(density >= 0)
        np.testing.assert_allclose(density, density[::-1], rtol=1e-12)
        assert np.all(np.diff(density[GRID <= 0]) >= 0)
        wide = np.linspace(-40, 40, 800_001)
        assert trapezoid(family().density(wide), wide) == pytest.approx(1, abs=1e-4)
        assert family().density([-inf, inf]).tolist() == [0.0, 0.0]

    def test_density_at_zero_is_its_peak(self, family):
        assert family().density(0.0) == pytest.approx(family().density_at_zero, rel=1e-12)
        assert family().density(GRID).max() == pytest.approx(family().density_at_zero, rel=1e-12)

    def test_density_has_variance_1(self, family):
        wide = np.linspace(-40, 40, 800_001)
        second = trapezoid(wide**2 * family().density(wide), wide)
        assert second == pytest.approx(1, abs=1e-3)

    def test_density_keeps_shape_and_precision_and_takes_plain_numbers(self, family):
        for dtype in (np.float32, np.float64):
            values = family().density(np.zeros((2, 3), dtype))
            assert values.shape == (2, 3)
            assert values.dtype == dtype
        assert family().density([0, 1]).dtype == np.float64
        assert family().density(1) == family().density(1.0)

    def test_cdf_keeps_shape_and_precision_and_takes_plain_numbers(self, family):
        for dtype in (np.float32, np.float64):
            values = family().cdf(np.zeros((2, 3), dtype))
            assert values.shape == (2, 3)
            assert values.dtype == dtype
        assert family().cdf([0, 1]).dtype == np.float64
        assert family().cdf(0) == 0.5
        assert np.isnan(family().cdf(nan))

    def test_a_number_is_a_scale_that_never_changes(self, family):
        assert family(0.5).rule == Fixed(0.5)
        assert family(2).rule.first(3, "signs").tolist() == [2.0, 2.0, 2.0]

    @pytest.mark.parametrize("rule", [Adaptive(0.1, magnitude="max"), Theory(10, 10)])
    def test_a_scale_rule_is_kept(self, family, rule):
        assert family(rule).rule is rule

    def test_the_scale_adapts_unless_told_otherwise(self, family):
        assert family().rule == Adaptive(3.0)

    @pytest.mark.parametrize("scale", [0, 0.0, -1.0, inf, -inf, nan])
    def test_a_scale_out_of_range_is_refused(self, family, scale):
        with pytest.raises(ValueError, match=r"^scale must be .*> 0, got"):
            family(scale)

    @pytest.mark.parametrize("scale", ["1", None, True, [1.0], Adaptive])
    def test_a_scale_of_another_type_is_refused(self, family, scale):
        with pytest.raises(TypeError, match=r"^scale must be a number, got"):
            family(scale)

    def test_is_a_value(self, family):
        assert family(0.5) == family(0.5)
        assert family(0.5) != family(0.6)
        with pytest.raises(FrozenInstanceError):
            family(0.5).scale = 1.0


@pytest.mark.parametrize(
    ("family", "density"),
    [
        (Gaussian, 1 / sqrt(2 * pi)),
        (Logistic, pi / (4 * sqrt(3))),
        (Laplace, 1 / sqrt(2)),
        (Uniform, 1 / (2 * sqrt(3))),
    ],
)
def test_density_at_zero(family, density):
    assert family().density_at_zero == pytest.approx(density, rel=1e-15)


def test_uniform_noise_stays_within_root_three():
    sample = Uniform().sample(np.random.default_rng(6), 100_000)
    assert np.abs(sample).max() <= np.float32(sqrt(3))
    assert np.abs(sample).max() > 1.73
