"""What a round says about itself, against naive counts and against the truth."""

from dataclasses import replace
from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import (
    Blocks,
    Counts,
    Gaussian,
    Laplace,
    Logistic,
    Majority,
    Median,
    SmoothedMedian,
    TopUp,
    Uniform,
    pack_signs,
)
from fedmedian.aggregators.base import Answers
from fedmedian.aggregators.diagnostics import (
    MeanGap,
    count_opposite_signs,
    describe_median,
    describe_votes,
    excess_of_signs,
    report_of,
)
from fedmedian.rules.trust import capped_examples

GAUSSIAN = Gaussian()
FAMILIES = [GAUSSIAN, Logistic(), Laplace(), Uniform()]
RULES = [Counts(), Majority()]


def answers(
    bodies, scales, sizes=None, noise=GAUSSIAN, weights=None, magnitudes=None, noise_at="client"
):
    """A cohort's answers, with a report to fill."""
    weights = np.full(len(bodies), 1 / len(bodies)) if weights is None else np.array(weights)
    magnitudes = None if magnitudes is None else np.asarray(magnitudes, dtype=np.float64)
    blocks = Blocks((len(bodies[0]),) if sizes is None else sizes)
    return Answers(
        bodies,
        weights,
        blocks,
        noise,
        np.asarray(scales, dtype=np.float32),
        magnitudes,
        noise_at,
        report={},
    )


def signs(rows, scales, sizes=None, **about):
    """The answers of clients that vote as the signs of these rows."""
    rows = np.asarray(rows)
    voted = answers(rows, scales, sizes, **about)
    return replace(voted, bodies=[pack_signs(row) for row in rows])


def vectors(rows, scales=(0.0,), sizes=None, noise=None, **about):
    """The answers of clients that send these rows, with one noise scale per block."""
    return answers(np.asarray(rows, dtype=np.float32), [scales] * len(rows), sizes, noise, **about)


def report(rule, cohort):
    rule.direction(cohort, np.random.default_rng(0))
    return cohort.report


def report_of_votes(rows, scales, sizes=None, weights=None, noise=GAUSSIAN, rule=None, **about):
    return report(
        rule or Counts(), signs(rows, scales, sizes, noise=noise, weights=weights, **about)
    )


def report_of_vectors(*cohort, **about):
    return report(Median(), vectors(*cohort, **about))


def noisy_rows(updates, noise, scales, sizes, seed):
    """Rows u_i + b_i·ξ, where u_i and b_i have one value per block."""
    rng = np.random.default_rng(seed)
    return [
        np.repeat(u, sizes) + np.repeat(b, sizes) * noise.sample(rng, sum(sizes))
        for u, b in zip(np.float32(updates), np.float32(scales), strict=True)
    ]


def vectors_of_size(n):
    return hnp.arrays(np.float32, n, elements=st.sampled_from([-2.0, -0.0, 0.0, 2.0**-100, 3.0]))


class TestCountOfOppositeSigns:
    @given(pair=st.integers(0, 20).flatmap(lambda n: st.tuples(*[vectors_of_size(n)] * 2)))
    def test_is_the_number_of_coordinates_where_one_is_positive_and_one_negative(self, pair):
        left, right = pair
        opposite = sum(
            (a > 0 and b < 0) or (a < 0 and b > 0) for a, b in zip(left, right, strict=True)
        )
        assert count_opposite_signs(left, right) == opposite

    def test_numbers_whose_product_vanishes_have_signs_too(self):
        assert count_opposite_signs(np.float32([1e-38]), np.float32([-1e-38])) == 1


