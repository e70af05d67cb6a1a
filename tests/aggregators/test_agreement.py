"""Weights by agreement, and the mean of clipped vectors that they often precede."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import (
    Agreement,
    Answers,
    Blocks,
    ClippedMean,
    Counts,
    Gaussian,
    Majority,
    Median,
    SmoothedMedian,
    TopUp,
    pack_signs,
)
from fedmedian.aggregators import agreement
from fedmedian.aggregators.agreement import LEAST, MOST, relative_counts, shares
from fedmedian.aggregators.means import LONGEST
from fedmedian.rules.trust import SHARE, largest_cap, num_tolerated, voting_weights
from fedmedian.steps.encodings import Encoding
from fedmedian.strategies import SignSGD

DIM = 4000
RNG = np.random.default_rng(0)
COMMON = RNG.standard_normal(DIM)


def alike(clients, spread=1.0, seed=1):
    """Vectors around a common one."""
    rng = np.random.default_rng(seed)
    return np.float32(COMMON + spread * rng.standard_normal((clients, DIM)))


def vectors(rows, weights=None, sizes=(1000, 3000)):
    weights = np.full(len(rows), 1 / len(rows)) if weights is None else weights
    return Answers(list(np.float32(rows)), weights, Blocks(sizes), report={})


def votes(rows, weights=None):
    level = np.ones((len(rows), 2), np.float32)
    return replace(
        vectors(rows, weights),
        bodies=[pack_signs(row) for row in rows],
        noise=Gaussian(TopUp()),
        scales=level,
        magnitudes=level.astype(float),
    )


def direction(rule, answers):
    return rule.direction(answers, np.random.default_rng(0))


def naive_counts(likeness):
    clients, tolerated = len(likeness), num_tolerated(len(likeness))
    counted = np.zeros(clients)
    for own in range(clients):
        others = [one for one in np.argsort(-likeness[own]) if one != own]
        counted[others[: clients - tolerated - 1]] += 1
    return np.maximum(counted - (tolerated - 1), 0) / (clients - 2 * tolerated)


def least_weight(clients, hostile, total):
    """Return the smallest total weight of clients that are counted `total` times in all."""
    counts = np.arange(clients)
    relative = np.maximum(counts - (hostile - 1), 0) / (clients - 2 * hostile)
    weights = np.maximum(shares(relative), LEAST)
    least = np.where(np.arange(total + 1) == 0, 0.0, np.inf)
    for _ in range(clients - hostile):
        longer = np.full(total + 1, np.inf)
        for count, weight in zip(counts, weights, strict=True):
            moved = least[: total + 1 - count] + weight
            np.minimum(longer[count:], moved, out=longer[count:])
        least = longer
    return least[total]


class Levels(Encoding):
    """A custom encoding."""

    pack = check_body = None


@dataclass(frozen=True)
class Coarse(ClippedMean):
    """A rule of a custom encoding."""

    encoding = Levels()


EACH = pytest.mark.parametrize(
    ("then", "answers"), [(Counts(), votes), (ClippedMean(), vectors)], ids=["votes", "vectors"]
)


class TestRelativeCounts:
    @given(st.integers(3, 30), st.integers(0, 2**32 - 1))
    def test_are_of_the_others_that_count_a_client_among_their_nearest(self, clients, seed):
        likeness = np.random.default_rng(seed).standard_normal((clients, clients))
        np.testing.assert_allclose(relative_counts(likeness), naive_counts(likeness))

    def test_are_the_same_in_parts(self, monkeypatch):
        likeness = RNG.integers(0, 9, (30, 30))
        found = relative_counts(likeness)
        monkeypatch.setattr(agreement, "_VALUES", 70)  # two rows, or one at the end
        np.testing.assert_allclose(relative_counts(likeness), found, rtol=1e-12)

    @given(st.data(), st.integers(1, 12))
    def test_do_not_depend_on_the_clients_order_even_where_some_are_equally_near(
        self, data, clients
    ):
        elements = st.integers(0, 2)
        likeness = data.draw(hnp.arrays(np.int64, (clients, clients), elements=elements))
        order = np.array(data.draw(st.permutations(range(clients))))
        found = relative_counts(likeness)
        np.testing.assert_allclose(relative_counts(likeness[np.ix_(order, order)]), found[order])
        assert (found >= 0).all()

    @pytest.mark.parametrize("clients", [5, 10, 25, 100])
    def test_of_accomplices_that_nobody_else_counts_are_0(self, clients):
        hostile = num_tolerated(clients)
        likeness = RNG.uniform(0.1, 0.2, (clients, clients))
        likeness[:hostile, hostile:] = likeness[hostile:, :hostile] = -1
        likeness[:hostile, :hostile] = 1
        assert relative_counts(likeness)[:hostile].tolist() == [0] * hostile

    @pytest.mark.parametrize("clients", [1, 2])
    def test_of_one_client_or_two_are_1(self, clients):
        assert relative_counts(np.zeros((clients, clients))).tolist() == [1] * clients


class TestShares:
    def test_are_1_from_the_average_on_and_0_up_to_a_third_of_it(self):
        found = shares(np.array([0, 0.2, 1 / 3, 2 / 3, 1, 1.3]))
        np.testing.assert_allclose(found, [0, 0, 0, 0.5, 1, 1], atol=1e-12)

    @pytest.mark.parametrize("clients", [*range(5, 16), 20, 25, 40])
    def test_give_t_clients_at_most_half_more_than_their_part(self, clients):
        """However all others count each other, if all count the t."""
        hostile = num_tolerated(clients)
        total = clients * (clients - hostile - 1) - hostile * (clients - 1)
        others = least_weight(clients, hostile, total)
        assert hostile / (hostile + others) <= 1.5 * hostile / clients

    @pytest.mark.parametrize("clients", [5, 10, 25, 100])
    def test_are_1_for_most_clients_that_are_alike(self, clients):
        rng = np.random.default_rng(clients)
        likeness = 0.5 + 0.01 * rng.standard_normal((200, clients, clients))
        found = np.array([shares(relative_counts(one + one.T)) for one in likeness])
        assert (found == 1).mean() > 0.5
        assert found.mean() > 0.8


class TestAgreement:
    @EACH
    def test_is_the_other_rule_with_weights_times_shares(self, then, answers):
        rows, weights = alike(10), voting_weights(np.arange(10.0) + 5)
        given = answers(rows, weights)
        found = direction(Agreement(then), given)
        kept = shares(np.array(given.report["agreement-per-client"]))
        own = np.maximum(kept, LEAST) * weights
        own = np.minimum(own, largest_cap(own, MOST))
        expected = direction(then, replace(given, weights=own / own.sum()))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)

    @EACH
    def test_counts_t_clients_that_point_elsewhere_for_the_least(self, then, answers):
        rows = alike(10)
        rows[:2] = -3 * COMMON
        given = answers(rows)
        direction(Agreement(then), given)
        found = np.array(given.report["agreement-per-client"])
        assert found[:2].tolist() == [0, 0]
        assert found[2:].min() > 0.5
        assert given.report["clients-apart"] == 2

    @pytest.mark.parametrize(("clients", "light"), [(3, 1), (4, 1), (5, 2), (10, 4), (25, 11)])
    def test_lets_t_clients_near_those_of_few_examples_count_for_little_more(self, clients, light):
        """Whoever has many examples is alone, so that nobody is left to outweigh those who lie."""
        hostile = num_tolerated(clients)
        rows = 3 * alike(clients)
        rows[: light + hostile] = COMMON + 0.1 * rows[: light + hostile]
        examples = np.full(clients, 1e6)
        examples[:light] = 100
        given, found = votes(rows, voting_weights(examples)), []

        @dataclass(frozen=True)
        class Kept(Counts):
            def direction(self, answers, rng):
                found.append(answers.weights)
                return super().direction(answers, rng)

        direction(Agreement(Kept()), given)
        (weights,) = found
        assert weights.sum() == pytest.approx(1)
        part = weights[light : light + hostile].sum()
        assert SHARE * hostile / clients < part <= MOST * hostile / clients * (1 + 1e-9)
        assert clients != 3 or part < 0.5

    @EACH
    def test_hears_an_honest_client_that_is_unlike_all_others(self, then, answers):
        rows = alike(10)
        rows[9] = -2 * COMMON
        weightless = direction(then, answers(rows[:9]))
        change = weightless - direction(Agreement(then), answers(rows))
        assert change @ COMMON > 0.5 * LEAST / 10 * COMMON @ COMMON

    @EACH
    def test_of_a_sample_of_the_coordinates_is_about_that_of_all(self, then, answers, monkeypatch):
        rows = alike(10)
        rows[:2] = -COMMON
        whole, part = answers(rows), answers(rows)
        direction(Agreement(then), whole)
        monkeypatch.setattr(agreement, "_PAIRS", 1)
        monkeypatch.setattr(agreement, "_COORDINATES", 800)
        direction(Agreement(then), part)
        found = [np.array(one.report["agreement-per-client"]) for one in (whole, part)]
        assert np.abs(found[0] - found[1]).max() < 0.5
        assert (found[1][:2] == 0).all()

    def test_which_coordinates_are_compared_follows_from_the_answers(self, monkeypatch):
        """Clients may know the seed, and could agree with others in these alone."""
        monkeypatch.setattr(agreement, "_PAIRS", 1)
        monkeypatch.setattr(agreement, "_COORDINATES", 4)  # one coordinate of 1000

        def first(rows):
            return agreement._sample(vectors(rows), np.random.default_rng(1))[0]

        rows = alike(10)
        assert first(rows) == first(rows.copy())
        others = [first(rows + shift) for shift in range(1, 9)]
        assert len({first(rows), *others}) > 2

    def test_compares_vectors_after_each_block_is_clipped(self):
        """Noise in one block, a thousand times as long as the others' there, hides no direction."""
        rows = alike(10, spread=0.1)
        rows[0, :1000] = 1000 * np.random.default_rng(3).standard_normal(1000)
        rows[1] = -rows[1]
        given = vectors(rows)
        direction(Agreement(ClippedMean()), given)
        apart = np.array(given.report["agreement-per-client"])
        assert apart[1] == 0 < apart[2:].min()
        unclipped = rows @ rows[0] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[0])
        assert np.abs(unclipped[1:]).max() < 0.1

    @EACH
    def test_of_clients_that_did_not_move_counts_all_alike(self, then, answers):
        given = answers(np.zeros((6, DIM), np.float32))
        direction(Agreement(then), given)
        assert len(set(given.report["agreement-per-client"])) == 1

    def test_reports_the_margin_in_its_weights(self):
        """Nine of eleven agree, and their two opponents hardly count: six must turn, not four."""
        rows = alike(11, spread=0.01)
        rows[:2] *= -1
        plain, weighed = votes(rows), votes(rows)
        direction(Counts(), plain)
        direction(Agreement(Counts()), weighed)
        assert plain.report["margin"] == 4
        assert weighed.report["margin"] == 6

    def test_has_the_other_rules_properties(self):
        assert Agreement(Counts()).encoding == Counts().encoding
        assert Agreement(ClippedMean()).encoding == ClippedMean().encoding
        assert [Agreement(rule).needs_noise for rule in (Counts(), Majority())] == [True, False]
        assert Agreement(Majority()).usual_rate(None) is None
        noise = Gaussian(TopUp())
        assert Agreement(Counts()).cost_of_few(noise) == Counts().cost_of_few(noise)

    @pytest.mark.parametrize(
        ("then", "error"),
        [
            (Median(), ValueError),
            (SmoothedMedian(), ValueError),
            (Coarse(), ValueError),
            (Counts, TypeError),
        ],
        ids=repr,
    )
    def test_needs_a_rule_that_uses_weights_of_signs_or_vectors(self, then, error):
        with pytest.raises(
            error, match="then must be a rule of signs or vectors that uses weights"
        ):
            Agreement(then)

    def test_refuses_to_be_without_noise_as_the_other_rule_does(self):
        with pytest.raises(ValueError, match=r"^noise must not be None with aggregator=Counts"):
            SignSGD(None, Agreement(Counts()))


