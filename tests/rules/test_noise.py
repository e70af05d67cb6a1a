"""The contract of every noise family, and which laws ours are. Every draw is seeded.

A new family is covered once its name stands in `FAMILIES`.
"""

from dataclasses import FrozenInstanceError
from math import inf, nan, pi, sqrt

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import trapezoid

from fedmedian import Adaptive, Gaussian, Laplace, Logistic, Theory, Uniform, unpack_signs
from fedmedian.kernels.encoding import ROUGH_ERROR, pack_noisy_signs
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.rules.scales import Fixed

FAMILIES = [Gaussian, Logistic, Laplace, Uniform]

LAWS = {
    Gaussian: stats.norm(),
    Logistic: stats.logistic(scale=sqrt(3) / pi),
    Laplace: stats.laplace(scale=1 / sqrt(2)),
    Uniform: stats.uniform(-sqrt(3), 2 * sqrt(3)),
}

each_family = pytest.mark.parametrize("family", FAMILIES)

# Kinks, at 0 for Laplace and at ±√3 for the uniform, lie between the points.
GRID = np.linspace(-6.0, 6.0, 2400)
WIDE = np.linspace(-40, 40, 800_001)


@each_family
def test_noise_is_float32_of_the_size_asked_for_and_follows_from_the_generator(family):
    for size in (0, 1, 9):
        noise, again = (family().sample(np.random.default_rng(3), size) for _ in range(2))
        assert noise.shape == (size,)
        assert noise.dtype == np.float32
        assert np.array_equal(noise, again)
    assert not np.array_equal(noise, family().sample(np.random.default_rng(4), size))


@each_family
def test_noise_has_mean_0_and_variance_1(family):
    n = 400_000
    noise = family().sample(np.random.default_rng(1), n).astype(np.float64)
    squares = np.square(noise)
    assert abs(noise.mean()) < 5 / sqrt(n)
    assert abs(squares.mean() - 1) < 5 * squares.std() / sqrt(n)


@each_family
@pytest.mark.parametrize("draw", ["sample", "sample_finely"])
def test_noise_follows_its_cdf(family, draw):
    noise = getattr(family(), draw)(np.random.default_rng(2), 50_000).astype(np.float64)
    assert stats.kstest(noise, family().cdf).pvalue > 1e-6


@each_family
def test_a_client_votes_plus_with_probability_cdf_of_its_update_over_the_scale(family):
    b, clients, ratios = 0.25, 100_000, np.linspace(-2.5, 2.5, 21)
    update = np.tile(np.float32(b * ratios), clients)
    rng = np.random.default_rng(5)
    votes = pack_noisy_signs([update], update.size, family(), np.float32([b]), rng)
    signs = unpack_signs(votes, update.size).reshape(clients, -1)
    frequencies, expected = np.mean(signs > 0, axis=0), family().cdf(ratios)
    spread = np.sqrt(expected * (1 - expected) / clients)
    # Where the law leaves no choice, neither do the votes.
    assert np.all(np.abs(frequencies - expected) <= 5 * spread)


@each_family
def test_the_rough_vote_is_as_close_to_the_law_as_promised(family):
    x = np.concatenate([np.linspace(-9, 9, 1_000_001), [inf, -inf, 1e30, -1e30, 1e-40]])
    with np.errstate(over="ignore"):
        rough = family().rough_vote(x.astype(np.float32))
    assert rough.dtype == np.float32
    assert np.abs(rough - (2 * family().cdf(x) - 1)).max() < 0.9 * ROUGH_ERROR
    assert np.abs(rough).max() <= 1


@each_family
def test_the_density_of_noise_is_symmetric_and_falls_from_its_peak_at_zero(family):
    density, noise = family().density(GRID), family()
    np.testing.assert_allclose(density, density[::-1], rtol=1e-9)
    assert np.all(np.diff(density[GRID < 0]) >= 0)
    assert noise.density(0.0) == pytest.approx(family().density_at_zero, rel=1e-12)
    assert density.max() <= family().density_at_zero
    assert noise.density([-inf, inf]).tolist() == [0.0, 0.0]


@each_family
@pytest.mark.filterwarnings("error")
def test_the_law_of_noise_is_known_at_any_distance_without_a_warning(family):
    for far in (np.float32(1e30), np.float64(1e200), inf):
        assert (family().cdf(far), family().cdf(-far)) == (1, 0)
        assert family().density(far) == family().density(-far) == 0


@each_family
def test_the_density_of_noise_adds_up_to_1_with_variance_1(family):
    density = family().density(WIDE)
    assert trapezoid(density, WIDE) == pytest.approx(1, abs=1e-4)
    assert trapezoid(WIDE**2 * density, WIDE) == pytest.approx(1, abs=1e-3)


@each_family
def test_the_cdf_of_noise_is_the_integral_of_its_density(family):
    noise, h = family(), 1e-5
    slopes = (noise.cdf(GRID + h) - noise.cdf(GRID - h)) / (2 * h)
    np.testing.assert_allclose(noise.density(GRID), slopes, rtol=1e-5, atol=1e-9)
    assert noise.cdf([-inf, 0.0, inf]).tolist() == [0.0, 0.5, 1.0]
    assert np.isnan(noise.cdf(nan))


@each_family
@pytest.mark.parametrize("function", ["cdf", "density"])
def test_the_law_of_noise_keeps_shape_and_precision_and_takes_plain_numbers(family, function):
    law = getattr(family(), function)
    for dtype in (np.float32, np.float64):
        values = law(np.zeros((2, 3), dtype))
        assert values.shape == (2, 3)
        assert values.dtype == dtype
    for other in (np.float16, np.longdouble, np.int32):
        assert law(np.ones(2, other)).dtype == np.float64
        assert law(np.ones(2, other)).tolist() == law(np.ones(2)).tolist()
    assert law([0, 1]).dtype == np.float64
    assert law(1) == law(1.0)


@each_family
def test_noise_takes_a_number_or_a_rule_as_its_scale_and_adapts_by_default(family):
    assert family(0.5).rule == Fixed(0.5)
    for rule in (Adaptive(0.1, magnitude="max"), Theory(10, 10)):
        assert family(rule).rule is rule
    assert family().rule == Adaptive(3.0)


@each_family
def test_noise_refuses_what_is_no_scale(family):
    for scale in (0, -1.0, inf, nan, 1e-50, 1e300):
        with pytest.raises(ValueError, match=r"^scale must "):
            family(scale)
    for scale in ("1", None, True, [1.0], Adaptive):
        with pytest.raises(TypeError, match=r"^scale must "):
            family(scale)


@each_family
def test_noise_is_a_value(family):
    assert family(0.5) == family(0.5)
    assert family(0.5) != family(0.6)
    with pytest.raises(FrozenInstanceError):
        family(0.5).scale = 1.0


@pytest.mark.parametrize(("family", "law"), LAWS.items())
def test_noise_has_the_law_that_its_family_is_named_after(family, law):
    np.testing.assert_allclose(family().cdf(GRID), law.cdf(GRID), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(family().density(GRID), law.pdf(GRID), rtol=1e-9)
    assert family().density_at_zero == pytest.approx(law.pdf(0), rel=1e-15)


def test_uniform_noise_stays_within_root_three():
    noise = Uniform().sample(np.random.default_rng(6), 100_000)
    assert np.abs(noise).max() <= np.float32(sqrt(3))
    assert np.abs(noise).max() > 1.73


def test_every_noise_family_is_known_on_the_wire_by_its_name():
    assert set(NOISE_FAMILIES) == set(FAMILIES)
    assert all(NOISE_FAMILIES.find(family.name) is family for family in FAMILIES)