class TestMeanGap:
    @given(rows=hnp.arrays(np.float32, (4, 9), elements=st.integers(-8, 8)), cut=st.integers(0, 9))
    def test_adds_up_over_parts(self, rows, cut):
        median = np.median(rows, axis=0)
        whole, parts = MeanGap(), MeanGap()
        whole.add(median, list(rows))
        for part in (slice(cut), slice(cut, None)):
            parts.add(median[part], [row[part] for row in rows])
        assert parts.energy == pytest.approx(whole.energy)
        assert parts.opposite == whole.opposite
        mean = rows.mean(axis=0)
        assert whole.energy == pytest.approx(np.square(median - mean).sum(), rel=1e-5)
        assert whole.opposite == np.count_nonzero(median * mean < 0)

    def test_values_at_the_end_of_float32s_range_are_described_without_a_warning(self):
        rows, gap = np.float32([[3e38, -3e38], [3e38, 1.0], [3e38, 3e38]]), MeanGap()
        gap.add(rows[1], list(rows))
        seen = describe_median(rows[1], gap, [], 3, np.ones(1), Blocks((2,)), GAUSSIAN)
        assert report_of([seen])["median-mean-gap"] > 0

    @given(
        rows=hnp.arrays(
            np.float32,
            st.tuples(st.integers(1, 7), st.integers(0, 9)),
            elements=st.floats(-1000, 1000, width=32),
        )
    )
    def test_is_reported_as_the_distance_from_the_median_to_the_mean(self, rows):
        exact = rows.astype(np.float64)
        gap = np.linalg.norm(np.median(exact, axis=0) - exact.mean(axis=0))
        report = report_of_vectors(rows)
        named = {"median-mean-gap", "majority-contradicts-mean", *(["margin"] if rows.size else [])}
        assert set(report) == named
        assert report["median-mean-gap"] == pytest.approx(gap, rel=1e-4, abs=1e-3)

    def test_of_1_2_and_10_is_7_thirds(self):
        assert report_of_vectors([[1], [2], [10]])["median-mean-gap"] == pytest.approx(7 / 3)


@st.composite
def elections(draw):
    """Votes of M clients on nine coordinates, with weights and two blocks' scales for each.

    Weights are capped as a server caps them, and no scale is so large that it is.
    """
    clients = draw(st.integers(1, 7))
    rows = draw(hnp.arrays(np.int8, (clients, 9), elements=st.sampled_from([-1, 1])))
    examples = draw(hnp.arrays(np.int64, clients, elements=st.integers(1, 10)))
    scales = draw(hnp.arrays(np.float32, (clients, 2), elements=st.floats(0.75, 1.0, width=32)))
    capped = capped_examples(examples)
    return rows, capped / capped.sum(), scales


class TestMajorityAgainstMean:
    """How often the plain majority and the decoded mean point in opposite directions."""

    @given(election=elections(), rule=st.sampled_from(RULES))
    def test_is_the_fraction_of_coordinates_counted_one_by_one(self, rule, election):
        rows, weights, scales = election
        opposite, unclear = 0, 0
        for k in range(9):
            plain = sum(int(row[k]) for row in rows)
            mean = sum(
                weight * float(own[int(k >= 4)]) * int(row[k])
                for row, weight, own in zip(rows, weights, scales, strict=True)
            )
            unclear += plain != 0 and abs(mean) < 1e-5
            opposite += plain * mean < 0
        report = report_of_votes(rows, scales, (4, 5), weights, rule=rule)
        measured = 9 * report["majority-contradicts-mean"]
        # Where the mean is zero but for rounding, its sign is anybody's guess.
        assert opposite - unclear - 1e-9 <= measured <= opposite + unclear + 1e-9

    @pytest.mark.parametrize(
        ("weights", "scales"),
        [([0.1, 0.1, 0.8], [[1.0]] * 3), ([0.3, 0.3, 0.4], [[1.0], [1.0], [2.0]])],
        ids=["small ones and a large one", "quiet ones and a loud one"],
    )
    def test_of_two_clients_that_outvote_a_third_is_where_they_do(self, weights, scales):
        rows = np.array([[-1, -1, 1], [-1, 1, 1], [1, 1, 1]])
        report = report_of_votes(rows, scales, weights=weights)
        assert report["majority-contradicts-mean"] == pytest.approx(1 / 3)

    def test_is_zero_where_all_clients_count_alike(self):
        rows = np.random.default_rng(0).standard_normal((5, 99))
        report = report_of_votes(rows, np.full((5, 1), 0.3))
        assert report["majority-contradicts-mean"] == 0

    @pytest.mark.parametrize("rule", RULES, ids=repr)
    def test_is_estimated_from_a_sample_of_long_votes(self, rule):
        rng = np.random.default_rng(0)
        sizes = (100_001, 2, 200_000)
        bodies = [pack_signs(rng.standard_normal(sum(sizes), dtype=np.float32)) for _ in range(5)]
        cohort = answers(bodies, rng.uniform(0.3, 3, (5, 3)), sizes)
        every = replace(cohort, stride=1, report={})
        for some in (cohort, every):
            rule.direction(some, rng)
        exact = every.report["majority-contradicts-mean"]
        assert exact > 0.1
        assert cohort.report["majority-contradicts-mean"] == pytest.approx(exact, rel=0.02)

    def test_is_not_reported_of_votes_without_noise(self):
        report = report_of_votes(np.ones((3, 4)), np.ones((3, 1)), noise=None, rule=Majority())
        assert set(report) == {"vote-agreement", "margin"}

    @given(
        rows=hnp.arrays(
            np.float32, (3, 8), elements=st.integers(-8, 8).map(lambda eighths: eighths / 8)
        )
    )
    def test_of_vectors_is_where_median_and_mean_have_opposite_signs(self, rows):
        opposite = [np.median(column) * column.sum() < 0 for column in rows.astype(np.float64).T]
        report = report_of_vectors(rows)
        assert report["majority-contradicts-mean"] == pytest.approx(np.mean(opposite))


