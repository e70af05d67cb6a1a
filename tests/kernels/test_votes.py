"""Counts, majorities and weighted votes against naive references."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import count_votes, majority_vote, pack_signs
from fedmedian.kernels.votes import weighted_votes

dims = st.integers(0, 70)


def strided(x):
    """The same values, not contiguous."""
    wide = np.empty((x.size, 3), x.dtype)
    wide[:, 1] = x
    return wide[:, 1]


def scratch_bytes(function, packed, *arguments):
    """The memory that a call takes beyond its inputs and its result."""
    function(packed, *arguments)  # programs are kept
    tracemalloc.start()
    result = function(packed, *arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak - result.nbytes


@st.composite
def ballots(draw, most_clients=9):
    """M vectors of ±1 as rows, M from 1, d from 0."""
    shape = draw(st.integers(1, most_clients)), draw(dims)
    return draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-1, 1])))


class TestVotes:
    @given(rows=ballots())
    def test_counts_are_the_numbers_of_positive_votes(self, rows):
        counts = count_votes([pack_signs(row) for row in rows], rows.shape[1])
        assert counts.dtype == np.int32
        assert counts.tolist() == [sum(vote > 0 for vote in column) for column in rows.T]

    @given(rows=ballots())
    def test_majority_is_the_sign_of_the_sum_and_0_for_a_tie(self, rows):
        majority = majority_vote([pack_signs(row) for row in rows], rows.shape[1])
        assert majority.dtype == np.int8
        for vote, column in zip(majority.tolist(), rows.T.tolist(), strict=True):
            total = sum(column)
            assert vote == (total > 0) - (total < 0)

    @given(rows=ballots())
    def test_odd_numbers_of_clients_never_tie_and_vote_the_sign_of_the_median(self, rows):
        odd = rows[: len(rows) - 1 + len(rows) % 2]
        majority = majority_vote([pack_signs(row) for row in odd], odd.shape[1])
        assert np.array_equal(majority, np.median(odd, axis=0))

    @given(rows=ballots(), seed=st.integers(0, 9))
    def test_the_order_of_the_clients_does_not_matter(self, rows, seed):
        packed = [pack_signs(row) for row in rows]
        shuffled = [packed[i] for i in np.random.default_rng(seed).permutation(len(packed))]
        dim = rows.shape[1]
        assert np.array_equal(count_votes(packed, dim), count_votes(shuffled, dim))

    @given(rows=ballots())
    def test_unused_bits_are_ignored(self, rows):
        dim = rows.shape[1]
        clean = [pack_signs(row) for row in rows]
        dirty = [packed.copy() for packed in clean]
        for packed in dirty:
            packed[dim // 8 :] |= 0xFF >> dim % 8
        assert np.array_equal(count_votes(dirty, dim), count_votes(clean, dim))
        assert np.array_equal(majority_vote(dirty, dim), majority_vote(clean, dim))

    @pytest.mark.parametrize("clients", [1, 2, 3, 4, 7, 8, 9, 31, 32, 101, 255, 256, 300])
    def test_any_number_of_clients(self, clients):
        rng = np.random.default_rng(clients)
        # Coordinates from unanimous to evenly split.
        rows = (rng.random((clients, 999)) < rng.random(999)) * 2 - 1
        packed = [pack_signs(row) for row in rows]
        assert np.array_equal(count_votes(packed, 999), (rows > 0).sum(axis=0))
        assert np.array_equal(majority_vote(packed, 999), np.sign(rows.sum(axis=0)))

    @pytest.mark.parametrize("dim", [524_287, 524_288, 524_289, 1_200_001])
    def test_long_vectors(self, dim):
        rows = np.random.default_rng(dim).choice(np.array([-1, 1], np.int8), (4, dim))
        packed = [strided(pack_signs(row)) for row in rows]
        assert np.array_equal(count_votes(packed, dim), (rows > 0).sum(axis=0))
        assert np.array_equal(majority_vote(packed, dim), np.sign(rows.sum(axis=0)))

    @pytest.mark.parametrize("function", [count_votes, majority_vote])
    def test_memory_does_not_grow_with_the_clients(self, function):
        packed = list(np.random.default_rng(0).integers(0, 256, (101, 250_000), np.uint8))
        assert scratch_bytes(function, packed, 2_000_000) < 6 * 2**20


class TestWeightedVotes:
    @given(rows=ballots(), data=st.data())
    def test_each_sign_counts_with_its_clients_weight_for_the_array(self, rows, data):
        clients, dim = rows.shape
        cut = data.draw(st.integers(0, dim))
        sizes = (cut, 0, dim - cut)
        weights = data.draw(hnp.arrays(np.float64, (clients, 3), elements=st.floats(0, 100)))
        votes = weighted_votes([pack_signs(row) for row in rows], sizes, weights)
        assert votes.dtype == np.float32
        expected = [
            sum(weights[i, 0 if k < cut else 2] * rows[i, k] for i in range(clients))
            for k in range(dim)
        ]
        np.testing.assert_allclose(votes, expected, rtol=1e-5, atol=1e-4)

    @given(rows=ballots(), weight=st.floats(1e-3, 1e3))
    def test_equal_weights_give_the_majority(self, rows, weight):
        packed, dim = [pack_signs(row) for row in rows], rows.shape[1]
        votes = weighted_votes(packed, [dim], np.full((len(rows), 1), weight))
        assert np.array_equal(np.sign(votes), majority_vote(packed, dim))

    @pytest.mark.parametrize("weights", ["equal", "one scale", "own scales"])
    def test_arrays_begin_anywhere(self, weights):
        clients, sizes = 6, [3, 70_000, 0, 1, 524_300, 13, 131_077]
        rng = np.random.default_rng(0)
        scales = {
            "equal": np.ones((1, 7)),
            "one scale": np.r_[0, rng.random(6)] * rng.random((clients, 1)),
            "own scales": rng.random((clients, 7)),
        }[weights] * np.ones((clients, 1))
        rows = rng.choice([-1.0, 1.0], (clients, sum(sizes)))
        votes = weighted_votes([strided(pack_signs(row)) for row in rows], sizes, scales)
        expected = (np.repeat(scales, sizes, axis=1) * rows).sum(axis=0)
        np.testing.assert_allclose(votes, expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("equal", [True, False])
    def test_memory_does_not_grow_with_the_length(self, equal):
        packed = list(np.random.default_rng(0).integers(0, 256, (101, 250_000), np.uint8))
        weights = np.ones((101, 1)) if equal else np.arange(1.0, 102)[:, None]
        assert scratch_bytes(weighted_votes, packed, [2_000_000], weights) < 6 * 2**20


class TestWhatIsRefused:
    FUNCTIONS = (
        count_votes,
        majority_vote,
        lambda packed, dim: weighted_votes(packed, [dim], np.ones((len(packed), 1))),
    )

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_no_vectors(self, function):
        with pytest.raises(ValueError, match="must hold at least one vector"):
            function([], 3)

    @pytest.mark.parametrize("function", FUNCTIONS)
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
    def test_vectors_of_another_length_or_dtype(self, function, packed):
        with pytest.raises(ValueError, match="9 packed signs must be a uint8 vector of length 2"):
            function([packed], 9)

    @pytest.mark.parametrize("function", FUNCTIONS)
    def test_one_bad_vector_among_good_ones(self, function):
        with pytest.raises(ValueError, match="9 packed signs"):
            function([np.zeros(2, np.uint8), np.zeros(1, np.uint8)], 9)
