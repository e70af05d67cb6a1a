"""What a round says about itself, against naive counts and against the truth."""

from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Gaussian, Laplace, Layout, Logistic, Payload, Uniform, pack_signs
from fedmedian.aggregation import aggregate_signs, aggregate_vectors
from fedmedian.diagnostics import (
    MeanGap,
    count_opposite_signs,
    describe_median,
    describe_votes,
)

SIZES = (40_000, 60_000)
GAUSSIAN = Gaussian()


def layout_of(*sizes):
    return Layout.of({str(i): np.zeros(size, np.float32) for i, size in enumerate(sizes)})


def signs(rows, scales):
    """The payloads of clients that vote as the signs of these rows."""
    nothing, none = np.empty(0, np.uint8), np.zeros(np.shape(scales)[1], np.float32)
    return [
        Payload("signs", "gaussian", np.float32(own), none, pack_signs(row), nothing)
        for row, own in zip(rows, scales, strict=True)
    ]


def vectors(rows, scale=0.0, arrays=1):
    nothing, scales = np.empty(0, np.uint8), np.full(arrays, scale, np.float32)
    return [Payload("vector", None, scales, scales, np.float32(row), nothing) for row in rows]


def count(payloads, layout, weights=None, noise=GAUSSIAN, decode="counts", **options):
    weights = np.full(len(payloads), 1 / len(payloads)) if weights is None else np.array(weights)
    draws = np.random.default_rng(0)
    return aggregate_signs(payloads, weights, layout, noise, decode, "random", draws, **options)


def gap_of(median, rows):
    gap = MeanGap()
    gap.add(median, rows)
    return gap


def vectors_of_size(n):
    return hnp.arrays(np.float32, n, elements=st.sampled_from([-2.0, -0.0, 0.0, 1e-30, 3.0]))


class TestCountOfOppositeSigns:
    @given(pair=st.integers(0, 20).flatmap(lambda n: st.tuples(*[vectors_of_size(n)] * 2)))
    def test_is_the_number_of_coordinates_where_one_is_positive_and_one_negative(self, pair):
        left, right = pair
        opposite = sum(
            (a > 0 and b < 0) or (a < 0 and b > 0) for a, b in zip(left, right, strict=True)
        )
        assert count_opposite_signs(left, right) == opposite

    def test_zeros_oppose_nothing(self):
        assert count_opposite_signs(np.float32([0, -0.0, 1]), np.float32([1, -1, 0])) == 0

    def test_tiny_numbers_have_signs(self):
        assert count_opposite_signs(np.float32([1e-38]), np.float32([-1e-38])) == 1


class TestMeanGap:
    @given(rows=hnp.arrays(np.float32, (4, 9), elements=st.integers(-8, 8)), cut=st.integers(0, 9))
    def test_adds_up_over_blocks(self, rows, cut):
        median = np.median(rows, axis=0)
        whole, parts = MeanGap(), MeanGap()
        whole.add(median, list(rows))
        for block in (slice(cut), slice(cut, None)):
            parts.add(median[block], [row[block] for row in rows])
        assert parts.energy == pytest.approx(whole.energy)
        assert parts.opposite == whole.opposite
        mean = rows.mean(axis=0)
        assert whole.energy == pytest.approx(np.square(median - mean).sum(), rel=1e-5)
        assert whole.opposite == np.count_nonzero(median * mean < 0)


@st.composite
def elections(draw):
    """Votes of M clients on nine coordinates, with weights and two arrays' scales for each."""
    clients = draw(st.integers(1, 7))
    rows = draw(hnp.arrays(np.int8, (clients, 9), elements=st.sampled_from([-1, 1])))
    examples = draw(hnp.arrays(np.int64, clients, elements=st.integers(1, 10)))
    scales = draw(hnp.arrays(np.float32, (clients, 2), elements=st.floats(0.5, 1.0, width=32)))
    return rows, examples / examples.sum(), scales