class TestVoteAgreement:
    @pytest.mark.parametrize("rule", RULES, ids=repr)
    def test_is_1_where_all_agree_and_0_where_they_are_split(self, rule):
        same, split = np.ones((4, 6)), np.repeat([[1.0], [-1.0]], 2, axis=0) * np.ones((4, 6))
        for rows, agreement in ((same, 1.0), (split, 0.0), (np.c_[same, split], 0.5)):
            report = report_of_votes(rows, np.ones((4, 1)), rule=rule)
            assert report["vote-agreement"] == pytest.approx(agreement)

    @given(election=elections())
    def test_of_a_majority_is_the_mean_absolute_weighted_vote(self, election):
        rows, weights, scales = election
        report = report_of_votes(rows, scales, (4, 5), weights, rule=Majority())
        assert report["vote-agreement"] == pytest.approx(np.abs(weights @ rows).mean(), abs=1e-6)

    def test_of_counts_weighs_clients_with_their_noise_as_well(self):
        agreement = report_of_votes([[1.0], [-1.0]], [[1.0], [2.0]])["vote-agreement"]
        assert agreement == pytest.approx((2 - 1) / (2 + 1))

    def test_of_a_model_without_parameters_is_0(self):
        for rule in RULES:
            report = report_of_votes(np.ones((1, 0)), np.ones((1, 0)), (), rule=rule)
            assert set(report.values()) == {0.0}


DIM = 40_000
KINDS = ["alike", "sharing half", "unlike"]
TOP_UP = Gaussian(TopUp())


def updates_of(kind, clients):
    """The updates of clients, each of normal coordinates with variance 1, (M, d)."""
    rng = np.random.default_rng(clients)
    common, own = rng.standard_normal(DIM), rng.standard_normal((clients, DIM))
    shared = {"alike": 1.0, "sharing half": 0.5, "unlike": 0.0}[kind]
    return sqrt(shared) * common + sqrt(1 - shared) * own


def rms(updates):
    return np.sqrt(np.square(updates).mean(axis=1, keepdims=True))


def topped_up(updates, level):
    rng = np.random.default_rng(99)
    added = np.sqrt(np.maximum(level**2 - np.square(rms(updates)), 0))
    return updates + added * rng.standard_normal(updates.shape)


def true_signal_to_noise(updates, noise, scales, sizes):
    """Energy of the expected decoded mean over the energy of its noise, by the vote law."""
    updates, scales = np.asarray(updates), np.asarray(scales)
    expected_signs = 2 * noise.cdf(updates / scales) - 1
    worth = scales / (2 * noise.density_at_zero) / len(updates)
    signal = np.square((worth * expected_signs).sum(axis=0))
    spread = (np.square(worth) * (1 - np.square(expected_signs))).sum(axis=0)
    return np.dot(signal, sizes) / np.dot(spread, sizes)


