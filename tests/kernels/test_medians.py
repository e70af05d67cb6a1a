"""The coordinate-wise median against naive references, and its bias with noise.

Every draw is seeded.
"""

from contextlib import contextmanager
from fractions import Fraction
from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Gaussian, coordinate_median
from fedmedian.kernels import medians

FLOATS = [np.float16, np.float32, np.float64]

# Limits on the number of rows that make each way to the median the one that is taken.
WAYS = {
    "network": {"_NETWORK_ROWS": 10_000},
    "sort": {"_NETWORK_ROWS": 0, "_SORT_ROWS": 10_000},
    "count": {"_NETWORK_ROWS": 0, "_SORT_ROWS": 0},
}


@contextmanager
def way(name):
    with pytest.MonkeyPatch.context() as patch:
        for limit, value in WAYS[name].items():
            patch.setattr(medians, limit, value)
        yield


def by_each_way(rows):
    """Yields the median by each way."""
    for name in WAYS:
        with way(name):
            yield coordinate_median(rows)


@st.composite
def client_vectors(draw, special=(0.0, -0.0, inf, -inf, nan)):
    """M rows of d numbers, M from 1, d from 0, with ties, signed zeros, infinities and NaN."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(st.integers(1, 17)), draw(st.integers(0, 6))
    numbers = st.floats(width=np.dtype(dtype).itemsize * 8, allow_nan=False, allow_infinity=False)
    elements = st.sampled_from([*special, 1.0, -1.0]) | numbers
    return draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))


def naive_median(values):
    if any(isnan(value) for value in values):
        return nan
    ordered, half = sorted(values), len(values) // 2
    low, high = ordered[(len(values) - 1) // 2], ordered[half]
    return middle(low, high)


def middle(low, high):
    """The mean of two numbers, which Python's floats would let overflow."""
    if low == high:
        return low
    if abs(low) == inf or abs(high) == inf:
        return low + high
    return float((Fraction(low) + Fraction(high)) / 2)


def assert_same_bits(actual, expected):
    """Equal and of equal signs, which tells −0.0 from 0.0."""
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@given(rows=client_vectors(), name=st.sampled_from(list(WAYS)))
def test_the_median_is_the_middle_value_or_the_mean_of_the_two_middle_values(rows, name):
    """And NaN where a client has one, or the two are −∞ and +∞."""
    with way(name):
        median = coordinate_median(rows)
    assert median.dtype == rows.dtype
    expected = [naive_median([float(value) for value in column]) for column in rows.T]
    np.testing.assert_array_equal(median, np.array(expected, rows.dtype))


@given(rows=client_vectors(), order=st.randoms(use_true_random=False))
def test_neither_the_order_nor_the_memory_of_the_rows_matters_to_their_median(rows, order):
    expected = coordinate_median(list(rows))
    others = {
        "shuffled": coordinate_median(order.sample(list(rows), len(rows))),
        "by columns": coordinate_median(np.asfortranarray(rows)),
        "backwards": coordinate_median(rows[:, ::-1])[::-1],
        "strided": coordinate_median(np.repeat(rows, 2, axis=1)[:, ::2]),
        "of the other byte order": coordinate_median(rows.astype(rows.dtype.newbyteorder())),
    }
    for name, median in others.items():
        np.testing.assert_array_equal(median, expected, err_msg=name)


def test_the_median_of_rows_of_the_other_byte_order_keeps_it():
    for median in by_each_way(np.arange(21.0, dtype=">f4").reshape(7, 3)):
        assert median.dtype == np.dtype(">f4")
        assert median.tolist() == [9.0, 10.0, 11.0]


# Either side of where networks give way to sorting, and sorting to counting.
@pytest.mark.parametrize("clients", [199, 200, 201, 202, 511, 512, 513, 514])
def test_the_median_of_many_clients_is_numpys(clients):
    for dtype in FLOATS:
        rng = np.random.default_rng(clients)
        # Few different values: ties, and zeros of one sign.
        rows = np.round(rng.standard_normal((clients, 150)), rng.integers(0, 4)).astype(dtype)
        rows += dtype(0)
        rows[rng.integers(clients), :5] = nan
        assert_same_bits(coordinate_median(rows), np.median(rows, axis=0))


