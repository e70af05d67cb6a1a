"""Noisy signs in one pass: their exact law, and that nothing depends on how it is computed.

Every draw is seeded. That each noise family's law comes out is part of the families' contract.
"""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from fedmedian import Gaussian, Laplace, Logistic, Uniform, unpack_signs
from fedmedian.chacha import ChaCha20
from fedmedian.kernels import encoding
from fedmedian.kernels.encoding import ROUGH_ERROR, pack_noisy_signs


def draw(update, sizes, noise, scales, seed=0):
    rng = np.random.default_rng(seed)
    parts = np.split(np.float32(update), np.cumsum(sizes)[:-1])
    packed = pack_noisy_signs(parts, len(update), noise, np.float32(scales), rng)
    return unpack_signs(packed, len(update))


class SkewedGaussian(Gaussian):
    """Its rough law is as far off as it may be, so that the exact one must set it right."""

    def __init__(self, error):
        super().__init__()
        object.__setattr__(self, "error", np.float32(error))

    def rough_vote(self, x):
        exact = 2 * self.cdf(x.astype(np.float64)) - 1
        return np.clip(exact + self.error, -1, 1).astype(np.float32)


@pytest.mark.parametrize(
    "noise",
    [Gaussian(), Uniform(), SkewedGaussian(-ROUGH_ERROR), SkewedGaussian(ROUGH_ERROR)],
    ids=["gaussian", "uniform", "rough too low", "rough too high"],
)
def test_a_noisy_sign_is_plus_with_probability_cdf_of_update_over_scale(noise):
    ratios, draws, b = np.linspace(-4, 4, 161), 50_000, 0.25
    update = np.repeat(np.float32(b * ratios), draws)
    signs = draw(update, [update.size], noise, [b], seed=1)
    counts = np.count_nonzero(signs.reshape(-1, draws) > 0, axis=1)
    expected = noise.cdf(ratios) * draws
    certain = (expected == 0) | (expected == draws)
    assert np.array_equal(counts[certain], expected[certain])
    # Chi-square over the grid, cells of less than 10 expected votes left aside.
    failures = draws - expected
    filled = np.minimum(expected, failures) >= 10
    spread = expected * failures / draws
    statistic = np.square(counts - expected)[filled] / spread[filled]
    assert chi2.sf(statistic.sum(), np.count_nonzero(filled)) > 1e-6
    rare = ~filled & ~certain
    assert np.all(np.abs(counts - expected)[rare] < 20)


def test_a_rare_noisy_sign_is_as_rare_as_its_law_where_the_rough_vote_is_furthest_off():
    """Where a probability is just over a byte's 1/256, its rough value is below that."""
    draws = 2_000_000
    for p in (1.02 / 256, 1.06 / 256, 1.1 / 256):
        update = np.full(draws, norm.ppf(p), np.float32)
        signs = draw(update, [draws], SkewedGaussian(-ROUGH_ERROR), [1.0], seed=4)
        assert abs(np.mean(signs > 0) - p) < 5 * sqrt(p * (1 - p) / draws), p


def test_noisy_signs_of_two_coordinates_and_of_two_draws_are_independent():
    n, rng = 400_000, np.random.default_rng(3)
    update, scales = np.zeros(n, np.float32), np.ones(1, np.float32)
    first, second = (
        unpack_signs(pack_noisy_signs([update], n, Gaussian(), scales, rng), n) for _ in range(2)
    )
    assert abs(first.sum()) < 5 * sqrt(n)
    assert abs(np.dot(first, second)) < 5 * sqrt(n)
    for lag in (1, 2, 7, 8, 64):
        assert abs(np.dot(first[lag:], first[:-lag])) < 5 * sqrt(n), lag


def test_each_array_has_noise_of_its_own_scale():
    n, noise = 100_000, Logistic()
    signs = draw(np.full(3 * n, 0.5), [n, 0, n, n], noise, [0.5, 1.0, 1.0, 2.0])
    for part, b in zip(signs.reshape(3, n), (0.5, 1.0, 2.0), strict=True):
        p = float(noise.cdf(0.5 / b))
        assert abs(np.mean(part > 0) - p) < 5 * sqrt(p * (1 - p) / n)


