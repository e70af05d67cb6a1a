"""The smoothed median: the root it is, its limits, its influence, its price.

Every draw is seeded.
"""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq

from fedmedian import Gaussian, Laplace, Logistic, Uniform, coordinate_median, smoothed_median

SMOOTH = [Gaussian(), Logistic(), Laplace()]
TOLERANCE = 1e-6

each_family = pytest.mark.parametrize("noise", SMOOTH, ids=lambda noise: noise.name)

ODD = {
    "the toy": [1.0, 2.0, 10.0],
    "evenly spread": [-2.0, -1.0, 0.0, 1.0, 2.5],
    "one outlier": [0.1, 0.2, 0.3, 0.35, 1e6],
    "an absurd outlier": [0.378, 0.4, 2e14],
    "outliers on both sides": [-1e5, -1.0, 0.0, 0.5, 1e7],
    "two camps of different sizes": [-1.0, -1.1, 3.0, 3.1, 3.2],
    "all the same": [0.7, 0.7, 0.7],
    "a client": [3.0],
    "tiny": [1e-9, 2e-9, 9e-9],
    "middle lost in float32": [-65293008.2, -27400153.04, 208.6],
    "many": np.random.default_rng(0).standard_cauchy(41).tolist(),
}
EVEN = {
    "a pair": [1.0, 2.0],
    "four": [0.0, 0.1, 1.0, 4.0],
    "four, one an outlier": [1.0, 2.0, 3.0, 1e6],
}
# Where the two middle clients are many scales apart, the root is not to be told from others.
EVEN_SCALES = (0.3, 1.0, 30.0, 1000.0)


def one(values, noise, scale):
    """The smoothed median of numbers."""
    return float(smoothed_median([np.array([value]) for value in values], noise, scale)[0])


def excess(m, values, noise, scale):
    """What is zero at the root: Σ_i [2F((m − u_i)/b) − 1]."""
    return float(np.sum(2 * noise.cdf((m - np.array(values)) / scale) - 1))


def naive(values, noise, scale):
    low, high = min(values), max(values)
    if low == high:
        return low
    return brentq(excess, low, high, args=(values, noise, scale), xtol=1e-14, rtol=1e-14)


@each_family
def test_the_smoothed_median_is_the_root_that_brents_method_finds(noise):
    for name, values in {**ODD, **EVEN}.items():
        for scale in EVEN_SCALES if name in EVEN else np.logspace(-3, 3, 13):
            expected = naive(values, noise, scale)
            allowed = TOLERANCE * max(scale, abs(expected))
            root = one(values, noise, scale)
            assert root == pytest.approx(expected, abs=allowed, rel=0), (name, scale)


@each_family
@pytest.mark.parametrize("gap", [12.0, 20.0, 40.0, 1e3, 1e6])
def test_between_two_camps_far_apart_the_smoothed_median_is_a_root_near_the_median(noise, gap):
    for values in ([-2.0, -1.0, gap, gap + 9.0], [-1.0, 0.0, 0.0, gap, gap + 1.0, gap + 5.0]):
        root = one(values, noise, 1.0)
        assert abs(root - np.median(values)) < 1
        assert abs(excess(root, values, noise, 1.0)) < 1e-6


@given(
    values=hnp.arrays(np.float64, st.integers(1, 9), elements=st.floats(-1e6, 1e6)),
    scale=st.floats(1e-3, 1e3),
    noise=st.sampled_from(SMOOTH),
)
def test_clients_pull_down_above_the_smoothed_median_and_up_below_it(values, scale, noise):
    values = values.astype(np.float32).astype(np.float64)
    root = one(values, noise, scale)
    allowed = TOLERANCE * max(scale, abs(root))
    # Where no client is near, all pulls are ±1 to the last bit, and the sum is flat at zero.
    rounding = 1e-14 * len(values)
    assert excess(root + allowed, values, noise, scale) >= -rounding
    assert excess(root - allowed, values, noise, scale) <= rounding


