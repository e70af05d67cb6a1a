"""Packed signs against naive references. Every draw is seeded."""

from math import inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import pack_signs, unpack_signs
from fedmedian.kernels.signs import packed_size, signs_within

FLOATS = [np.float16, np.float32, np.float64, np.dtype(">f4")]

# One less, as many and one more than are packed and unpacked at once.
LONG = (65_535, 65_536, 65_537)

# Vectors with many zeros of either sign and infinities.
vectors = st.sampled_from(FLOATS).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        st.integers(0, 70),
        elements=st.sampled_from([0.0, -0.0, inf, -inf])
        | st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False),
        fill=st.nothing(),
    )
)


def naive_sign(value):
    return 1.0 if value >= 0 else -1.0


@given(x=vectors)
def test_signs_are_packed_from_the_most_significant_bit_on_and_unused_bits_are_0(x):
    bits = "".join("1" if value >= 0 else "0" for value in x.tolist())
    bits += "0" * (-len(bits) % 8)
    packed = pack_signs(x)
    assert packed.dtype == np.uint8
    assert packed.tolist() == [int(bits[start : start + 8], 2) for start in range(0, len(bits), 8)]
    assert packed.shape == (packed_size(x.size),)


@given(x=vectors)
def test_unpacked_signs_are_the_signs_of_what_was_packed_as_float32(x):
    signs = unpack_signs(pack_signs(x), x.size)
    assert signs.dtype == np.float32
    assert signs.tolist() == [naive_sign(value) for value in x.tolist()]


@given(x=vectors, data=st.data())
def test_a_part_of_packed_signs_is_the_packed_signs_of_the_part(x, data):
    start = data.draw(st.integers(0, x.size))
    stop = data.draw(st.integers(start, x.size))
    part = signs_within(pack_signs(x), slice(start, stop))
    assert part.shape == (packed_size(stop - start),)
    assert unpack_signs(part, stop - start).tolist() == [*map(naive_sign, x[start:stop].tolist())]


def test_signs_of_long_vectors_are_packed_and_unpacked():
    for dim in LONG:
        x = np.random.default_rng(dim).standard_normal(dim)
        assert np.array_equal(pack_signs(x), np.packbits(x > 0)), dim
        assert np.array_equal(unpack_signs(pack_signs(x), dim), np.sign(x)), dim


@given(x=vectors)
def test_vectors_to_pack_and_to_unpack_need_not_be_contiguous(x, strided):
    packed = pack_signs(x)
    assert np.array_equal(pack_signs(strided(x)), packed)
    assert np.array_equal(pack_signs(x[::-1]), pack_signs(x[::-1].copy()))
    assert np.array_equal(unpack_signs(strided(packed), x.size), unpack_signs(packed, x.size))


def test_signs_of_integers_and_of_lists_are_packed_too():
    for x in ([3, 0, -2], np.array([1, 0, -9], np.int64), [True, True, -1]):
        assert unpack_signs(pack_signs(x), 3).tolist() == [1.0, 1.0, -1.0]


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int16])
def test_the_number_of_signs_may_be_one_of_numpys_integers(kind):
    np.testing.assert_array_equal(unpack_signs(np.uint8([160, 0]), kind(9)), [1, -1, 1] + 6 * [-1])


def test_packing_leaves_the_vector_as_it_was():
    x = np.array([0.0, -0.0, 2.0])
    pack_signs(x, np.random.default_rng(0))
    assert x.tobytes() == np.array([0.0, -0.0, 2.0]).tobytes()


def test_packing_refuses_a_nan_wherever_it_stands():
    for dim, position in ((1, 0), (9, 8), (65_537, 0), (65_537, 65_535), (65_537, 65_536)):
        x = np.zeros(dim, np.float32)
        x[position] = nan
        for rng in (None, np.random.default_rng(0)):
            with pytest.raises(ValueError, match=r"^x must .*NaN"):
                pack_signs(x, rng)


@pytest.mark.parametrize("x", [1.0, [[1.0, 2.0]]])
def test_packing_refuses_what_is_not_a_vector(x):
    with pytest.raises(ValueError, match=r"^x must "):
        pack_signs(x)


@given(
    packed=hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.uint16, np.float32]),
        hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
    ),
    dim=st.integers(0, 20),
)
def test_unpacking_refuses_all_but_a_uint8_vector_of_as_many_bytes_as_the_signs_take(packed, dim):
    if packed.dtype == np.uint8 and packed.shape == (-(-dim // 8),):
        assert unpack_signs(packed, dim).size == dim
    else:
        with pytest.raises(ValueError, match=f"{dim} packed signs must "):
            unpack_signs(packed, dim)


@pytest.mark.parametrize("packed", [b"\xa0", [160]])
def test_unpacking_refuses_what_is_not_an_array(packed):
    with pytest.raises(ValueError, match=f"3 packed signs must .* got {type(packed).__name__}"):
        unpack_signs(packed, 3)


def test_zeros_of_either_sign_are_packed_as_plus_without_a_generator():
    for dtype in FLOATS:
        assert pack_signs(np.array([0.0, -0.0], dtype)).tolist() == [0b11000000]


def test_a_generator_decides_the_sign_of_each_zero_by_a_fair_and_independent_coin():
    n = 200_001
    zeros = np.where(np.arange(n) % 2, 0.0, -0.0)
    signs = unpack_signs(pack_signs(zeros, np.random.default_rng(1)), n)
    for coins in (signs, signs[::2], signs[1:] * signs[:-1]):
        assert abs(coins.sum()) < 5 * sqrt(coins.size)


@given(x=vectors, seed=st.integers(0, 9))
def test_a_generator_decides_zeros_only_and_the_same_seed_decides_alike(x, seed):
    first, second = (pack_signs(x, np.random.default_rng(seed)) for _ in range(2))
    assert np.array_equal(first, second)
    moved = x != 0
    plain = unpack_signs(pack_signs(x), x.size)
    assert np.array_equal(unpack_signs(first, x.size)[moved], plain[moved])