def measured_and_true(updates, noise, scales, sizes, seed):
    """The signal-to-noise ratio that votes report, and that of their law."""
    rows = noisy_rows(updates, noise, scales, sizes, seed)
    report = report_of_votes(rows, scales, sizes, noise=noise)
    return report["signal-to-noise"], true_signal_to_noise(updates, noise, scales, sizes)


# These are estimated from draws that have a seed, and held to several standard errors.
class TestSignalToNoiseOfVotes:
    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_of_pure_noise_is_about_0(self, noise):
        n = 50_000
        rows = noisy_rows(np.zeros((5, 1)), noise, np.ones((5, 1)), (n,), seed=3)
        for rule in RULES:
            report = report_of_votes(rows, np.ones((5, 1)), noise=noise, rule=rule)
            assert 0 <= report["signal-to-noise"] < 5 * sqrt(2 / n)
            assert report["signal-to-noise-per-block"] == [report["signal-to-noise"]]

    @pytest.mark.parametrize(
        ("noise", "update", "clients"),
        [(GAUSSIAN, 0.1, 2), (Logistic(), 0.4, 10), (Laplace(), 1.0, 2), (Uniform(), 1.0, 10)],
        ids=lambda value: getattr(value, "name", str(value)),
    )
    def test_of_clients_that_agree_is_recovered(self, noise, update, clients):
        updates, scales = np.full((clients, 1), update), np.ones((clients, 1))
        measured, true = measured_and_true(updates, noise, scales, (200_000,), seed=4)
        assert measured == pytest.approx(true, rel=0.05, abs=0.02)

    def test_of_gaussian_noise_much_larger_than_the_update_is_what_the_theory_says(self):
        """M·ū² / (π·b²/2)."""
        clients, update = 50, 0.2
        updates, scales = [[update]] * clients, np.ones((clients, 1))
        measured, _ = measured_and_true(updates, Gaussian(), scales, (50_000,), seed=5)
        assert measured == pytest.approx(clients * update**2 / (pi / 2), rel=0.05)

    def test_adds_up_over_blocks_of_different_scales_and_sizes(self):
        updates, scales = np.tile([0.3, 2.0], (8, 1)), np.tile([1.0, 5.0], (8, 1))
        measured, true = measured_and_true(updates, Logistic(), scales, (200_000, 50_000), seed=6)
        assert measured == pytest.approx(true, rel=0.05)

    def test_weighs_clients_as_their_votes_are_weighed(self):
        scales = np.array([[1.0], [1.5], [1.0], [2.0], [1.2]])
        measured, true = measured_and_true(0.4 * scales, GAUSSIAN, scales, (200_000,), seed=7)
        assert measured == pytest.approx(true, rel=0.05)

    def test_without_sizes_it_is_a_cautious_estimate_where_clients_disagree(self):
        """One vote per client does not show how sure it was, which makes noise look larger."""
        updates = np.array([[0.1], [0.5], [-0.2], [0.3], [0.4]])
        fixed = Gaussian(1.0)
        measured, true = measured_and_true(updates, fixed, np.ones((5, 1)), (200_000,), seed=8)
        certainty = np.mean(np.square(2 * GAUSSIAN.cdf(updates) - 1))
        assert true - certainty - 0.02 < measured < true

    @pytest.mark.parametrize("clients", [1, 2, 10, 30])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_of_updates_whose_sizes_are_known_is_recovered_however_they_differ(
        self, noise, kind, clients
    ):
        updates = updates_of(kind, clients)
        rows = updates + 3 * np.stack(
            [noise.sample(np.random.default_rng(i), DIM) for i in range(clients)]
        )
        scales, magnitudes = np.full((clients, 1), 3.0), rms(updates)
        report = report_of_votes(rows, scales, noise=noise, magnitudes=magnitudes)
        expected = 2 * noise.cdf(updates / 3) - 1
        spread = (1 - np.square(expected)).sum()
        true = np.square(expected.sum(axis=0)).sum() / spread
        assert report["signal-to-noise"] == pytest.approx(true, rel=0.06, abs=0.02)

    @pytest.mark.parametrize("clients", [1, 2, 3, 10, 100])
    @pytest.mark.parametrize("kind", KINDS)
    def test_in_a_random_basis_it_is_the_mean_over_the_error_of_the_decoded_mean(
        self, kind, clients
    ):
        level = 1.2
        updates = updates_of(kind, clients)
        rows = topped_up(updates, level)
        decoded = level * sqrt(pi / 2) * np.sign(rows).mean(axis=0)
        error = decoded - updates.mean(axis=0)
        true = np.square(updates.mean(axis=0)).sum() / np.square(error).sum()
        report = report_of_votes(
            rows, np.full((clients, 1), level), noise=TOP_UP, magnitudes=rms(updates)
        )
        assert report["signal-to-noise"] == pytest.approx(true, rel=0.06, abs=0.02)
        assert report["signal-to-noise-per-block"] == [report["signal-to-noise"]]

    @pytest.mark.parametrize("clients", [1, 2, 5, 100])
    def test_where_all_votes_agree_in_a_random_basis_the_rounding_to_a_bit_is_left(self, clients):
        rows = np.tile(np.random.default_rng(0).standard_normal(DIM), (clients, 1))
        report = report_of_votes(
            rows, np.ones((clients, 1)), noise=TOP_UP, magnitudes=np.ones((clients, 1))
        )
        assert report["vote-agreement"] == pytest.approx(1)
        assert report["signal-to-noise"] == pytest.approx((2 / pi) / (1 - 2 / pi), rel=1e-4)

    @pytest.mark.parametrize("clients", [2, 3, 7, 10, 100])
    @pytest.mark.parametrize("weigh", [np.ones, lambda m: np.arange(1, m + 1)], ids=["1", "n"])
    def test_a_block_whose_votes_all_agree_does_not_count(self, clients, weigh):
        rng = np.random.default_rng(1)
        same, own = np.ones((clients, 1000)), rng.standard_normal((clients, 1000))
        weights = weigh(clients) / weigh(clients).sum()
        both = report_of_votes(
            np.c_[same, own], np.full((clients, 2), 0.7), (1000, 1000), weights, Gaussian(0.7)
        )
        alone = report_of_votes(own, np.full((clients, 1), 0.7), None, weights, Gaussian(0.7))
        assert both["signal-to-noise"] == pytest.approx(alone["signal-to-noise"])
        assert both["signal-to-noise-per-block"][0] == 0.0
        assert "signal-to-noise" not in report_of_votes(
            same, np.full((clients, 1), 0.7), None, weights, Gaussian(0.7)
        )

    @pytest.mark.parametrize(
        ("clients", "noise", "rule"),
        [(1, GAUSSIAN, Counts()), (1, GAUSSIAN, Majority()), (5, None, Majority())],
        ids=["one vote", "one vote by majority", "no noise"],
    )
    def test_is_not_reported_where_it_cannot_be_known(self, clients, noise, rule):
        rows = np.random.default_rng(0).standard_normal((clients, 99))
        report = report_of_votes(rows, np.ones((clients, 1)), noise=noise, rule=rule)
        assert "signal-to-noise" not in report

    def test_is_not_reported_where_all_votes_agree(self):
        assert "signal-to-noise" not in report_of_votes(np.ones((5, 9)), np.ones((5, 1)))