@pytest.mark.parametrize("dim", [40, 300_000])
def test_each_coordinate_has_a_smoothed_median_and_may_have_a_scale_of_its_own(dim):
    """Even where there are more coordinates than are worked on at once."""
    rows = np.tile(np.random.default_rng(0).standard_normal((5, 4)), dim // 4).astype(np.float32)
    scales = np.tile([1e-3, 0.0, 0.5, 1e3], dim // 4)
    together = smoothed_median(rows, Gaussian(), scales)
    assert together.shape == (dim,)
    assert together.dtype == np.float32
    alone = [one(rows[:, i], Gaussian(), scales[i]) for i in range(4)]
    np.testing.assert_allclose(together, np.tile(alone, dim // 4), rtol=1e-6, atol=1e-6)


@each_family
def test_the_order_of_the_clients_does_not_matter_to_the_smoothed_median(noise):
    rows = np.random.default_rng(1).standard_normal((7, 50))
    usual, reversed_ = (smoothed_median(r, noise, 0.7) for r in (rows, rows[::-1]))
    np.testing.assert_allclose(usual, reversed_, rtol=1e-6, atol=1e-6)


@each_family
def test_the_smoothed_median_moves_and_grows_with_the_clients(noise):
    values = np.array([1.0, 2.0, 4.0, 9.0])
    moved = one(-3 * values + 7, noise, 3 * 1.5)
    assert moved == pytest.approx(-3 * one(values, noise, 1.5) + 7, rel=1e-5)


@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 10), st.integers(0, 6)),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    ),
    noise=st.sampled_from(SMOOTH),
)
def test_the_smoothed_median_of_scale_zero_is_the_median(rows, noise):
    np.testing.assert_array_equal(smoothed_median(rows, noise, 0.0), coordinate_median(rows))


@each_family
def test_the_smoothed_median_tends_to_the_median_as_the_scale_vanishes(noise):
    for clients in (1, 3, 9):
        rows = np.random.default_rng(0).standard_normal((clients, 30))
        roots = smoothed_median(rows, noise, 1e-7)
        np.testing.assert_allclose(roots, np.median(rows, axis=0), atol=1e-6)


# A smooth density bends the sum of pulls to second order, the peak of Laplace's to first.
@pytest.mark.parametrize(
    ("noise", "rel"), [(Gaussian(), 1e-3), (Logistic(), 1e-3), (Laplace(), 2e-2)]
)
def test_the_smoothed_median_tends_to_the_mean_as_the_scale_grows(noise, rel):
    for clients in (1, 2, 5, 10):
        rows = 5 + np.random.default_rng(0).standard_normal((clients, 30))
        roots = smoothed_median(rows, noise, 100.0)
        np.testing.assert_allclose(roots, rows.mean(axis=0), rtol=rel)


@each_family
def test_the_smoothed_median_is_what_the_median_of_many_noisy_copies_tends_to(noise):
    draws, copies, scale = np.random.default_rng(2), 20_001, 5.0
    values = (1.0, 2.0, 10.0)
    noisy = np.concatenate([value + scale * noise.sample(draws, copies) for value in values])
    spread = scale / (2 * noise.density_at_zero) / sqrt(noisy.size)
    # The density at the root, over three spread clients, is less than at zero.
    assert np.median(noisy) == pytest.approx(one(values, noise, scale), abs=7 * spread)


def test_the_smoothed_median_of_one_client_is_that_client():
    row = np.array([1.0, -3.0, 0.0, 1e8], np.float32)
    for scale in (0.0, 1e-3, 1e3):
        assert smoothed_median([row], Gaussian(), scale).tolist() == row.tolist()


def test_the_smoothed_median_of_no_coordinates_is_empty():
    rows = [np.empty(0, np.float32)] * 3
    for scale in (0.0, 1.0, np.empty(0)):
        assert smoothed_median(rows, Gaussian(), scale).shape == (0,)


@each_family
def test_one_client_moves_the_smoothed_median_by_no_more_than_order_b_over_m(noise):
    for clients in (11, 101, 1001):
        honest = np.random.default_rng(0).normal(0, 0.1, clients - 1)
        scale, usual = 1.0, one(honest, noise, 1.0)
        influence = scale / (2 * noise.density_at_zero) / clients
        for lie in (1e2, 1e6, 1e30):
            moved = [one([*honest, sign * lie], noise, scale) - usual for sign in (1, -1)]
            assert 0.8 * influence < moved[0] < 1.3 * influence
            assert -1.3 * influence < moved[1] < -0.8 * influence


@each_family
def test_a_lie_to_the_smoothed_median_gains_nothing_by_being_larger(noise):
    honest = np.random.default_rng(0).standard_normal(9).tolist()
    far, farther = (one([*honest, lie], noise, 0.5) for lie in (1e4, 1e12))
    assert far == pytest.approx(farther, abs=1e-6)


