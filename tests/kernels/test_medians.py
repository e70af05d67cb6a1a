"""The coordinate-wise median against a naive reference, and its bias with noise."""

import tracemalloc
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
    "partition": {"_NETWORK_ROWS": 0, "_SORT_ROWS": 0},
}


@contextmanager
def way(name):
    with pytest.MonkeyPatch.context() as patch:
        for limit, value in WAYS[name].items():
            patch.setattr(medians, limit, value)
        yield


@pytest.fixture(params=WAYS)
def each_way(request):
    with way(request.param):
        yield


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


def naive_weighted_median(values, weights):
    """The definition, with exact weights: no value counts whose weight is 0."""
    pairs = sorted((v, Fraction(w)) for v, w in zip(values, weights, strict=True) if w > 0)
    if any(isnan(value) for value, _ in pairs):
        return nan
    half, held = sum(weight for _, weight in pairs) / 2, Fraction(0)
    low = high = None
    for value, weight in pairs:
        held += weight
        if low is None and held >= half:
            low = value
        if high is None and held > half:
            high = value
    return middle(low, high)


def assert_same_bits(actual, expected):
    """Equal and of equal signs, which tells −0.0 from 0.0."""
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


class TestCoordinateMedian:
    @given(rows=client_vectors(), name=st.sampled_from(list(WAYS)))
    def test_is_the_middle_value_or_the_mean_of_the_two_middle_values(self, rows, name):
        with way(name):
            median = coordinate_median(rows)
        assert median.dtype == rows.dtype
        expected = [naive_median([float(value) for value in column]) for column in rows.T]
        np.testing.assert_array_equal(median, np.array(expected, rows.dtype))

    @given(rows=client_vectors(special=(nan, inf, -inf)), name=st.sampled_from(list(WAYS)))
    def test_is_nan_exactly_where_a_client_has_a_nan_or_the_middle_is_undefined(self, rows, name):
        has_nan = np.isnan(rows).any(axis=0)
        with way(name):
            median = coordinate_median(rows)
        assert np.all(np.isnan(median[has_nan]))
        if len(rows) % 2:
            assert not np.any(np.isnan(median[~has_nan]))

    @given(rows=client_vectors(), seed=st.integers(0, 9))
    def test_neither_the_order_nor_the_memory_of_the_rows_matters(self, rows, seed):
        order = np.random.default_rng(seed).permutation(len(rows))
        expected = coordinate_median(list(rows))
        np.testing.assert_array_equal(coordinate_median(rows[order]), expected)
        np.testing.assert_array_equal(coordinate_median(np.asfortranarray(rows)), expected)
        np.testing.assert_array_equal(coordinate_median(rows[:, ::-1])[::-1], expected)
        np.testing.assert_array_equal(
            coordinate_median(np.repeat(rows, 2, axis=1)[:, ::2]), expected
        )

    @given(rows=client_vectors(special=()))
    def test_lies_within_what_the_clients_sent(self, rows):
        median = coordinate_median(rows)
        assert np.all(rows.min(axis=0) <= median)
        assert np.all(median <= rows.max(axis=0))

    @pytest.mark.parametrize("clients", [1, 2, 5, 6, 101])
    @pytest.mark.parametrize("dim", [16_383, 16_384, 16_385, 40_007])
    def test_long_vectors(self, clients, dim):
        rows = np.random.default_rng(dim).standard_normal((clients, dim), dtype=np.float32)
        rows[0, dim - 1] = nan
        np.testing.assert_array_equal(coordinate_median(rows), np.median(rows, axis=0))

    @pytest.mark.parametrize("clients", [50, 51, 100, 101, 200, 201, 512, 513, 1001])
    @pytest.mark.parametrize("dtype", FLOATS)
    def test_many_clients(self, clients, dtype):
        rng = np.random.default_rng(clients)
        # Few different values: ties, and zeros of one sign.
        rows = np.round(rng.standard_normal((clients, 150)), rng.integers(0, 4)).astype(dtype)
        rows += dtype(0)
        rows[rng.integers(clients), :5] = nan
        assert_same_bits(coordinate_median(rows), np.median(rows, axis=0))

    @pytest.mark.parametrize("clients", [3, 4])
    def test_zeros_keep_a_sign_that_all_have(self, clients, each_way):
        for zero in (0.0, -0.0):
            assert_same_bits(coordinate_median(np.full((clients, 2), zero)), np.full(2, zero))

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_denormals_are_not_flushed(self, dtype, each_way):
        tiny = np.finfo(dtype).smallest_subnormal
        rows = np.array([[tiny], [3 * tiny], [9 * tiny], [0]], dtype)
        assert coordinate_median(rows[:3]).tolist() == [3 * tiny]
        assert coordinate_median(rows).tolist() == [2 * tiny]

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_the_mean_of_two_values_does_not_overflow(self, dtype, each_way):
        largest = np.finfo(dtype).max
        rows = np.array([[largest, -largest, inf, -inf, largest]] * 2, dtype)
        rows[1, 4] = -largest
        assert coordinate_median(rows).tolist() == [largest, -largest, inf, -inf, 0]

    def test_the_mean_of_both_infinities_is_undefined(self, each_way):
        assert np.isnan(coordinate_median(np.array([[inf], [-inf]])))

    def test_bytes_may_come_in_the_other_order(self, each_way):
        rows = np.arange(21.0, dtype=">f4").reshape(7, 3)
        median = coordinate_median(rows)
        assert median.dtype == rows.dtype
        assert median.tolist() == [9.0, 10.0, 11.0]

    @pytest.mark.parametrize("options", [{}, {"weights": range(1, 102)}])
    def test_the_rows_are_not_copied(self, options, each_way):
        rows = np.random.default_rng(0).standard_normal((101, 400_000), dtype=np.float32)
        coordinate_median(rows[:, :9], **options)  # what is kept between calls
        tracemalloc.start()
        median = coordinate_median(rows, **options)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak - median.nbytes < 12 * 2**20

    def test_the_rows_stay_as_they_were(self):
        rows = [np.array([3.0, nan]), np.array([1.0, 2.0]), np.array([2.0, 1.0])]
        copies = [row.copy() for row in rows]
        coordinate_median(rows)
        np.testing.assert_array_equal(rows, copies)

    @pytest.mark.parametrize(
        ("rows", "reason"),
        [
            ([], "at least one vector"),
            (np.empty((0, 3)), "at least one vector"),
            ([np.zeros(2), np.zeros(3)], "agree in length and dtype"),
            ([np.zeros(2), np.zeros(2, np.float32)], "agree in length and dtype"),
            ([np.zeros((2, 2))], "one-dimensional floating-point"),
            ([np.zeros(2, np.int64)], "one-dimensional floating-point"),
            ([np.zeros(2, np.complex64)], "one-dimensional floating-point"),
        ],
    )
    def test_what_is_not_a_row_of_floats_is_refused(self, rows, reason):
        with pytest.raises(ValueError, match=f"^rows must .*{reason}"):
            coordinate_median(rows)


