"""Noisy signs in one pass: their exact law, and that nothing depends on how it is computed."""

import tracemalloc
from math import inf, sqrt

import numpy as np
import pytest
from scipy.stats import chi2

from fedmedian import Gaussian, Laplace, Logistic, Uniform, unpack_signs
from fedmedian.kernels import encoding
from fedmedian.kernels.encoding import ROUGH_ERROR, pack_noisy_signs

FAMILIES = [Gaussian(), Logistic(), Laplace(), Uniform()]
each_family = pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)


def draw(update, sizes, noise, scales, seed=0):
    rng = np.random.default_rng(seed)
    packed = pack_noisy_signs(np.float32(update), sizes, noise, np.float32(scales), rng)
    return unpack_signs(packed, len(update))


class SkewedGaussian(Gaussian):
    """Its rough law is as far off as it may be, so that the exact one must set it right."""

    def __init__(self, error):
        super().__init__()
        object.__setattr__(self, "error", np.float32(error))

    def rough_vote(self, x):
        exact = 2 * self.cdf(x.astype(np.float64)) - 1
        return np.clip(exact + self.error, -1, 1).astype(np.float32)


class TestLaw:
    RATIOS = np.linspace(-4, 4, 161)
    DRAWS = 50_000

    @pytest.mark.parametrize(
        "noise",
        [*FAMILIES, SkewedGaussian(-ROUGH_ERROR), SkewedGaussian(ROUGH_ERROR)],
        ids=["gaussian", "logistic", "laplace", "uniform", "rough too low", "rough too high"],
    )
    def test_votes_are_plus_with_probability_cdf_of_update_over_scale(self, noise):
        b = 0.25
        update = np.repeat(np.float32(b * self.RATIOS), self.DRAWS)
        signs = draw(update, [update.size], noise, [b], seed=1)
        counts = np.count_nonzero(signs.reshape(-1, self.DRAWS) > 0, axis=1)
        expected = noise.cdf(self.RATIOS) * self.DRAWS
        certain = (expected == 0) | (expected == self.DRAWS)
        assert np.array_equal(counts[certain], expected[certain])
        # Chi-square over the grid, cells of less than 10 expected votes left aside.
        failures = self.DRAWS - expected
        filled = np.minimum(expected, failures) >= 10
        spread = expected * failures / self.DRAWS
        statistic = np.square(counts - expected)[filled] / spread[filled]
        assert chi2.sf(statistic.sum(), np.count_nonzero(filled)) > 1e-3
        rare = ~filled & ~certain
        assert np.all(np.abs(counts - expected)[rare] < 12)

    @each_family
    def test_the_rough_vote_is_as_good_as_promised(self, noise):
        x = np.concatenate([np.linspace(-9, 9, 1_000_001), [inf, -inf, 1e30, -1e30, 1e-40]])
        with np.errstate(over="ignore"):
            rough = noise.rough_vote(x.astype(np.float32))
        assert rough.dtype == np.float32
        assert np.abs(rough - (2 * noise.cdf(x) - 1)).max() < 0.9 * ROUGH_ERROR
        assert np.abs(rough).max() <= 1

    @each_family
    def test_coordinates_are_independent(self, noise):
        n = 400_000
        signs = draw(np.zeros(n), [n], noise, [1.0], seed=2)
        assert abs(signs.sum()) < 4 * sqrt(n)
        for lag in (1, 2, 7, 8, 64):
            assert abs(np.dot(signs[lag:], signs[:-lag])) < 4 * sqrt(n)

    def test_two_draws_are_independent(self):
        n = 400_000
        rng = np.random.default_rng(3)
        update, scales = np.zeros(n, np.float32), np.ones(1, np.float32)
        first, second = (
            unpack_signs(pack_noisy_signs(update, [n], Gaussian(), scales, rng), n)
            for _ in range(2)
        )
        assert abs(np.dot(first, second)) < 4 * sqrt(n)

    @each_family
    def test_each_array_has_noise_of_its_own_scale(self, noise):
        n = 100_000
        signs = draw(np.full(3 * n, 0.5), [n, 0, n, n], noise, [0.5, 1.0, 1.0, 2.0])
        for part, b in zip(signs.reshape(3, n), (0.5, 1.0, 2.0), strict=True):
            p = float(noise.cdf(0.5 / b))
            assert abs(np.mean(part > 0) - p) < 4 * sqrt(p * (1 - p) / n)

    @each_family
    def test_without_noise_the_sign_is_the_updates_and_a_fair_coin_for_zeros(self, noise):
        n = 10_000
        update = np.tile(np.float32([1e-45, -1e-45, 3e38, -3e38, 0.0, -0.0]), n)
        signs = draw(update, [update.size], noise, [0.0]).reshape(n, 6)
        assert np.array_equal(signs[:, :4], np.tile([1, -1, 1, -1], (n, 1)))
        for coins in signs[:, 4:].T:
            assert abs(coins.sum()) < 4 * sqrt(n)

    @each_family
    def test_of_huge_ratios_is_certain(self, noise):
        n = 10_000
        signs = draw(np.tile([1.0, -1.0], n), [2 * n], noise, [1e-45]).reshape(n, 2)
        assert np.array_equal(signs, np.tile([1, -1], (n, 1)))


