"""Random rotations: orthogonal, undone exactly, and close to normal whatever is rotated.

Every draw is seeded.
"""

import tracemalloc
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from fedmedian.kernels.rotation import matrix_shape, padded_size, rotate, rotate_back

SIZES = st.integers(0, 5000) | st.sampled_from([2**16 - 1, 2**16 + 1, 105_010])


def rotated(vector, seed=0):
    return rotate(np.asarray(vector, np.float32), np.random.default_rng(seed))


def normal(size, seed=1):
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


@given(size=SIZES, seed=st.integers(0, 9))
def test_a_rotation_is_undone_by_rotating_back(size, seed):
    vector = normal(size)
    back = rotate_back(rotated(vector, seed), size, np.random.default_rng(seed))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, vector, atol=1e-4)


@given(size=SIZES, seed=st.integers(0, 9))
def test_a_rotated_vector_has_the_padded_size_and_the_same_norm(size, seed):
    vector = normal(size)
    result = rotated(vector, seed)
    assert result.dtype == np.float32
    assert result.shape == (padded_size(size),)
    assert np.linalg.norm(result) == pytest.approx(np.linalg.norm(vector), rel=1e-4)


def test_rotating_back_is_the_transpose_of_rotating():
    """⟨Q·x, y⟩ = ⟨x, Qᵀ·y⟩ for any y, which need not be the rotation of anything."""
    vector, other = normal(1000), normal(padded_size(1000), seed=2)
    back = rotate_back(other.copy(), 1000, np.random.default_rng(0))
    assert np.vdot(rotated(vector), other) == pytest.approx(np.vdot(vector, back), rel=1e-3)


def test_a_rotation_follows_from_its_generator_and_leaves_the_vector_as_it_was():
    vector = normal(5000)
    first, again, other = (rotated(vector, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert abs(np.vdot(first, other)) < 5 * np.linalg.norm(vector) ** 2 / sqrt(5000)
    np.testing.assert_array_equal(vector, normal(5000))


@given(size=SIZES, before=st.integers(0, 9))
def test_a_vector_is_rotated_to_a_given_place_to_the_same_bits(size, before):
    vector = normal(size)
    place = np.full(before + padded_size(size) + 1, np.float32(7))
    returned = rotate(vector, np.random.default_rng(0), out=place[before:-1])
    assert np.shares_memory(returned, place) or size == 0
    assert place[before:-1].tobytes() == rotated(vector).tobytes()
    assert (place[:before] == 7).all()
    assert place[-1] == 7


@pytest.mark.parametrize(
    "vector",
    [
        np.random.default_rng(0).lognormal(sigma=2, size=100_000),
        np.random.default_rng(0).standard_cauchy(100_000).clip(-1e3, 1e3),
        np.ones(100_000),
        np.repeat([1.0, 0.0], [1000, 99_000]),
        np.arange(100_000.0),
    ],
    ids=["lognormal", "Cauchy", "constant", "sparse", "ramp"],
)
def test_the_coordinates_of_a_rotated_vector_are_normal_with_its_mean_square(vector):
    result = rotated(vector) / np.sqrt(np.mean(np.square(vector)))
    assert kstest(result, "norm").statistic < 0.03


def test_the_padding_of_a_rotated_vector_is_small():
    sizes = np.random.default_rng(0).integers(256, 10**7, 2000).tolist()
    padding = [padded_size(size) / size - 1 for size in sizes]
    assert min(padding) >= 0
    assert np.mean(padding) < 0.01
    assert max(padding) < 0.05
    assert all(padded_size(size) < 1.15 * size for size in range(256, 2000))


@given(size=st.integers(1, 10**7))
def test_the_matrix_of_a_rotation_is_nearly_square_and_without_large_prime_factors(size):
    for length in (shape := matrix_shape(size)):
        for factor in (2, 3, 5):
            while length % factor == 0:
                length //= factor
        assert length == 1
    rows, columns = shape
    assert rows * columns >= size
    assert size < 100 or 0.2 < rows / columns < 5


def test_the_memory_of_a_rotation_is_that_of_its_result():
    vector = np.zeros(4_000_000, np.float32)
    tracemalloc.start()
    rotated(vector)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.2 * vector.nbytes