def test_without_noise_a_sign_is_the_updates_and_a_fair_coin_for_zeros():
    n = 10_000
    update = np.tile(np.float32([1e-45, -1e-45, 3e38, -3e38, 0.0, -0.0]), n)
    signs = draw(update, [update.size], Laplace(), [0.0]).reshape(n, 6)
    assert np.array_equal(signs[:, :4], np.tile([1, -1, 1, -1], (n, 1)))
    for coins in signs[:, 4:].T:
        assert abs(coins.sum()) < 5 * sqrt(n)


def test_noisy_signs_of_updates_that_drown_their_noise_are_certain():
    n = 10_000
    signs = draw(np.tile([1.0, -1.0], n), [2 * n], Gaussian(), [1e-45]).reshape(n, 2)
    assert np.array_equal(signs, np.tile([1, -1], (n, 1)))


@given(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=6), eighths=st.integers(1, 12))
def test_noisy_signs_do_not_depend_on_the_chunks_they_are_drawn_in(sizes, eighths):
    update = np.random.default_rng(0).standard_normal(sum(sizes))
    scales = np.linspace(0, 3, len(sizes))
    expected = draw(update, sizes, Gaussian(), scales)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_CHUNK", 8 * eighths)
        assert np.array_equal(draw(update, sizes, Gaussian(), scales), expected)


def test_noisy_signs_of_any_length_are_packed_with_unused_bits_0():
    for dim in (0, 1, 7, 8, 9, 65_535, 65_536, 65_537, 200_003):
        update, rng = np.full(dim, 99, np.float32), np.random.default_rng(0)
        packed = pack_noisy_signs([update], dim, Uniform(), np.float32([1]), rng)
        assert np.array_equal(packed, np.packbits(np.ones(dim, bool))), dim


def test_what_a_coordinate_takes_changes_the_noise_of_no_other():
    """Not even of the coordinates after it, whose signs come from bytes of their own."""
    update = np.random.default_rng(0).standard_normal(5000)
    moved = update.copy()
    moved[:100] += 5
    first, second = (draw(u, [5000], Gaussian(), [1.0]) for u in (update, moved))
    # The few that need further bits may get others.
    assert np.count_nonzero(first[100:] != second[100:]) < 60


def test_noisy_signs_follow_from_the_generator_and_move_it_on():
    update, scales = np.zeros(800, np.float32), np.ones(1, np.float32)
    rngs = [np.random.default_rng(seed) for seed in (1, 1, 2)]
    first, again, other = (pack_noisy_signs([update], 800, Gaussian(), scales, rng) for rng in rngs)
    following = pack_noisy_signs([update], 800, Gaussian(), scales, rngs[0])
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, following)


@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.Philox])
def test_noisy_signs_can_be_drawn_with_any_generator_of_numpy(bits):
    update = np.zeros(100_000, np.float32)
    rng = np.random.Generator(bits(0))
    packed = pack_noisy_signs([update], update.size, Gaussian(), np.float32([1]), rng)
    assert abs(unpack_signs(packed, update.size).sum()) < 5 * sqrt(update.size)


def test_noisy_signs_are_drawn_with_the_kind_of_generator_that_is_passed_in(monkeypatch):
    """All of them: no other generator may be made on the way."""
    update, scales = np.zeros(100_000, np.float32), np.ones(1, np.float32)
    rng = np.random.Generator(ChaCha20([1, 2, 3, 4]))
    for other in ("PCG64", "default_rng"):
        monkeypatch.delattr(np.random, other)
    packed = pack_noisy_signs([update], update.size, Gaussian(), scales, rng)
    assert abs(unpack_signs(packed, update.size).sum()) < 5 * sqrt(update.size)


def test_drawing_noisy_signs_neither_changes_nor_copies_the_update(scratch_bytes):
    rng = np.random.default_rng(0)
    update, scales = rng.standard_normal(4_000_000, dtype=np.float32), np.float32([1])
    copy = update.copy()
    arguments = ([update], update.size, Gaussian(), scales, rng)
    assert scratch_bytes(pack_noisy_signs, *arguments) < 2 * 2**20
    assert np.array_equal(update, copy)