@pytest.mark.parametrize("clients", [600, 601])
@pytest.mark.parametrize(
    "distort",
    [
        lambda rows, rng: rows,
        lambda rows, rng: np.sort(rows, axis=0),
        lambda rows, rng: np.where(rng.random(rows.shape) < 0.45, 0, rows),
        lambda rows, rng: np.where(rng.random(rows.shape) < 0.7, 0, rows),
        lambda rows, rng: rows / rng.standard_normal(rows.shape),
        lambda rows, rng: rows + 1e6 * (np.arange(len(rows)) % 2)[:, np.newaxis],
        lambda rows, rng: np.where(rng.random(rows.shape) < 0.2, inf, rows),
        lambda rows, rng: np.where(rng.random(rows.shape) < 0.6, -inf, rows),
        lambda rows, rng: np.where(np.arange(len(rows))[:, np.newaxis] % 9, rows, 1e30 * rows),
        lambda rows, rng: np.where(rng.random(rows.shape) < 0.0001, nan, rows),
    ],
    ids=[
        "normal",
        "sorted",
        "nearly half zeros",
        "mostly zeros",
        "heavy tails",
        "two camps",
        "some infinite",
        "mostly infinite",
        "outliers where the sample is taken",
        "some not a number",
    ],
)
def test_counting_finds_the_median_of_any_values(clients, distort):
    rng = np.random.default_rng(clients)
    rows = distort(rng.standard_normal((clients, 3000)), rng).astype(np.float32)
    expected = np.median(rows, axis=0)
    with way("count"):
        np.testing.assert_array_equal(coordinate_median(rows), expected)


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 10, 101])
def test_the_median_of_long_vectors_is_numpys(clients):
    for dim in (16_383, 16_384, 16_385, 40_007):
        rows = np.random.default_rng(dim).standard_normal((clients, dim), dtype=np.float32)
        rows[0, dim - 1] = nan
        expected = np.median(rows, axis=0)
        for median in by_each_way(rows):
            np.testing.assert_array_equal(median, expected)


def test_the_median_of_zeros_keeps_a_sign_that_all_have():
    for zeros in (np.full((3, 2), 0.0), np.full((3, 2), -0.0), np.full((4, 2), -0.0)):
        for median in by_each_way(zeros):
            assert_same_bits(median, zeros[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_median_does_not_flush_denormals(dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    rows = np.array([[tiny], [3 * tiny], [9 * tiny], [0]], dtype)
    for odd, even in zip(by_each_way(rows[:3]), by_each_way(rows), strict=True):
        assert odd.tolist() == [3 * tiny]
        assert even.tolist() == [2 * tiny]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_mean_of_two_middle_values_does_not_overflow(dtype):
    largest = np.finfo(dtype).max
    rows = np.array([[largest, -largest, inf, -inf, largest]] * 2, dtype)
    rows[1, 4] = -largest
    for median in by_each_way(rows):
        assert median.tolist() == [largest, -largest, inf, -inf, 0]


def test_a_median_does_not_copy_its_rows(scratch_bytes):
    rows = [np.random.default_rng(0).standard_normal(200_000, dtype=np.float32)] * 101
    for name in WAYS:
        with way(name):
            assert scratch_bytes(coordinate_median, rows) < 12 * 2**20, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
def test_a_median_of_many_clients_needs_no_more_memory_where_columns_are_sorted_whole(
    scratch_bytes, dtype
):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((1000, 1049)).astype(dtype)
    rows[rng.random(rows.shape) < 0.45] = 0
    assert scratch_bytes(coordinate_median, rows) < 24 * 2**20


def test_a_median_leaves_its_rows_as_they_were():
    rows = [np.array([3.0, nan]), np.array([1.0, 2.0]), np.array([2.0, 1.0])]
    copies = [row.copy() for row in rows]
    for _ in by_each_way(rows):
        np.testing.assert_array_equal(rows, copies)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        np.empty((0, 3)),
        [np.zeros(2), np.zeros(3)],
        [np.zeros(2), np.zeros(2, np.float32)],
        [np.zeros((2, 2))],
        [np.zeros(2, np.int64)],
        [np.zeros(2, np.complex64)],
        [[0.0, 1.0]],
    ],
    ids=["no rows", "no rows of 3", "lengths", "dtypes", "a matrix", "integers", "complex", "list"],
)
def test_a_median_of_what_is_no_row_of_floats_is_refused(rows):
    with pytest.raises(ValueError, match=r"^rows must "):
        coordinate_median(rows)


@pytest.mark.parametrize(("b", "bias"), [(5, -0.581), (20, -0.0449)])
def test_noise_moves_the_median_of_skewed_clients_to_their_mean(b, bias):
    """For 1, 2 and 10 without noise the bias is 2 − 13/3; with noise it decays as 1/b²."""
    updates, n = (1.0, 2.0, 10.0), 1_000_000
    rng = np.random.default_rng(7)
    noise = [b * Gaussian().sample(rng, n).astype(np.float64) for _ in updates]
    # ξ and −ξ are equally likely; the mean over each such pair varies little.
    pairs = [
        coordinate_median([u + sign * xi for u, xi in zip(updates, noise, strict=True)])
        for sign in (1, -1)
    ]
    medians = np.mean(pairs, axis=0)
    standard_error = medians.std() / sqrt(n)
    assert standard_error < abs(bias) / 10
    assert abs(medians.mean() - np.mean(updates) - bias) < 5 * standard_error


def test_the_noisy_median_of_three_has_the_variance_of_the_middle_of_three():
    b, n = 2.0, 400_000
    rng = np.random.default_rng(8)
    medians = coordinate_median([b * Gaussian().sample(rng, n) for _ in range(3)])
    assert medians.var() * 3 / b**2 == pytest.approx(1.346, abs=0.015)
