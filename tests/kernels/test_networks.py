"""Selection and sorting networks by the zero-one principle.

A network that selects the middle of zeros and ones, or sorts them, does so for all numbers.
"""

from itertools import product

import numpy as np

from fedmedian.kernels.networks import median_network, pairwise_comparators

MANY = (31, 32, 33, 64, 65, 100, 101, 127, 200)


def zeros_and_ones(num_rows):
    """All columns of zeros and ones, or of many rows all sorted ones, shuffled (seeded)."""
    if num_rows <= 12:
        return np.array(list(product([0, 1], repeat=num_rows)), np.int8).T
    ones = np.repeat(np.arange(num_rows + 1), 30)
    rng = np.random.default_rng(num_rows)
    return rng.permuted(np.arange(num_rows)[:, None] < ones, axis=0).astype(np.int8)


def test_a_median_network_selects_the_two_middle_rows(run_program):
    for num_rows in (*range(1, 31), *MANY):
        rows = zeros_and_ones(num_rows)
        low, high = run_program(median_network(num_rows), rows)
        ordered = np.sort(rows, axis=0)
        assert np.array_equal(low, ordered[(num_rows - 1) // 2]), num_rows
        assert np.array_equal(high, ordered[num_rows // 2]), num_rows


def test_a_median_network_is_as_short_as_documented():
    steps = {num_rows: len(median_network(num_rows).steps) for num_rows in (1, 2, 3, 11, 101)}
    assert steps == {1: 0, 2: 2, 3: 4, 11: 48, 101: 1480}


def test_a_median_network_lets_the_nan_of_any_row_through(run_program):
    for num_rows in (1, 2, 5, 30, 101):
        rows = np.zeros((num_rows, num_rows), np.float32)
        np.fill_diagonal(rows, np.nan)
        for middle in run_program(median_network(num_rows), rows):
            assert np.isnan(middle).all(), num_rows


def test_pairwise_comparators_sort():
    for num_wires in (*range(1, 13), 31, 100):
        rows = zeros_and_ones(num_wires)
        expected = np.sort(rows, axis=0)
        for low, high in pairwise_comparators(range(num_wires)):
            rows[[low, high]] = np.minimum(*rows[[low, high]]), np.maximum(*rows[[low, high]])
        assert np.array_equal(rows, expected), num_wires