class TestMajorityAgainstMean:
    """How often the plain majority and the decoded mean point in opposite directions."""

    @given(election=elections())
    @pytest.mark.parametrize("decode", ["counts", "majority"])
    def test_is_the_fraction_of_coordinates_counted_one_by_one(self, decode, election):
        rows, weights, scales = election
        opposite, unclear = 0, 0
        for k in range(9):
            plain = sum(int(row[k]) for row in rows)
            worth = [
                weight * float(own[int(k >= 4)]) * int(row[k])
                for row, weight, own in zip(rows, weights, scales, strict=True)
            ]
            mean = sum(worth)
            unclear += plain != 0 and abs(mean) < 1e-5
            opposite += plain * mean < 0
        result = count(signs(rows, scales), layout_of(4, 5), weights, decode=decode)
        measured = 9 * result.diagnostics["majority-contradicts-mean"]
        # Where the mean is zero but for rounding, its sign is anybody's guess.
        assert opposite - unclear - 1e-9 <= measured <= opposite + unclear + 1e-9

    def test_two_small_clients_that_outvote_a_large_one(self):
        rows, scales = np.array([[-1, -1, 1], [-1, 1, 1], [1, 1, 1]]), np.ones((3, 1))
        assert contradiction(rows, scales, [0.1, 0.1, 0.8]) == pytest.approx(1 / 3)

    def test_two_quiet_clients_that_outvote_a_loud_one(self):
        rows, scales = np.array([[-1, -1, 1], [-1, 1, 1], [1, 1, 1]]), [[1.0], [1.0], [3.0]]
        assert contradiction(rows, scales) == pytest.approx(1 / 3)

    def test_never_where_all_count_alike(self):
        rows = np.random.default_rng(0).standard_normal((5, 99))
        assert contradiction(rows, np.full((5, 1), 0.3)) == 0

    def test_is_not_reported_without_noise(self):
        payloads = signs(np.ones((3, 4)), np.ones((3, 1)))
        report = count(payloads, layout_of(4), noise=None, decode="majority").diagnostics
        assert set(report) == {"vote-agreement"}

    @given(
        rows=hnp.arrays(
            np.float32, (3, 8), elements=st.integers(-8, 8).map(lambda eighths: eighths / 8)
        )
    )
    def test_of_vectors_is_where_median_and_mean_have_opposite_signs(self, rows):
        report = aggregate_vectors(vectors(rows), None, layout_of(8)).diagnostics
        exact = rows.astype(np.float64)
        opposite = [np.median(column) * column.sum() < 0 for column in exact.T]
        assert report["majority-contradicts-mean"] == pytest.approx(np.mean(opposite))


def contradiction(rows, scales, weights=None):
    report = count(signs(rows, scales), layout_of(rows.shape[1]), weights).diagnostics
    return report["majority-contradicts-mean"]


