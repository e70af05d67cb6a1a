"""ε of sums of votes: what is reported is never less than exact laws have, or an attack shows."""

from functools import reduce
from itertools import product
from math import inf, isfinite, pi, sqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import binom, norm

from fedmedian import Gaussian, unpack_signs
from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.privacy import Draw, Mechanism, PrivacyBudget, honest_of, noise_multiplier_for, sums
from fedmedian.privacy.accounting import PrivacyLoss, gaussian_epsilon
from fedmedian.privacy.amplification import ORDERS
from fedmedian.privacy.sums import gaussian_share, sum_divergences
from tests.privacy.test_accounting import RELATIONS, epsilon_shown, hockey_stick

LIMIT, ROUNDS, DELTA = 5 / sqrt(8192), 30, 1e-5
"""Of a linear network on Fashion-MNIST."""

PART = st.floats(-1, 1)
OTHERS = st.lists(st.one_of(PART, st.sampled_from([-1.0, 1.0])), max_size=9)
REACHES = st.sampled_from([0.02, 0.1, 0.5, 2.0])


def law_of_sum(probabilities):
    """The probability of each number of votes of +1."""
    return reduce(np.convolve, ([1 - p, p] for p in probabilities), np.ones(1))


def law_of_sums(columns):
    """The joint law of the sums of several coordinates, each given by its votes' probabilities."""
    return reduce(np.multiply.outer, map(law_of_sum, columns)).ravel()


def extremes(summed, reach):
    """The others' entries where every one is as large as it may be."""
    for raised in range(summed):
        yield [reach] * raised + [-reach] * (summed - 1 - raised)


def delta_of_gaussian(distance, epsilon):
    """δ of two normal laws at ε."""
    if distance == 0:
        return 0.0
    ends = np.array([distance / 2 - epsilon / distance, -distance / 2 - epsilon / distance])
    return float(ndtr(ends[0]) - np.exp(epsilon) * ndtr(ends[1]))


