"""The coordinate-wise median against a naive reference, and its bias with noise."""

from math import inf, isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Gaussian, coordinate_median
from fedmedian.medians import _BLOCK

FLOATS = [np.float16, np.float32, np.float64]


@st.composite
def client_vectors(draw, special=(0.0, -0.0, inf, -inf, nan)):
    """M rows of d numbers, M from 1, d from 0, with ties, signed zeros, infinities and NaN."""
    dtype = draw(st.sampled_from(FLOATS))
    shape = draw(st.integers(1, 8)), draw(st.integers(0, 6))
    # The middle of two numbers must not overflow on the way.
    largest = float(np.finfo(dtype).max) / 2
    numbers = st.floats(-largest, largest, width=np.dtype(dtype).itemsize * 8)
    elements = st.sampled_from([*special, 1.0, -1.0]) | numbers
    return draw(hnp.arrays(dtype, shape, elements=elements, fill=st.nothing()))


def naive_median(values):
    if any(isnan(value) for value in values):
        return nan
    ordered, half = sorted(values), len(values) // 2
    if len(values) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


class TestCoordinateMedian:
    @given(rows=client_vectors())
    def test_is_the_middle_value_or_the_mean_of_the_two_middle_values(self, rows):
        median = coordinate_median(rows)
        assert median.dtype == rows.dtype
        expected = [naive_median([float(value) for value in column]) for column in rows.T]
        np.testing.assert_array_equal(median, np.array(expected, rows.dtype))

    @given(rows=client_vectors(special=(nan, inf, -inf)))
    def test_is_nan_exactly_where_a_client_has_a_nan_or_the_middle_is_undefined(self, rows):
        has_nan = np.isnan(rows).any(axis=0)
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

    @pytest.mark.parametrize("clients", [1, 2, 5, 6])
    @pytest.mark.parametrize("dim", [_BLOCK - 1, _BLOCK, _BLOCK + 1, 3 * _BLOCK + 7])
    def test_long_vectors(self, clients, dim):
        rows = np.random.default_rng(dim).standard_normal((clients, dim), dtype=np.float32)
        rows[0, dim - 1] = nan
        with np.errstate(invalid="ignore"):
            expected = np.median(rows, axis=0)
        np.testing.assert_array_equal(coordinate_median(rows), expected)

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
