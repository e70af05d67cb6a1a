"""Agreement between pairs of clients, against a naive reference."""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import pack_signs
from fedmedian.kernels import agreement
from fedmedian.kernels.agreement import count_agreements
from fedmedian.kernels.signs import count_ones_of_bytes


@contextmanager
def chunks_of(words):
    """Lets so many words of 64 votes be compared at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agreement, "_CHUNK_WORDS", words)
        yield


@st.composite
def ballots(draw):
    """M vectors of ±1 as rows, M from 1, d from 0."""
    shape = draw(st.integers(1, 6)), draw(st.integers(0, 300))
    return draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-1, 1])))


@given(rows=ballots(), words=st.integers(1, 4))
def test_counts_are_the_numbers_of_coordinates_on_which_two_vote_alike(rows, words):
    with chunks_of(words):
        counts = count_agreements([pack_signs(row) for row in rows], rows.shape[1])
    assert counts.tolist() == (rows[:, None] == rows).sum(axis=2).tolist()


def test_bits_without_meaning_are_ignored_and_vectors_need_not_be_contiguous(strided):
    rng = np.random.default_rng(0)
    rows = rng.choice([-1.0, 1.0], (5, 20_003))
    packed = [pack_signs(row) for row in rows]
    counts = count_agreements(packed, rows.shape[1])
    for one in packed[::2]:
        one[-1] |= 0b00011111
    np.testing.assert_array_equal(count_agreements(packed, rows.shape[1]), counts)
    np.testing.assert_array_equal(
        count_agreements([strided(one) for one in packed], rows.shape[1]), counts
    )
    np.testing.assert_array_equal(counts, (rows.shape[1] + rows @ rows.T) / 2)


def test_memory_is_independent_of_the_number_of_coordinates(scratch_bytes):
    packed = [np.zeros(10**6, np.uint8)] * 20
    assert scratch_bytes(count_agreements, packed, 8 * 10**6) < 2**20


@pytest.mark.parametrize(
    ("packed", "dim"),
    [([], 8), ([np.zeros(1, np.uint8)] * 2, 9), ([np.zeros(1, np.int8)] * 2, 8)],
    ids=["nobody", "too short", "another dtype"],
)
def test_what_are_no_packed_signs_is_refused(packed, dim):
    with pytest.raises(ValueError, match="packed"):
        count_agreements(packed, dim)


def test_bits_are_counted_alike_without_numpys_own_function():
    words = np.random.default_rng(0).integers(0, 2**64, (3, 5), dtype=np.uint64)
    counts = np.empty(words.shape, dtype=np.uint8)
    count_ones_of_bytes(words, counts)
    assert counts.tolist() == [[int(word).bit_count() for word in row] for row in words]