class TestOneCoordinate:
    @given(OTHERS, PART, PART, REACHES)
    def test_no_test_tells_two_updates_apart_better_than_in_the_gaussian_mechanism(
        self, others, first, second, reach
    ):
        laws = [law_of_sum(ndtr(reach * np.array([own, *others]))) for own in (first, second)]
        share = gaussian_share(len(others) + 1, reach)
        distance = sqrt(share) * reach * abs(first - second)
        for epsilon in distance * np.array([0, 0.1, 0.5, 1, 2, 4]) * max(1, distance):
            told = hockey_stick(*laws, epsilon)
            assert told <= delta_of_gaussian(distance, epsilon) + 1e-13

    @given(OTHERS, PART, PART, REACHES)
    def test_no_divergence_exceeds_the_bound_of_its_order(self, others, first, second, reach):
        assume(abs(first - second) > 1e-6)
        one, other = (law_of_sum(ndtr(reach * np.array([own, *others]))) for own in (first, second))
        with np.errstate(over="ignore"):
            moments = (other * (one / other) ** ORDERS[:, None]).sum(axis=1)
        told = np.log(moments) / (ORDERS - 1)
        bound = sum_divergences(len(others) + 1, reach) * (reach * (first - second)) ** 2
        assert (told <= bound + 1e-12 / (ORDERS - 1))[np.isfinite(moments)].all()

    @pytest.mark.parametrize("reach", [0.05, 0.4])
    @pytest.mark.parametrize("summed", [1, 2, 3, 10])
    def test_less_than_either_bound_is_not_enough_for_the_worst_of_others(self, summed, reach):
        own = np.linspace(-reach, reach, 201)
        slope = moment = 0.0
        order = 4.0
        for others in extremes(summed, reach):
            rest = law_of_sum(ndtr(others))
            laws = np.array([np.convolve(rest, [1 - p, p]) for p in ndtr(own)])
            tails = laws[:, ::-1].cumsum(axis=1)[:, :-1]
            slope = max(slope, (np.diff(ndtri(tails), axis=0) / np.diff(own)[:, None]).max())
            one, other = laws[[-1, 0]]
            excess = (other * (one / other) ** order).sum() - 1
            moment = max(moment, excess / (ndtr(reach) - ndtr(-reach)) ** 2 / (order - 1))
        share = gaussian_share(summed, reach)
        assert share * 0.97 < slope**2 <= share * (1 + 1e-9)
        found = sum_divergences(summed, reach)[order == ORDERS] * 2 * pi
        assert found * 0.99 < moment <= found

    def test_a_single_vote_is_bounded_as_its_vector_and_small_entries_by_binomial_laws(self):
        assert gaussian_share(1, 0.3) == 1
        for summed in (2, 5, 40):
            votes = np.arange(1, (summed + 1) // 2 + 1)
            density = binom.pmf(votes - 1, summed - 1, 0.5)
            slopes = norm.pdf(0) * density / norm.pdf(norm.ppf(binom.sf(votes - 1, summed, 0.5)))
            assert gaussian_share(summed, 1e-9) == pytest.approx(slopes.max() ** 2, rel=1e-5)

    def test_of_many_clients_it_is_a_gaussian_mechanism_in_the_noise_of_all(self):
        for summed in (100, 1000):
            ideal = 2 / (pi * summed)
            assert gaussian_share(summed, 0.001) == pytest.approx(ideal, rel=0.01)
            usual = (ORDERS <= 2) | (ORDERS >= 3) & (ORDERS <= 8)
            divergences = sum_divergences(summed, 0.001)[usual]
            assert divergences == pytest.approx(ORDERS[usual] / 2 * ideal, rel=0.01)


class TestManyCoordinates:
    @given(
        st.integers(2, 6),
        st.lists(st.tuples(PART, PART), min_size=1, max_size=3),
        st.sampled_from([0.1, 0.5, 1.0]),
        st.floats(0.2, 3),
        st.sampled_from([1e-2, 1e-5]),
        st.sampled_from(RELATIONS),
        st.randoms(use_true_random=False),
    )
    def test_epsilon_is_no_less_than_the_exact_law_has(
        self, summed, pairs, limit, scale, delta, relation, random
    ):
        first, second = (
            np.transpose(pairs) if relation == "replace" else (*np.transpose(pairs), 0)[::2]
        )
        updates = []
        for update in np.broadcast_arrays(first, second):
            short = update * min(1, 1 / max(np.linalg.norm(update), 1e-9))
            updates.append(np.clip(short, -limit, limit))
        others = [random.choice([*extremes(summed, limit)]) for _ in pairs]
        laws = [
            law_of_sums(
                ndtr(np.array([own, *rest]) / scale)
                for own, rest in zip(update, others, strict=True)
            )
            for update in updates
        ]
        mechanism = Mechanism(1.0, scale, limit=limit)
        epsilon = mechanism.epsilon(delta, relation=relation, summed=summed)
        assert hockey_stick(*laws, epsilon) <= delta

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize(("summed", "answers"), [(2, 6), (4, 4), (9, 3)])
    def test_epsilon_of_many_rounds_is_no_less_than_the_exact_law_has(
        self, summed, answers, relation
    ):
        for scale, delta in product((0.2, 0.5, 2.0), (1e-2, 1e-5)):
            mechanism = Mechanism(1.0, scale)
            epsilon = mechanism.epsilon(delta, answers, relation, summed=summed)
            for others in extremes(summed, 1.0):
                own = [1.0, 0.0 if relation == "zero" else -1.0]
                laws = [law_of_sums([ndtr(np.array([u, *others]) / scale)] * answers) for u in own]
                assert hockey_stick(*laws, epsilon) <= delta


def epsilon_of_composition(first, second, times, delta, step=5e-5, size=2**20):
    """ε of many alike and independent observations: their privacy losses are added by FFT."""
    losses = np.log(first / second) / step
    below = np.floor(losses).astype(int)
    law = np.zeros(size)
    np.add.at(law, below, first * (1 - losses + below))  # rounded, with the same mean
    np.add.at(law, below + 1, first * (losses - below))
    law = np.fft.irfft(np.fft.rfft(law) ** times, size)
    total = np.fft.fftfreq(size, 1 / size) * step

    def excess(epsilon):
        over = total > epsilon
        return -(law[over] * np.expm1(epsilon - total[over])).sum() - delta

    return brentq(excess, 0, 20)


class TestALargeModel:
    """All rounds of a linear network on Fashion-MNIST, with the losses of its coordinates added."""

    DIM = 8192

    @pytest.mark.parametrize("others", [0, -1, 1], ids=["even", "low", "high"])
    @pytest.mark.parametrize("entry", [1, 4], ids=["all entries", "a few at the limit"])
    @pytest.mark.parametrize(("scale", "slack"), [(0.6, 1.05), (1.0, 1.04)])
    def test_epsilon_is_just_above_what_the_exact_law_has(self, scale, slack, entry, others):
        limit, summed = 4 / sqrt(self.DIM), 80
        own = entry / sqrt(self.DIM)
        laws = [
            law_of_sum(ndtr(np.array([vote, *[others * limit] * (summed - 1)]) / scale))
            for vote in (own, -own)
        ]
        told = epsilon_of_composition(*laws, ROUNDS * self.DIM // entry**2, DELTA)
        reported = Mechanism(1.0, scale, limit=limit).epsilon(DELTA, ROUNDS, summed=summed)
        assert told < reported < told * slack


class TestOthersWithLargerEntries:
    """Only its own policy clips a client's update: others may be far surer of their votes."""

    @pytest.mark.parametrize("others", [3.0, 6.0, 12.0])
    def test_the_exact_law_shows_more_than_the_clients_own_entries_say(self, others):
        summed, scale, answers = 20, 3.0, 10
        pair = (np.array([own] + [others] * (summed - 1)) / scale for own in (1, -1))
        told = epsilon_of_composition(*(law_of_sum(ndtr(one)) for one in pair), answers, DELTA)
        by_own, by_all = (
            (PrivacyLoss.of_answer("signs", scale, summed=summed, others=bound) * answers)
            for bound in (0.0, others)
        )
        assert by_own.epsilon(DELTA) < told < by_all.epsilon(DELTA)

    def test_a_sum_with_votes_that_are_certain_costs_what_the_single_vote_does(self):
        alone = PrivacyLoss.of_answer("signs", 3.0)
        for others in (15.1, 50.0, inf):
            assert PrivacyLoss.of_answer("signs", 3.0, summed=20, others=others) == alone

    @given(
        st.sampled_from([2, 3, 16, 80, 300]),
        st.sampled_from([0.01, 0.1, 1.0]),
        st.floats(0.2, 20),
        st.lists(st.one_of(st.floats(0, 30), st.just(inf)), min_size=2, max_size=4),
    )
    def test_the_larger_they_may_be_the_more_an_answer_costs(self, summed, limit, scale, bounds):
        prices = [
            PrivacyLoss.of_answer("signs", scale, limit=limit, summed=summed, others=others)
            for others in (0.0, limit, *sorted(bounds), inf)
        ]
        found = [price.epsilon(DELTA) for price in prices]
        assert found == sorted(found)
        assert prices[0] == prices[1]


class TestAttack:
    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize(
        ("summed", "scale", "rounds"), [(2, 0.9, 1), (5, 1.5, 3), (10, 1.0, 2)]
    )
    def test_what_it_shows_is_below_what_is_reported(self, summed, scale, rounds, relation):
        """The server knows all updates, and has the likeliest of two from each sum."""
        trials, update = 40_000, np.full(4, 0.5)
        own = [update, 0 * update if relation == "zero" else -update]
        others = np.full((summed - 1, 4), -0.5)
        rng, evidence = np.random.default_rng(0), []
        law = [law_of_sum(ndtr(np.array([one[0], *others[:, 0]]) / scale)) for one in own]
        for one in own:
            votes = np.tile(np.vstack([one, others]), (trials * rounds, 1)).astype(np.float32)
            scales = np.array([scale], np.float32)
            packed = pack_noisy_signs([votes.ravel()], votes.size, Gaussian(scale), scales, rng)
            signs = unpack_signs(packed, votes.size) > 0
            seen = signs.reshape(trials, rounds, summed, 4).sum(axis=2)
            evidence.append(np.log(law[0] / law[1])[seen].sum(axis=(1, 2)))
        shown = epsilon_shown(evidence, 1e-3)
        mechanism = Mechanism(1.0, scale, limit=0.5)
        reported = mechanism.epsilon(1e-3, rounds, relation, summed=summed)
        assert reported / 5 < shown <= reported
        assert shown > mechanism.epsilon(1e-3, rounds, relation, summed=100 * summed)


class TestMechanism:
    def epsilon(self, summed=20, scale=0.5, limit=0.1, **own):
        return Mechanism(1.0, scale, limit=limit).epsilon(1e-5, 10, summed=summed, **own)

    @pytest.mark.parametrize("relation", RELATIONS)
    def test_more_clients_more_noise_and_smaller_entries_hide_more(self, relation):
        for name, values in {
            "summed": (0, 2, 3, 8, 20, 199, 201, 400),
            "scale": (0.1, 0.3, 1.0, 10.0),
            "limit": (1.0, 0.5, 0.1, 0.01),
        }.items():
            found = [self.epsilon(**{name: value}, relation=relation) for value in values]
            assert found == sorted(set(found), reverse=True)

    def test_a_sum_of_one_vote_and_a_sum_of_vectors_are_counted_as_seen(self):
        assert self.epsilon(summed=1) == self.epsilon(summed=0)
        vector = Mechanism(1.0, 0.5, "vector")
        assert vector.epsilon(1e-5, summed=50) == vector.epsilon(1e-5)

    def test_entries_are_never_larger_than_the_norm(self):
        assert self.epsilon(limit=7.0) == self.epsilon(limit=inf) == self.epsilon(limit=1.0)

    def test_clients_drawn_in_secret_are_no_worse_off_in_a_sum(self):
        sampled = self.epsilon(sampling=0.1)
        assert sampled <= min(self.epsilon(), self.epsilon(summed=0, sampling=0.1))

    def test_answers_in_sums_and_without_add_up(self):
        mechanism = Mechanism(1.0, 2.0, limit=0.1)
        counts = {Draw(): 2, Draw(summed=50): 3}
        found = mechanism.epsilon_of(counts, 1e-5)
        assert mechanism.epsilon(1e-5, 2) < found < mechanism.epsilon(1e-5, 5)
        assert mechanism.epsilon_of({**counts, Draw(summed=9): 0}, 1e-5) == found

    def test_a_budget_affords_the_rounds_that_the_multiplier_is_for(self):
        own = {"limit": 0.05, "summed": 30}
        multiplier = noise_multiplier_for(3.0, 1e-6, 20, **own)
        budget = PrivacyBudget(3.0, 1e-6)
        for factor, affordable in ((2, 20), (1.99, 19)):
            mechanism = Mechanism(2.0, factor * multiplier, limit=0.1)
            assert mechanism.rounds_within(budget, summed=30) == affordable
        assert noise_multiplier_for(1e6, 1e-6, 1, **own) == pytest.approx(0.2 * 0.05)

    @pytest.mark.parametrize(
        ("epsilon", "loss"), [(8.0, 0.055), (4.0, 0.025), (1.0, 0.006)], ids=["8", "4", "1"]
    )
    def test_a_large_model_takes_hardly_more_noise_than_the_gaussian_limit(self, epsilon, loss):
        vector = noise_multiplier_for(epsilon, DELTA, ROUNDS, kind="vector")
        for summed in (80, 100):
            ideal = vector / sqrt(summed * pi / 2)
            for multiplier, suffices in ((ideal, False), (ideal * (1 + loss), True)):
                mechanism = Mechanism(1.0, multiplier, limit=LIMIT)
                assert (mechanism.epsilon(DELTA, ROUNDS, summed=summed) <= epsilon) is suffices

    def test_small_entries_need_the_bound_of_normal_laws_and_large_ones_that_of_divergences(self):
        for limit, has_small in ((0.02, True), (1.0, False)):
            loss = PrivacyLoss.of_answer("signs", 0.6, limit=limit, summed=80)
            gaussian = gaussian_epsilon(sqrt(loss.as_gaussian), 1e-5)
            assert (loss.epsilon(1e-5) == gaussian) is has_small

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: Mechanism(1.0, 0.019, limit=0.1), "noise_scale"),
            (lambda: Mechanism(1.0, 0.19, limit=2.0), "noise_scale"),
            (lambda: Mechanism(1.0, 1.0, limit=0.0), "limit"),
            (lambda: Mechanism(1.0, 1.0).epsilon(0.1, summed=-1), "summed"),
            (lambda: noise_multiplier_for(1.0, 0.1, 1, limit=-1.0), "limit"),
            (lambda: PrivacyBudget(1.0, 0.1, honest=0.0), "honest"),
            (lambda: PrivacyBudget(1.0, 0.1, honest=1.1), "honest"),
        ],
    )
    def test_an_argument_out_of_range_is_refused_by_name(self, make, name):
        with pytest.raises(ValueError, match=f"^{name} must "):
            make()

    def test_the_honest_are_counted_without_loss_by_rounding(self):
        assert [honest_of(share, 100) for share in (0.29, 0.8, 1.0)] == [29, 80, 100]
        assert honest_of(0.8, 7) == 5