@st.composite
def weighted_vectors(draw):
    """Clients' vectors with whole numbers as weights, whose sums are exact."""
    rows = draw(client_vectors())
    weights = hnp.arrays(np.int64, len(rows), elements=st.integers(0, 5)).filter(np.any)
    return rows, draw(weights)


class TestWeights:
    @given(case=weighted_vectors())
    def test_give_the_mean_of_the_lower_and_the_upper_weighted_median(self, case):
        rows, weights = case
        median = coordinate_median(rows, weights)
        assert median.dtype == rows.dtype
        expected = [
            naive_weighted_median([float(value) for value in column], weights.tolist())
            for column in rows.T
        ]
        np.testing.assert_array_equal(median, np.array(expected, rows.dtype))

    @given(case=weighted_vectors())
    def test_whole_numbers_count_a_client_that_many_times(self, case):
        rows, weights = case
        np.testing.assert_array_equal(
            coordinate_median(rows, weights), coordinate_median(np.repeat(rows, weights, axis=0))
        )

    @given(rows=client_vectors(), weight=st.floats(1e-9, 1e9))
    def test_that_are_equal_give_the_plain_median(self, rows, weight):
        expected = coordinate_median(rows)
        np.testing.assert_array_equal(coordinate_median(rows, [weight] * len(rows)), expected)

    @given(case=weighted_vectors())
    def test_halves_that_are_equal_only_on_paper_are_equal(self, case):
        """A tenth, say, is no float, and neither are sums of tenths what they should be."""
        rows, weights = case
        np.testing.assert_array_equal(
            coordinate_median(rows, weights / weights.sum()), coordinate_median(rows, weights)
        )

    def test_long_vectors(self):
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((9, 40_007), dtype=np.float32)
        weights = rng.integers(1, 5, 9)
        expected = np.median(np.repeat(rows, weights, axis=0), axis=0)
        np.testing.assert_array_equal(coordinate_median(rows, weights), expected)

    @pytest.mark.parametrize(
        ("weights", "reason"),
        [
            ([1, 1], "3 numbers"),
            (1.0, "3 numbers"),
            ([[1, 1, 1]], "3 numbers"),
            ([1, -1, 1], "finite and >= 0, and not all 0"),
            ([1, nan, 1], "finite and >= 0, and not all 0"),
            ([1, inf, 1], "finite and >= 0, and not all 0"),
            ([0, 0, 0], "finite and >= 0, and not all 0"),
        ],
    )
    def test_that_are_no_weights_are_refused(self, weights, reason):
        with pytest.raises(ValueError, match=f"^weights must be {reason}"):
            coordinate_median(np.zeros((3, 2)), weights)


@pytest.mark.parametrize(("b", "bias"), [(5, -0.581), (10, -0.172), (20, -0.0449)])
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
    assert abs(medians.mean() - np.mean(updates) - bias) < 4 * standard_error


def test_the_variance_of_the_noisy_median_of_three():
    b, n = 2.0, 400_000
    rng = np.random.default_rng(8)
    medians = coordinate_median([b * Gaussian().sample(rng, n) for _ in range(3)])
    assert medians.var() * 3 / b**2 == pytest.approx(1.346, abs=0.012)