class TestSignalToNoiseOfMedians:
    @pytest.mark.parametrize("noise", FAMILIES, ids=lambda noise: noise.name)
    def test_of_pure_noise_is_about_0(self, noise):
        rows = noisy_rows(np.zeros((51, 1)), noise, np.ones((51, 1)), (20_000,), seed=8)
        # The variance is the asymptotic one, which Laplace noise reaches from above and slowly.
        assert 0 <= report_of_vectors(rows, [1.0], noise=noise)["signal-to-noise"] < 0.3

    @pytest.mark.parametrize("signal_to_noise", [0.3, 2.0])
    def test_is_recovered(self, signal_to_noise):
        sizes, clients, scales = (30_000, 10_000), 51, np.array([1.0, 3.0])
        # A median of M Gaussians has variance π·b²/(2M).
        updates = np.tile(scales * sqrt(signal_to_noise * pi / (2 * clients)), (clients, 1))
        rows = noisy_rows(updates, GAUSSIAN, [scales] * clients, sizes, seed=9)
        measured = report_of_vectors(rows, scales, sizes, GAUSSIAN)["signal-to-noise"]
        assert measured == pytest.approx(signal_to_noise, rel=0.05, abs=0.05)

    @pytest.mark.parametrize("clients", [2, 3, 4, 5, 10, 100])
    @pytest.mark.parametrize("kind", KINDS)
    def test_in_a_random_basis_it_is_the_mean_over_the_error_of_the_median(self, kind, clients):
        level = 1.2
        updates = updates_of(kind, clients)
        rows = np.float32(topped_up(updates, level))
        error = np.median(rows, axis=0) - updates.mean(axis=0)
        true = np.square(updates.mean(axis=0)).sum() / np.square(error).sum()
        report = report_of_vectors(rows, [level], noise=TOP_UP, magnitudes=rms(updates))
        assert report["signal-to-noise"] == pytest.approx(true, rel=0.12, abs=0.03)

    @pytest.mark.parametrize("clients", [1, 2, 3, 4, 6, 10])
    def test_of_few_vectors_takes_the_variance_of_a_median_of_so_few(self, clients):
        update = 0.8
        rows = noisy_rows(
            np.full((clients, 1), update), GAUSSIAN, np.ones((clients, 1)), (DIM,), seed=clients
        )
        true = update**2 / np.median(np.array(rows) - np.float32(update), axis=0).var()
        measured = report_of_vectors(rows, [1.0], noise=Gaussian(1.0))["signal-to-noise"]
        assert measured == pytest.approx(true, rel=0.1)

    def test_of_two_clients_with_different_noise_is_recovered(self):
        rng, update = np.random.default_rng(0), 0.5
        own = np.array([[0.0], [1.0]])
        rows = np.float32(update + own * rng.standard_normal((2, DIM)))
        found = report(Median(), answers(rows, own, noise=Gaussian(1.0)))
        assert found["signal-to-noise"] == pytest.approx(update**2 / 0.25, rel=0.05)

    def test_blocks_that_got_no_noise_do_not_count(self):
        rng = np.random.default_rng(2)
        noisy, clear = rng.standard_normal((5, DIM)), 100 * rng.standard_normal((5, DIM))
        both = report_of_vectors(np.c_[noisy, clear], [1.0, 0.0], (DIM, DIM), Gaussian(1.0))
        alone = report_of_vectors(noisy, [1.0], noise=Gaussian(1.0))
        assert both["signal-to-noise"] == pytest.approx(alone["signal-to-noise"])
        assert both["signal-to-noise-per-block"] == [both["signal-to-noise"], 0.0]

    def test_is_not_reported_where_no_block_has_noise(self):
        assert "signal-to-noise" not in report_of_vectors([[1.0]], noise=GAUSSIAN)


