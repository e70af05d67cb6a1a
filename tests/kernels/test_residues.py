"""Residues modulo 2^k: packed to k bits each, and summed as if they were not."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedmedian.kernels.residues import (
    MOST_BITS,
    bits_of_sum,
    dtype_of,
    pack_residues,
    sum_packed,
)

widths = st.integers(1, MOST_BITS)
dims = st.sampled_from([0, 1, 7, 8, 9, 300])
seeds = st.integers(0, 2**32)


def drawn(seed, number, dim, bits):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 1 << bits, dim).astype(dtype_of(bits)) for _ in range(number)]


@given(number=st.integers(1, 70_000))
def test_the_bits_of_a_sum_hold_all_votes_and_no_fewer_do(number):
    bits = bits_of_sum(number)
    assert number < 1 << bits
    assert number >= 1 << (bits - 1)


@given(bits=widths, dim=dims, seed=seeds)
def test_a_packed_residue_takes_k_bits(bits, dim, seed):
    (values,) = drawn(seed, 1, dim, bits)
    packed = pack_residues(values, bits)
    assert (packed.dtype, packed.shape) == (np.uint8, (bits, -(-dim // 8)))


@given(bits=widths, dim=dims, number=st.integers(1, 20), seed=seeds)
def test_the_sum_of_packed_residues_is_the_sum_of_the_residues(bits, dim, number, seed):
    values = drawn(seed, number, dim, bits)
    total = sum_packed([pack_residues(one, bits) for one in values], dim)
    assert total.dtype == dtype_of(bits)
    expected = sum(one.astype(np.int64) for one in values) % (1 << bits)
    np.testing.assert_array_equal(total, expected)


@given(bits=widths, seed=seeds)
def test_only_the_lowest_k_bits_count(bits, seed):
    (values,) = drawn(seed, 1, 50, MOST_BITS)
    values = values.astype(dtype_of(bits))
    packed = pack_residues(values, bits)
    np.testing.assert_array_equal(sum_packed([packed], 50), values & ((1 << bits) - 1))


@given(bits=widths, dim=st.sampled_from([1, 7, 9]))
def test_bits_after_the_last_residue_are_zero(bits, dim):
    full = np.full(dim, (1 << bits) - 1).astype(dtype_of(bits))
    assert (np.unpackbits(pack_residues(full, bits), axis=1)[:, dim:] == 0).all()


def test_residues_of_no_votes_sum_to_nothing():
    assert sum_packed([np.zeros((3, 0), np.uint8)], 0).shape == (0,)