@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 8), st.integers(0, 6)),
        elements=st.floats(-(2.0**120), 2.0**120, width=32),
    ),
    scale=st.just(0.0) | st.floats(1e-30, 1e30),
    noise=st.sampled_from(SMOOTH),
)
def test_the_smoothed_median_never_leaves_the_clients_range(rows, scale, noise):
    roots = smoothed_median(rows, noise, scale)
    assert np.all(roots >= rows.min(axis=0))
    assert np.all(roots <= rows.max(axis=0))


class Counted(Logistic):
    """Counts how often its CDF is evaluated."""

    evaluations = 0

    def cdf(self, x):
        type(self).evaluations += 1
        return super().cdf(x)

    def density(self, x):
        return Logistic.cdf(self, x) * Logistic.cdf(self, -x) * np.pi / np.sqrt(3)


@pytest.mark.parametrize(
    ("rows", "most"),
    [
        (np.random.default_rng(0).standard_normal((10, 2000)), 8),
        (np.random.default_rng(0).standard_cauchy((10, 2000)) * 1e10, 60),
        (np.random.default_rng(0).standard_normal((10, 2000)) * np.logspace(-30, 30, 2000), 60),
        (np.repeat([[-1e30], [1e30]], 5, axis=0) * np.ones(2000), 60),
    ],
    ids=["usual", "wild", "of all sizes", "two camps"],
)
def test_the_smoothed_median_is_found_in_few_steps_and_always_in_a_bounded_number(
    rows, most, monkeypatch
):
    monkeypatch.setattr(Counted, "evaluations", 0)
    smoothed_median(rows, Counted(), 1.0)
    assert 1 <= Counted.evaluations <= most


@each_family
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-300, 5e-324])
def test_the_smoothed_median_of_the_smallest_scales_is_the_median_without_a_warning(noise, scale):
    assert one([0.0, 1.0, 5.0], noise, scale) == 1.0


def test_the_smoothed_median_leaves_its_rows_as_they_were():
    rows = np.random.default_rng(0).standard_normal((3, 5))
    before = rows.copy()
    smoothed_median(rows, Gaussian(), 1.0)
    np.testing.assert_array_equal(rows, before)


def test_the_smoothed_median_of_uniform_noise_is_refused():
    with pytest.raises(ValueError, match=r"^noise must .*Uniform"):
        smoothed_median([np.zeros(2)], Uniform(), 1.0)


def test_the_smoothed_median_of_no_clients_is_refused():
    with pytest.raises(ValueError, match=r"^rows must "):
        smoothed_median([], Gaussian(), 1.0)


def test_the_smoothed_median_of_gaussian_noise_has_the_bias_of_the_noisy_median():
    """−κ₃/(6b²) to leading order."""
    values, scale = np.array([1.0, 2.0, 10.0]), 40.0
    third = np.mean((values - values.mean()) ** 3)
    bias = one(values, Gaussian(), scale) - values.mean()
    assert bias == pytest.approx(-third / (6 * scale**2), rel=0.05)


@each_family
@pytest.mark.parametrize("clients", range(3, 26))
@pytest.mark.parametrize("lie", [1e4, 1e12, 1e35])
def test_outliers_fewer_than_half_keep_no_root_outside_of_the_others(noise, clients, lie):
    """Even next to coordinates that need many more steps, and where all scales differ."""
    rng = np.random.default_rng(clients)
    honest = rng.choice([-0.1, 0.1], (clients, 200)) * rng.uniform(1, 1.01, (clients, 200))
    rows, liars = honest.astype(np.float32), (clients - 1) // 2
    rows[:liars] = lie * rng.choice([-1, 1], (liars, 200))
    scales = np.repeat([1e-6, 1e-3, 0.01, 0.1], 50)
    roots = smoothed_median(rows, noise, scales)
    # F(r) is M/(M + 1) or less at 16 scales, for each family and M.
    reach = 16 * scales
    assert np.all(roots >= rows[liars:].min(axis=0) - reach)
    assert np.all(roots <= rows[liars:].max(axis=0) + reach)
    alone = [one(rows[:, i], noise, scales[i]) for i in range(0, 200, 40)]
    np.testing.assert_array_equal(roots[::40], np.float32(alone))