class TestSignalToNoisePerBlock:
    """Of eight clients and two blocks: one is nearly all noise, the other has a clear signal."""

    SIZES, UPDATES = (40_000, 60_000), (0.05, 0.6)

    @pytest.fixture
    def rows(self):
        return noisy_rows([self.UPDATES] * 8, GAUSSIAN, np.ones((8, 2)), self.SIZES, seed=1)

    def test_of_votes_is_the_energy_of_their_expectation_over_that_of_their_noise(self, rows):
        report = report_of_votes(rows, np.ones((8, 2)), self.SIZES)
        expected = [2 * float(GAUSSIAN.cdf(u)) - 1 for u in self.UPDATES]
        truth = [8 * mean**2 / (1 - mean**2) for mean in expected]
        assert report["signal-to-noise-per-block"] == pytest.approx(truth, rel=0.1, abs=0.02)
        assert min(truth) < report["signal-to-noise"] < max(truth)

    def test_of_a_median_is_its_energy_over_that_of_its_noise(self, rows):
        report = report_of_vectors(rows, [1.0, 1.0], self.SIZES, GAUSSIAN)
        # The variance of a median of eight normal variables is .168.
        truth = [u**2 / 0.168 for u in self.UPDATES]
        assert report["signal-to-noise-per-block"] == pytest.approx(truth, rel=0.1, abs=0.1)

    def test_is_zero_for_a_block_without_coordinates_or_without_noise(self):
        rows = np.random.default_rng(3).standard_normal((4, 50))
        votes = report_of_votes(rows, [[1.0, 1.0, 0.0]] * 4, (30, 0, 20))
        medians = report_of_vectors(rows, [1.0, 1.0, 0.0], (30, 0, 20), GAUSSIAN)
        for report in (votes, medians):
            assert report["signal-to-noise-per-block"][1:] == [0.0, 0.0]
        first = votes["signal-to-noise-per-block"][0]
        assert votes["signal-to-noise"] == pytest.approx(first)

    def test_every_number_of_a_report_is_a_plain_float(self, rows):
        votes, gap = sum(np.sign(row) for row in rows) / np.float32(8), MeanGap()
        gap.add(votes, rows)
        blocks, weights = Blocks(self.SIZES), np.full((8, 2), 1 / 8)
        excess = [excess_of_signs(rows, np.full(8, 1 / 8))]
        for seen in (
            describe_votes(votes, weights, blocks, GAUSSIAN),
            describe_median(votes, gap, excess, 8, np.ones(2), blocks, GAUSSIAN),
        ):
            for value in report_of([seen]).values():
                for number in value if isinstance(value, list) else [value]:
                    assert type(number) is float


