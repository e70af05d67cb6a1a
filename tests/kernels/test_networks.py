"""Median networks by the zero-one principle."""

from itertools import product

import numpy as np
import pytest

from fedmedian.kernels.networks import median_network, pairwise_comparators


def run(program, rows):
    scratch = [np.empty_like(rows[0]) for _ in range(program.num_scratch)]
    return program.run(list(rows), scratch)


def zeros_and_ones(num_rows):
    """All columns of zeros and ones, or for many rows all sorted ones, shuffled, and more."""
    if num_rows <= 12:
        return np.array(list(product([0, 1], repeat=num_rows)), np.int8).T
    rng = np.random.default_rng(num_rows)
    ones = np.repeat(np.arange(num_rows + 1), 30)
    return rng.permuted(np.arange(num_rows)[:, None] < ones, axis=0).astype(np.int8)


class TestMedianNetwork:
    @pytest.mark.parametrize("num_rows", [*range(1, 41), 51, 64, 65, 100, 101, 127, 200])
    def test_selects_the_middle(self, num_rows):
        """A network that does so for zeros and ones does so for all numbers."""
        rows = zeros_and_ones(num_rows)
        low, high = run(median_network(num_rows), rows)
        ordered = np.sort(rows, axis=0)
        assert np.array_equal(low, ordered[(num_rows - 1) // 2])
        assert np.array_equal(high, ordered[num_rows // 2])

    @pytest.mark.parametrize(("num_rows", "steps"), [(1, 0), (2, 2), (3, 4), (11, 48), (101, 1480)])
    def test_is_as_short_as_its_docstring_says(self, num_rows, steps):
        assert len(median_network(num_rows).steps) == steps

    @pytest.mark.parametrize("num_rows", [1, 2, 5, 30, 101])
    def test_lets_every_nan_through(self, num_rows):
        rows = np.zeros((num_rows, num_rows), np.float32)
        np.fill_diagonal(rows, np.nan)
        for middle in run(median_network(num_rows), rows):
            assert np.isnan(middle).all()

    def test_leaves_its_inputs_alone(self):
        rows = np.random.default_rng(0).standard_normal((30, 9))
        copy = rows.copy()
        run(median_network(30), rows)
        assert np.array_equal(rows, copy)


@pytest.mark.parametrize("num_wires", [*range(1, 13), 31, 100])
def test_pairwise_comparators_sort(num_wires):
    rows = zeros_and_ones(num_wires)
    expected = np.sort(rows, axis=0)
    for low, high in pairwise_comparators(range(num_wires)):
        rows[[low, high]] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    assert np.array_equal(rows, expected)