class TestExtremes:
    def test_of_many_others_a_few_are_left_out_and_nothing_is_undercut(self, monkeypatch):
        exact = gaussian_share(60, 0.1), sum_divergences(60, 0.1)
        monkeypatch.setattr(sums, "_MOST_LAWS", 15)
        share, divergences = (
            kind.__wrapped__(60, 0.1) for kind in (gaussian_share, sum_divergences)
        )
        assert exact[0] < share < exact[0] * 1.1
        assert (exact[1] < divergences).all()
        assert (divergences < exact[1] * 1.1)[ORDERS < 8].all()

    @pytest.mark.parametrize(
        ("summed", "reach"), [(2, 1e-300), (2, 5.0), (300, 1e-9), (300, 5.0), (10**6, 0.1)]
    )
    def test_any_number_of_clients_and_any_reach_has_bounds(self, summed, reach):
        assert 2 / (pi * summed) < gaussian_share(summed, reach) <= 1
        divergences = sum_divergences(summed, reach)
        assert (divergences > 0).all()
        assert isfinite(divergences[0])
        assert not divergences.flags.writeable

    @given(
        clip=st.sampled_from([1e-300, 1.0, 1e300]),
        limit=st.sampled_from([1e-308, 1e-150, 1e-3, 1e300, inf]),
        scale=st.sampled_from([1e-308, 1e-160, 0.2, 1e160, 1e308]),
        answers=st.sampled_from([1, 2**63 - 1]),
    )
    def test_any_mechanism_has_an_epsilon_or_is_refused_by_name(self, clip, limit, scale, answers):
        if scale < 0.2 * min(clip, limit):
            with pytest.raises(ValueError, match="noise_scale must"):
                Mechanism(clip, scale, limit=limit)
        else:
            mechanism = Mechanism(clip, scale, limit=limit)
            alone, summed = (mechanism.epsilon(1e-5, answers, summed=n) for n in (0, 3))
            assert 0 <= summed <= alone
