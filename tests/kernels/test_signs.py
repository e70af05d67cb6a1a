"""Packing against naive references."""

from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import pack_signs, unpack_signs
from fedmedian.kernels.signs import packed_size

FLOATS = [np.float16, np.float32, np.float64]

dims = st.integers(0, 70)

# Vectors with many zeros of either sign and infinities, every second one a strided view.
vectors = st.sampled_from(FLOATS).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        dims,
        elements=st.sampled_from([0.0, -0.0, inf, -inf])
        | st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False),
        fill=st.nothing(),
    )
)


def strided(x):
    """The same values, not contiguous."""
    wide = np.empty((x.size, 3), x.dtype)
    wide[:, 1] = x
    return wide[:, 1]


def naive_sign(value):
    return 1.0 if value >= 0 else -1.0


class TestPackAndUnpack:
    @given(x=vectors)
    def test_a_vector_comes_back_as_its_signs(self, x):
        packed = pack_signs(x)
        assert packed.dtype == np.uint8
        assert packed.shape == (packed_size(x.size),)
        signs = unpack_signs(packed, x.size)
        assert signs.dtype == np.float32
        assert signs.tolist() == [naive_sign(value) for value in x.tolist()]

    @given(x=vectors)
    def test_bits_count_from_the_most_significant_and_the_unused_ones_are_0(self, x):
        bits = "".join("1" if value >= 0 else "0" for value in x.tolist())
        bits += "0" * (-len(bits) % 8)
        expected = [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
        assert pack_signs(x).tolist() == expected

    @given(x=vectors)
    def test_input_need_not_be_contiguous(self, x):
        assert np.array_equal(pack_signs(strided(x)), pack_signs(x))
        assert np.array_equal(pack_signs(x[::-1]), pack_signs(x[::-1].copy()))
        packed = pack_signs(x)
        assert np.array_equal(unpack_signs(strided(packed), x.size), unpack_signs(packed, x.size))

    @pytest.mark.parametrize(("dim", "size"), [(0, 0), (1, 1), (7, 1), (8, 1), (9, 2), (16, 2)])
    def test_eight_signs_take_a_byte(self, dim, size):
        assert packed_size(dim) == size
        assert pack_signs(np.ones(dim)).shape == (size,)

    @pytest.mark.parametrize("x", [[3, 0, -2], np.array([1, 0, -9], np.int64), [True, True, -1]])
    def test_integers_and_lists_have_signs_too(self, x):
        assert unpack_signs(pack_signs(x), 3).tolist() == [1.0, 1.0, -1.0]

    @given(x=vectors.filter(len), data=st.data())
    def test_nan_is_refused(self, x, data):
        x[data.draw(st.integers(0, x.size - 1))] = nan
        for rng in (None, np.random.default_rng(0)):
            with pytest.raises(ValueError, match="must not hold NaN"):
                pack_signs(x, rng)

    @pytest.mark.parametrize("x", [1.0, [[1.0, 2.0]]])
    def test_only_vectors_are_packed(self, x):
        with pytest.raises(ValueError, match="x must be one-dimensional"):
            pack_signs(x)

    def test_the_vector_stays_as_it_was(self):
        x = np.array([0.0, -0.0, 2.0])
        pack_signs(x, np.random.default_rng(0))
        assert x.tobytes() == np.array([0.0, -0.0, 2.0]).tobytes()


class TestZeros:
    @pytest.mark.parametrize("zero", [0.0, -0.0])
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_without_a_generator_zero_counts_as_plus(self, zero, dtype):
        assert unpack_signs(pack_signs(np.full(3, zero, dtype)), 3).tolist() == [1.0, 1.0, 1.0]

    @pytest.mark.parametrize("zero", [0.0, -0.0])
    def test_with_one_a_fair_and_independent_coin_decides(self, zero):
        n = 100_000
        signs = unpack_signs(pack_signs(np.full(n, zero), np.random.default_rng(1)), n)
        assert abs(signs.sum()) < 4 * sqrt(n)
        assert abs(np.dot(signs[1:], signs[:-1])) < 4 * sqrt(n)

    @given(x=vectors, seed=st.integers(0, 9))
    def test_the_coin_decides_nothing_else_and_follows_from_the_generator(self, x, seed):
        first, second = (pack_signs(x, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(first, second)
        moved = x != 0
        plain = unpack_signs(pack_signs(x), x.size)
        assert np.array_equal(unpack_signs(first, x.size)[moved], plain[moved])


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "packed",
        [
            np.zeros(1, np.uint8),
            np.zeros(3, np.uint8),
            np.zeros((1, 2), np.uint8),
            np.zeros(2, np.int8),
            np.zeros(2, np.float32),
        ],
        ids=["too short", "too long", "not a vector", "signed", "float"],
    )
    def test_vectors_of_another_length_or_dtype(self, packed):
        with pytest.raises(ValueError, match="9 packed signs must be a uint8 vector of length 2"):
            unpack_signs(packed, 9)