class TestSignalToNoisePerArray:
    @pytest.fixture
    def noisy(self):
        """Rows of eight clients: one array is nearly all noise, the other has a clear signal."""
        draws, means = np.random.default_rng(1), np.repeat([0.05, 0.6], SIZES)
        return [np.float32(means + draws.standard_normal(means.size)) for _ in range(8)]

    def test_of_votes_is_the_energy_of_their_expectation_over_that_of_their_noise(self, noisy):
        payloads = signs(noisy, np.ones((8, 2)))
        report = count(payloads, layout_of(*SIZES)).diagnostics
        expected = [2 * float(GAUSSIAN.cdf(u)) - 1 for u in (0.05, 0.6)]
        truth = [8 * mean**2 / (1 - mean**2) for mean in expected]
        assert report["signal-to-noise-per-array"] == pytest.approx(truth, rel=0.1, abs=0.02)
        assert min(truth) < report["signal-to-noise"] < max(truth)

    def test_of_a_median_is_its_energy_over_that_of_its_noise(self, noisy):
        payloads = vectors(noisy, scale=1.0, arrays=2)
        report = aggregate_vectors(payloads, GAUSSIAN, layout_of(*SIZES)).diagnostics
        truth = [8 * u**2 / (pi / 2) for u in (0.05, 0.6)]
        # The variance of a median of eight is 5 % below the asymptotic one.
        assert report["signal-to-noise-per-array"] == pytest.approx(truth, rel=0.1, abs=0.1)

    def test_one_array_is_all_there_is(self, noisy):
        rows = [row[-SIZES[1] :] for row in noisy]
        report = count(signs(rows, np.ones((8, 1))), layout_of(SIZES[1])).diagnostics
        assert report["signal-to-noise-per-array"] == pytest.approx([report["signal-to-noise"]])

    @pytest.mark.parametrize("noise", [GAUSSIAN, Logistic(), Laplace(), Uniform()], ids=str)
    def test_is_about_zero_where_there_is_no_signal(self, noise):
        draws = np.random.default_rng(2)
        rows = [noise.sample(draws, 50_000) for _ in range(10)]
        ratios = count(signs(rows, np.ones((10, 1))), layout_of(50_000), noise=noise).diagnostics
        assert 0 <= ratios["signal-to-noise-per-array"][0] < 5 * sqrt(2 / 50_000)

    def test_has_a_zero_for_arrays_without_entries_or_votes(self):
        draws = np.random.default_rng(3)
        rows, scales = draws.standard_normal((4, 50)), [[1.0, 1.0, 0.0]] * 4
        report = count(signs(rows, scales), layout_of(30, 0, 20)).diagnostics
        assert report["signal-to-noise-per-array"][1:] == [0.0, 0.0]
        assert report["signal-to-noise"] == pytest.approx(report["signal-to-noise-per-array"][0])

    def test_numbers_are_plain(self, noisy):
        weights, layout = np.full((8, 2), 1 / 8), layout_of(*SIZES)
        votes = sum(np.sign(row) for row in noisy) / np.float32(8)
        scales = np.ones(2)
        for report in (
            describe_votes(votes, weights, layout, GAUSSIAN),
            describe_median(votes, gap_of(votes, noisy), 8, scales, layout, GAUSSIAN),
        ):
            for value in report.values():
                for number in value if isinstance(value, list) else [value]:
                    assert type(number) is float


class TestSwitchedOff:
    @pytest.mark.parametrize("decode", ["counts", "majority"])
    def test_votes_mean_the_same_and_nothing_is_reported(self, decode):
        payloads = signs(np.random.default_rng(0).standard_normal((4, 50)), np.ones((4, 1)))
        usual = count(payloads, layout_of(50), decode=decode)
        quiet = count(payloads, layout_of(50), decode=decode, diagnostics=False)
        np.testing.assert_array_equal(quiet.direction, usual.direction)
        assert usual.diagnostics
        assert quiet.diagnostics == {}

    @pytest.mark.parametrize("smoothing", [None, np.float32([0.5])], ids=["median", "smoothed"])
    def test_vectors_mean_the_same_and_nothing_is_reported(self, smoothing):
        payloads = vectors(np.random.default_rng(0).standard_normal((4, 50)))
        usual, quiet = (
            aggregate_vectors(
                payloads, GAUSSIAN, layout_of(50), smoothing=smoothing, diagnostics=wanted
            )
            for wanted in (True, False)
        )
        np.testing.assert_array_equal(quiet.direction, usual.direction)
        assert usual.diagnostics
        assert quiet.diagnostics == {}


def test_values_at_the_end_of_float32s_range_are_described_without_a_warning():
    rows = np.float32([[3e38, -3e38], [3e38, 1.0], [3e38, 3e38]])
    gap = gap_of(rows[1], list(rows))
    report = describe_median(rows[1], gap, 3, np.ones(1), layout_of(2), GAUSSIAN)
    assert report["median-mean-gap"] > 0