class TestMargin:
    """How many of a cohort's voters would have turned a coordinate had they voted otherwise."""

    @pytest.mark.parametrize(
        ("ayes", "margin"), [(10, 6), (9, 5), (8, 4), (6, 2), (5, 1), (4, 2), (0, 6)]
    )
    def test_of_ten_voters_it_is_what_makes_the_others_the_most(self, ayes, margin):
        rows = np.repeat(np.where(np.arange(10) < ayes, 1.0, -1.0)[:, None], 8, axis=1)
        assert report_of_votes(rows, np.ones((10, 1)), (8,))["margin"] == margin
        assert report_of_vectors(rows)["margin"] == margin

    @pytest.mark.parametrize(("size", "margin"), [(1.0, 5), (0.0, 2)], ids=["alike", "all noise"])
    def test_of_ten_clients_topped_up_to_one_level_it_is_what_the_docs_say(self, size, margin):
        rng = np.random.default_rng(0)
        common, own = size * rng.standard_normal(50_000), rng.standard_normal((10, 50_000))
        rows = common + sqrt(1.2**2 - size**2) * own
        assert report_of_votes(rows, np.ones((10, 1)), (50_000,))["margin"] == margin

    def test_it_is_the_median_over_coordinates(self):
        rows = np.ones((10, 5))
        rows[5:, :2] = -1  # two coordinates are tied, three are unanimous
        assert report_of_vectors(rows)["margin"] == 6
        rows[5:, 2] = -1
        assert report_of_vectors(rows)["margin"] == 1

    def test_a_sample_of_a_long_vector_gives_nearly_the_margin_of_all_of_it(self):
        rows = np.random.default_rng(0).standard_normal((51, 200_000))
        excess = np.abs(np.sign(rows).sum(axis=0))
        expected = np.median(np.floor(excess / 2) + 1)
        assert report_of_votes(rows, np.ones((51, 1)), (200_000,))["margin"] == expected
        assert report_of_vectors(rows)["margin"] == expected


@pytest.mark.parametrize("rule", [*RULES, Median(), SmoothedMedian()], ids=repr)
def test_a_report_that_nobody_wants_changes_nothing(rule):
    rows = np.random.default_rng(0).standard_normal((4, 50))
    cohort = signs(rows, np.ones((4, 1))) if rule in RULES else vectors(rows, [0.5], noise=GAUSSIAN)
    usual, quiet = (
        rule.direction(replace(cohort, report=wanted), np.random.default_rng(0))
        for wanted in (cohort.report, None)
    )
    np.testing.assert_array_equal(quiet, usual)
    assert cohort.report