class TestClippedMean:
    def test_is_the_weighted_mean_where_no_block_is_longer_than_usual(self):
        rows, weights = alike(5, spread=0.1), voting_weights(np.arange(5.0) + 10)
        found = direction(ClippedMean(), vectors(rows, weights))
        np.testing.assert_allclose(found, weights @ rows, rtol=1e-4, atol=1e-5)

    @given(st.integers(3, 12), st.floats(2, 1e12))
    def test_clips_each_block_to_its_own_usual_norm(self, clients, length):
        rows = alike(clients)
        rows[0, :1000] *= np.float32(length)
        first, others = np.linalg.norm(rows[:, :1000], axis=1), rows[1:].sum(axis=0)
        found = clients * direction(ClippedMean(), vectors(rows)) - others
        usual = np.sort(first)[(clients - 1) // 2]
        assert np.linalg.norm(found[:1000]) <= LONGEST * usual * (1 + 1e-3)
        np.testing.assert_allclose(found[1000:], rows[0, 1000:], atol=1e-3)

    @given(st.integers(3, 12), st.integers(0, 12), st.floats(1, 1e6))
    def test_is_lengthened_at_most_as_clipping_shortened_the_longest_but_t(
        self, clients, longer, length
    ):
        rows, liars = alike(clients), num_tolerated(clients)
        rows[:liars] *= np.float32(1e9)
        rows[liars : liars + longer] *= np.float32(length)
        opposite = np.concatenate([-rows[:liars], rows[liars:]])
        both = [direction(ClippedMean(), vectors(some)) for some in (rows, opposite)]
        part = np.linalg.norm(both[0][:1000] - both[1][:1000]) / 2
        norms = np.sort(np.linalg.norm(rows[:, :1000], axis=1))
        longest = max(norms[-1 - liars], LONGEST * norms[(clients - 1) // 2])
        assert part <= liars / clients * longest * (1 + 1e-3)

    def test_leaves_a_block_that_only_t_clients_moved(self):
        rows = alike(10)
        rows[2:, :1000] = 0
        found = direction(ClippedMean(), vectors(rows))
        assert not found[:1000].any()
        assert found[1000:].all()

    def test_reports_the_margin_in_clients_weights_and_the_noise_of_a_mean(self):
        rng = np.random.default_rng(2)
        scales = np.ones((10, 2), np.float32)
        rows = rng.standard_normal((10, DIM)).astype(np.float32)
        answers = replace(vectors(rows), noise=Gaussian(1.0), scales=scales)
        direction(ClippedMean(), answers)
        assert answers.report["signal-to-noise"] == pytest.approx(0, abs=0.1)
        weights = np.array([0.91] + [0.01] * 9)
        heavy = vectors(rows, weights)
        direction(ClippedMean(), heavy)
        assert answers.report["margin"] == 2
        assert heavy.report["margin"] == 5
