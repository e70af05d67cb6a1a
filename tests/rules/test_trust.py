"""Weights, scales and exact arrays that clients report; `agreed_size` is tested with the scales."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian.rules.trust import (
    PROPORTION,
    SHARE,
    capped_examples,
    clip_two,
    count_out_of_proportion,
    in_proportion,
    mean_in_proportion,
    num_tolerated,
    up_to_trusted,
    voting_weights,
)

finite = st.floats(-1e300, 1e300)


def equal(clients):
    return np.full(clients, 1 / clients)


@pytest.mark.parametrize(
    ("clients", "liars"), [(1, 0), (2, 1), (3, 1), (9, 1), (10, 2), (14, 2), (100, 20)]
)
def test_a_fifth_of_the_clients_may_lie_and_one_of_two_or_more(clients, liars):
    assert num_tolerated(clients) == liars


class TestExamples:
    @given(
        examples=hnp.arrays(
            np.float64, st.integers(1, 25), elements=st.floats(0, 1e308, exclude_min=True)
        )
    )
    def test_no_client_holds_more_than_a_quarter_above_its_equal_share(self, examples):
        weights = voting_weights(examples)
        assert weights.sum() == pytest.approx(1)
        assert weights.max() <= SHARE / len(examples) * (1 + 1e-9)

    @pytest.mark.parametrize("clients", range(2, 26))
    @pytest.mark.parametrize("claim", [2.0, 4.0, 1e12, 1e308])
    def test_among_clients_that_claim_alike_t_liars_weigh_no_more_than_the_others(
        self, clients, claim
    ):
        examples = np.full(clients, 100.0)
        examples[: num_tolerated(clients)] *= min(claim, 1e306)
        np.testing.assert_array_equal(voting_weights(examples), equal(clients))

    @given(
        honest=hnp.arrays(np.float64, st.integers(3, 25), elements=st.floats(1, 1e6)),
        claim=st.floats(1, 1e308),
    )
    def test_t_liars_cannot_raise_the_cap_above_the_largest_honest_claim(self, honest, claim):
        examples = honest.copy()
        examples[: num_tolerated(len(honest))] = claim
        assert capped_examples(examples).max() <= honest[num_tolerated(len(honest)) :].max()

    @given(
        examples=hnp.arrays(np.float64, st.integers(1, 25), elements=st.floats(1, 1e6)),
    )
    def test_the_cap_is_the_largest_that_keeps_both_bounds(self, examples):
        capped = capped_examples(examples)
        cap, clients = capped.max(), len(examples)
        np.testing.assert_array_equal(capped, np.minimum(examples, cap))
        trusted = sorted(examples)[clients - 1 - num_tolerated(clients)]
        assert cap <= trusted
        more = np.minimum(examples, 1.001 * cap)
        assert 1.001 * cap > min(trusted, SHARE * more.mean())

    def test_claims_below_the_cap_count_as_they_are(self):
        assert capped_examples(np.array([9.0, 10, 11, 12, 12])).tolist() == [9, 10, 11, 12, 12]


def in_column(*sizes, weights=None):
    weights = equal(len(sizes)) if weights is None else np.array(weights)
    return in_proportion(np.array(sizes)[:, None], weights).ravel().tolist()


class TestSizesInProportion:
    def test_no_client_counts_for_more_than_four_times_the_median_one(self):
        assert in_column(1.0, 2, 3, 9, 1e9) == [1, 2, 3, 9, 3 * PROPORTION]

    def test_nor_for_more_than_twice_the_largest_but_for_those_of_t_clients(self):
        assert in_column(1.0, 2, 3, 3.5, 1e9) == [1, 2, 3, 3.5, 7]
        assert in_column(100.0, 1e9) == [100, 200]
        assert in_column(100.0) == [100]

    def test_examples_and_size_have_one_cap_together(self):
        weights = [0.18, 0.19, 0.2, 0.2, 0.23]
        sizes = in_column(1.0, 2, 3, 3.5, 1e9, weights=weights)
        assert sizes == pytest.approx([1, 2, 3, 3.5, 7 * 0.2 / 0.23])

    def test_clients_that_are_cut_are_counted_once_however_many_of_their_claims_are(self):
        alike, examples = np.ones((5, 2)), np.ones(5)
        liar = np.array([[1.0, 1.0]] * 4 + [[9.0, 9.0]])
        other = np.array([[9.0, 1.0]] + [[1.0, 1.0]] * 4)
        assert count_out_of_proportion(examples, alike) == 0
        assert count_out_of_proportion(examples, alike, liar, liar) == 1
        assert count_out_of_proportion(examples, liar, other) == 2
        assert count_out_of_proportion(np.array([4.0, 1, 1, 1, 1]), other) == 1
        assert count_out_of_proportion(np.array([1, 4.0, 1, 1, 1]), other) == 2


class TestTrustedSizes:
    def test_the_longest_fifth_counts_as_the_next(self):
        sizes = np.array([[1.0, 5], [2, 4], [3, 3], [4, 2], [1e300, 0]])
        expected = [[1, 4], [2, 4], [3, 3], [4, 2], [4, 0]]
        np.testing.assert_array_equal(up_to_trusted(sizes), expected)

    def test_of_two_clients_none_counts_for_more_than_the_smaller_and_one_for_itself(self):
        assert up_to_trusted(np.array([[7.0], [2.0]])).ravel().tolist() == [2, 2]
        assert up_to_trusted(np.array([[7.0]])).ravel().tolist() == [7]


class TestMeanInProportion:
    @given(
        values=hnp.arrays(
            np.float64, st.tuples(st.integers(1, 11), st.integers(1, 3)), elements=finite
        ),
        seed=st.integers(0, 9),
    )
    def test_is_the_weighted_mean_of_values_clipped_around_the_median(self, values, seed):
        clients = len(values)
        weights = np.random.default_rng(seed).dirichlet(np.ones(clients))
        expected = []
        for column in values.T:
            median = np.median(column)
            reach = 4 * sorted(abs(column - median))[clients - 1 - num_tolerated(clients)]
            mean = np.dot(weights, np.clip(column, median - reach, median + reach))
            low = sorted(column)[num_tolerated(clients)]
            expected.append(low if clients > 2 and low > 0 and mean <= 0 else mean)
        actual = mean_in_proportion(values, weights)
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9 * np.abs(values).max())

    @pytest.mark.parametrize("clients", range(1, 12))
    def test_is_the_weighted_mean_where_nobody_is_out_of_line(self, clients):
        values = np.random.default_rng(0).permutation(np.linspace(-1, 2, clients))
        weights = np.random.default_rng(1).dirichlet(np.ones(clients))
        assert mean_in_proportion(values, weights) == pytest.approx(weights @ values)

    @pytest.mark.parametrize("clients", [3, 4, 5, 10, 25])
    def test_a_fifth_of_the_clients_moves_it_by_no_more_than_the_others_differ(self, clients):
        honest = np.random.default_rng(0).normal(1.0, 0.1, (clients, 50))
        for claim in (-1e6, 1e6, 1e300):
            values = honest.copy()
            values[: num_tolerated(clients)] = claim
            others = values[num_tolerated(clients) :]
            moved = mean_in_proportion(values, equal(clients)) - others.mean(axis=0)
            assert np.all(np.abs(moved) < 2 * np.ptp(others, axis=0))

    @pytest.mark.parametrize("clients", [3, 4, 5, 10, 25])
    def test_a_variance_stays_positive_whatever_a_fifth_of_the_clients_sends(self, clients):
        variances = np.random.default_rng(1).uniform(1e-3, 10, (clients, 200))
        for claim in (-1e6, -1e-3, -1e300):
            values = variances.copy()
            values[: num_tolerated(clients)] = claim
            assert np.all(mean_in_proportion(values, equal(clients)) > 0)


class TestTwo:
    def test_neither_changes_by_more_than_four_times_as_much_as_the_other(self):
        start = np.array([1.0, 2.0])
        values = np.array([[1.3, 2.4], [1.0, 1e12]])
        clipped = clip_two(values, start)
        np.testing.assert_array_equal(clipped[0], values[0])
        np.testing.assert_allclose(clipped[1], [1.0, 2.0 + 4 * 0.5])

    def test_changes_of_about_a_length_stay_as_they_are(self):
        values = np.array([[1.0, -2.0], [3.0, 4.0]])
        np.testing.assert_array_equal(clip_two(values, np.array([0.5, 0.5])), values)

    def test_of_one_that_has_not_changed_neither_does_the_other(self):
        assert clip_two(np.array([[1.0], [5.0]]), np.array([1.0])).tolist() == [[1.0], [1.0]]
