"""Counts, majorities and weighted votes against naive references. Every draw is seeded."""

import tracemalloc
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import count_votes, majority_vote, pack_signs
from fedmedian.kernels import votes
from fedmedian.kernels.votes import count_against_majority, weighted_votes

# One coordinate more than are worked on at once.
LONG = 8 * votes._CHUNK_BYTES + 1

any_seed = st.integers(0, 2**32 - 1)


@contextmanager
def chunks_of(num_bytes, group=votes._GROUP):
    """Lets votes be worked on so many bytes, and so many clients, at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(votes, "_CHUNK_BYTES", num_bytes)
        patch.setattr(votes, "_WEIGHTED_CHUNK_BYTES", num_bytes)
        patch.setattr(votes, "_GROUP", group)
        yield


@st.composite
def ballots(draw, most_clients=17):
    """M vectors of ±1 as rows, M from 1, d from 0."""
    shape = draw(st.integers(1, most_clients)), draw(st.integers(0, 70))
    return draw(hnp.arrays(np.int8, shape, elements=st.sampled_from([-1, 1])))


def random_ballots(clients, dim):
    """Coordinates from unanimous to evenly split."""
    rng = np.random.default_rng(clients)
    return ((rng.random((clients, dim)) < rng.random(dim)) * 2 - 1).astype(np.int8)


def pack(rows):
    return [pack_signs(row) for row in rows]


@given(rows=ballots(), num_bytes=st.integers(1, 10), group=st.integers(1, 18))
def test_counts_are_the_numbers_of_positive_votes(rows, num_bytes, group):
    with chunks_of(num_bytes, group):
        counts = count_votes(pack(rows), rows.shape[1])
    assert counts.dtype == np.int32
    assert counts.tolist() == [sum(vote > 0 for vote in column) for column in rows.T]


@given(rows=ballots(), num_bytes=st.integers(1, 10), group=st.integers(1, 18))
def test_the_majority_is_the_sign_of_the_sum_of_the_votes_and_0_for_a_tie(rows, num_bytes, group):
    with chunks_of(num_bytes, group):
        majority = majority_vote(pack(rows), rows.shape[1])
    assert majority.dtype == np.int8
    for vote, column in zip(majority.tolist(), rows.T.tolist(), strict=True):
        total = sum(column)
        assert vote == (total > 0) - (total < 0)


@given(rows=ballots(), num_bytes=st.integers(1, 10), group=st.integers(1, 18), data=st.data())
def test_values_against_the_majority_are_those_of_the_opposite_sign(rows, num_bytes, group, data):
    values = data.draw(
        hnp.arrays(
            np.float32, rows.shape[1], elements=st.sampled_from([-(2.0**-100), -0.0, 0.0, 3.0])
        )
    )
    with chunks_of(num_bytes, group):
        against = count_against_majority(pack(rows), values)
    assert against == np.count_nonzero(np.sign(rows.sum(axis=0)) * np.sign(values) < 0)


@pytest.mark.parametrize("clients", [127, 128, 255, 256, 300, 1024, 1100])
def test_votes_of_many_clients_are_counted(clients):
    rows = random_ballots(clients, 999)
    assert np.array_equal(count_votes(pack(rows), 999), (rows > 0).sum(axis=0))
    assert np.array_equal(majority_vote(pack(rows), 999), np.sign(rows.sum(axis=0)))


@pytest.mark.parametrize("dim", [LONG - 1, LONG])
def test_votes_on_long_vectors_that_are_not_contiguous_are_counted(dim, strided):
    rows = random_ballots(4, dim)
    packed = [strided(one) for one in pack(rows)]
    assert np.array_equal(count_votes(packed, dim), (rows > 0).sum(axis=0))
    assert np.array_equal(majority_vote(packed, dim), np.sign(rows.sum(axis=0)))
    expected = rows.sum(axis=0, dtype=np.float32)
    assert np.array_equal(weighted_votes(packed, [dim], np.ones((4, 1))), expected)


@given(rows=ballots(most_clients=5), order=st.randoms(use_true_random=False))
def test_the_order_of_the_clients_does_not_matter_to_their_votes(rows, order):
    packed, dim = pack(rows), rows.shape[1]
    shuffled = order.sample(packed, len(packed))
    assert np.array_equal(count_votes(packed, dim), count_votes(shuffled, dim))
    assert np.array_equal(majority_vote(packed, dim), majority_vote(shuffled, dim))


@given(rows=ballots(most_clients=5))
def test_unused_bits_of_votes_are_ignored(rows):
    dim = rows.shape[1]
    clean, dirty = pack(rows), pack(rows)
    for packed in dirty:
        packed[dim // 8 :] |= 0xFF >> dim % 8
    ones = np.ones((len(rows), 1))
    assert np.array_equal(count_votes(dirty, dim), count_votes(clean, dim))
    assert np.array_equal(majority_vote(dirty, dim), majority_vote(clean, dim))
    assert np.array_equal(weighted_votes(dirty, [dim], ones), weighted_votes(clean, [dim], ones))


@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    clients=st.integers(1, 9),
    own=st.booleans(),
    num_bytes=st.integers(1, 10),
    seed=any_seed,
)
def test_each_sign_counts_with_its_clients_weight_for_the_array(
    sizes, clients, own, num_bytes, seed
):
    """Weights are independent, or a client's times an array's, which need fewer sums."""
    rng = np.random.default_rng(seed)
    rows = rng.choice([-1.0, 1.0], (clients, sum(sizes)))
    weights = rng.random((clients, len(sizes))) * (rng.random((clients, 1)) < 0.8)
    if not own:
        weights = rng.random(len(sizes)) * weights.max(axis=1, initial=0)[:, None]
    with chunks_of(num_bytes):
        counted = weighted_votes(pack(rows), sizes, weights)
    assert counted.dtype == np.float32
    expected = (np.repeat(weights, sizes, axis=1) * rows).sum(axis=0)
    np.testing.assert_allclose(counted, expected, rtol=0, atol=1e-5)


@given(
    rows=ballots(),
    weights=st.lists(st.floats(2**-9, 2**9, width=32), min_size=1, max_size=3),
    group=st.integers(1, 18),
)
def test_votes_of_equal_weights_are_exact_but_for_one_rounding(rows, weights, group):
    sizes = [0] * (len(weights) - 1) + [rows.shape[1]]
    with chunks_of(10, group):
        counted = weighted_votes(pack(rows), sizes, np.tile(weights, (len(rows), 1)))
    expected = rows.sum(axis=0, dtype=np.float32) * np.float32(weights[-1])
    assert counted.tolist() == expected.tolist()


def test_arrays_whose_votes_are_weighted_may_be_long_and_begin_anywhere(strided):
    clients, sizes = 6, [3, 70_000, 0, 1, 524_300, 13, 131_077]
    rng = np.random.default_rng(0)
    rows = rng.choice([-1.0, 1.0], (clients, sum(sizes)))
    weights = rng.random((clients, 7))
    counted = weighted_votes([strided(one) for one in pack(rows)], sizes, weights)
    expected = (np.repeat(weights, sizes, axis=1) * rows).sum(axis=0)
    np.testing.assert_allclose(counted, expected, rtol=0, atol=1e-5)


def weighted(weights):
    return lambda packed, dim: weighted_votes(packed, [dim], weights[: len(packed), None])


VOTES = {
    "counts": count_votes,
    "majority": majority_vote,
    "equal weights": weighted(np.ones(10_000)),
    "own weights": weighted(np.arange(1.0, 10_001)),
}


@pytest.mark.parametrize(("clients", "dim"), [(101, 2_000_000), (10_000, 800)])
@pytest.mark.parametrize("function", VOTES.values(), ids=VOTES)
def test_the_memory_that_votes_take_grows_neither_with_the_clients_nor_with_d(
    function, clients, dim, scratch_bytes
):
    packed = list(np.random.default_rng(0).integers(0, 256, (clients, dim // 8), np.uint8))
    assert scratch_bytes(function, packed, dim) < 6 * 2**20


@pytest.mark.parametrize("function", [count_votes, majority_vote])
def test_cohorts_of_ever_other_sizes_leave_little_memory_behind(function):
    packed = [np.zeros(1, np.uint8)] * 5_000
    function(packed[0:1], 8)
    tracemalloc.start()
    for clients in range(4_996, 5_000):
        function(packed[:clients], 8)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2**22


@pytest.mark.parametrize("function", VOTES.values(), ids=VOTES)
def test_votes_that_are_not_uint8_vectors_of_the_right_length_are_refused(function):
    good = np.zeros(2, np.uint8)
    bad = [good[:1], np.zeros(3, np.uint8), good[None], good.view(np.int8), np.zeros(2, np.float32)]
    bad += [bytes(2), [0, 0]]
    for packed in bad:
        for cohort in ([packed], [good, packed]):
            with pytest.raises(ValueError, match="9 packed signs must "):
                function(cohort, 9)
    with pytest.raises(ValueError, match="at least one"):
        function([], 9)