class TestReproducibility:
    @each_family
    @pytest.mark.parametrize("sizes", [[5000], [13, 0, 1, 2000, 2986]])
    def test_chunks_do_not_matter(self, noise, sizes, monkeypatch):
        update = np.random.default_rng(0).standard_normal(5000)
        scales = np.linspace(0.5, 3, len(sizes))
        expected = draw(update, sizes, noise, scales)
        for length in (8, 1000, 4096):
            monkeypatch.setattr(encoding, "_CHUNK", length)
            assert np.array_equal(draw(update, sizes, noise, scales), expected)

    def test_what_a_coordinate_takes_does_not_change_the_others(self):
        """Not even the coordinates after it, whose signs come from bytes of their own."""
        update = np.random.default_rng(0).standard_normal(5000)
        moved = update.copy()
        moved[:100] += 5
        first, second = (draw(u, [5000], Gaussian(), [1.0]) for u in (update, moved))
        # The few that need further bits may get others.
        assert np.count_nonzero(first[100:] != second[100:]) < 60

    def test_signs_follow_from_the_generator_and_move_it_on(self):
        update, scales = np.zeros(800, np.float32), np.ones(1, np.float32)
        rngs = [np.random.default_rng(seed) for seed in (1, 1, 2)]
        first, again, other = (
            pack_noisy_signs(update, [800], Gaussian(), scales, rng) for rng in rngs
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert not np.array_equal(
            pack_noisy_signs(update, [800], Gaussian(), scales, rngs[0]), first
        )

    @pytest.mark.parametrize("bits", [np.random.MT19937, np.random.Philox])
    def test_any_generator_will_do(self, bits):
        rng = np.random.Generator(bits(0))
        update = np.zeros(100_000, np.float32)
        packed = pack_noisy_signs(update, [update.size], Gaussian(), np.float32([1]), rng)
        assert abs(unpack_signs(packed, update.size).sum()) < 4 * sqrt(update.size)


@pytest.mark.parametrize("dim", [0, 1, 7, 8, 9, 65_535, 65_536, 65_537, 200_003])
def test_any_length(dim):
    packed = pack_noisy_signs(
        np.full(dim, 99, np.float32), [dim], Uniform(), np.float32([1]), np.random.default_rng(0)
    )
    assert packed.tolist() == np.packbits(np.ones(dim, bool)).tolist()


def test_the_update_is_neither_changed_nor_copied():
    update = np.random.default_rng(0).standard_normal(4_000_000, dtype=np.float32)
    copy = update.copy()
    tracemalloc.start()
    packed = pack_noisy_signs(
        update, [update.size], Gaussian(), np.float32([1]), np.random.default_rng(0)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.array_equal(update, copy)
    assert peak - packed.nbytes < 2 * 2**20
