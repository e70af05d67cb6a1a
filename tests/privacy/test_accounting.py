"""ε of clients' answers: what is reported is never less than what an attack can show."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import inf, log, nan, pi, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import beta, binom

from fedmedian import Clip, Gaussian, unpack_signs
from fedmedian.kernels.encoding import pack_noisy_signs
from fedmedian.kernels.rotation import padded_size, rotate
from fedmedian.privacy.accounting import (
    LEAST_ROUNDED,
    Mechanism,
    PrivacyBudget,
    PrivacyLoss,
    gaussian_epsilon,
    noise_multiplier_for,
    renyi_epsilon,
)
from fedmedian.rounds.state import RunState
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.instruction import perturb_update
from fedmedian.strategies import MedianSGD, SignSGD

RELATIONS = ("replace", "zero")
KINDS = ("signs", "vector")

OF_DP_ACCOUNTING = [  # noise multiplier, rounds, δ, ε of dp-accounting 0.6.0's PLDAccountant
    (0.5, 1, 1e-5, 9.99716),
    (1.0, 1, 1e-5, 4.37718),
    (2.0, 1, 1e-5, 1.99309),
    (1.0, 10, 1e-6, 19.42366),
    (4.0, 30, 1e-5, 6.325715),
    (20.0, 100, 1e-6, 2.254085),
]


def hockey_stick(first, second, epsilon):
    """δ of two discrete laws at ε, either way round."""
    return max(
        np.maximum(one - np.exp(epsilon) * other, 0).sum()
        for one, other in ((first, second), (second, first))
    )


def law_of_votes(update, scale):
    """The probability of each of the 2^d outcomes."""
    positive = ndtr(np.asarray(update) / scale)
    outcomes = np.array(list(product([False, True], repeat=len(update))))
    return np.where(outcomes, positive, 1 - positive).prod(axis=1)


def as_updates(first, second, relation, clip):
    """Two neighbors of a relation, of norm `clip` at most."""
    updates = []
    for vector in (first, np.zeros(len(first)) if relation == "zero" else second):
        norm = np.linalg.norm(vector)
        updates.append(np.asarray(vector) * min(1, clip / norm) if norm else np.zeros(len(first)))
    return updates


class TestGaussian:
    @pytest.mark.parametrize(("multiplier", "rounds", "delta", "epsilon"), OF_DP_ACCOUNTING)
    def test_it_is_that_of_dp_accounting_to_a_percent(self, multiplier, rounds, delta, epsilon):
        ours = Mechanism(1.0, multiplier, "vector").epsilon(delta, rounds, "zero")
        assert ours == pytest.approx(epsilon, rel=0.01)

    @pytest.mark.parametrize(("multiplier", "rounds", "delta", "epsilon"), OF_DP_ACCOUNTING)
    def test_the_figures_of_dp_accounting_are_its_own(self, multiplier, rounds, delta, epsilon):
        dp_accounting = pytest.importorskip("dp_accounting")
        pld = pytest.importorskip("dp_accounting.pld")
        accountant = pld.PLDAccountant()
        accountant.compose(dp_accounting.GaussianDpEvent(multiplier), rounds)
        assert accountant.get_epsilon(delta) == pytest.approx(epsilon, rel=1e-4)

    def test_renyis_way_ends_where_dp_accountings_does_and_above_the_exact_figure(self):
        dp_accounting = pytest.importorskip("dp_accounting")
        rdp = pytest.importorskip("dp_accounting.rdp")
        for multiplier, rounds, delta, epsilon in OF_DP_ACCOUNTING:
            accountant = rdp.RdpAccountant()
            accountant.compose(dp_accounting.GaussianDpEvent(multiplier), rounds)
            ours = renyi_epsilon(rounds / multiplier**2, delta)
            assert ours == pytest.approx(accountant.get_epsilon(delta), rel=0.01)
            assert ours > epsilon

    @given(st.floats(1e-6, 2e3), st.floats(1e-12, 0.9))
    def test_its_delta_at_its_epsilon_is_delta(self, mu, delta):
        epsilon = gaussian_epsilon(mu, delta)
        assert 0 <= epsilon < inf
        if mu <= 50:
            first = ndtr(mu / 2 - epsilon / mu)
            second = np.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu) if epsilon < 700 else 0.0
            assert first - second <= delta * (1 + 1e-6) + 1e-15

    def test_what_hides_enough_without_any_epsilon_has_none(self):
        assert gaussian_epsilon(1e-6, 1e-3) == 0
        assert renyi_epsilon(1e-12, 1e-3) == 0

    @pytest.mark.parametrize(("mu", "delta"), [(2e-18, 1e-20), (2e-200, 1e-300)])
    def test_the_smallest_distances_have_some_where_delta_is_smaller_still(self, mu, delta):
        """δ at ε = 0 is 2Φ(μ/2) − 1, about .4·μ."""
        assert 0 < gaussian_epsilon(mu, delta) <= mu * sqrt(2 * -log(delta)) * 1.001
        assert gaussian_epsilon(mu, mu / 2) == 0

    @pytest.mark.parametrize(("distance", "printed"), [(1, "1.99"), (2, "4.38")])
    def test_is_that_of_the_pld_accountant_in_findings(self, distance, printed):
        """Of noise of twice the clip; replacing an update doubles the distance."""
        assert f"{gaussian_epsilon(distance / 2, 1e-5):.2f}" == printed


class TestVotes:
    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=8),
        st.floats(0.2, 20),
        st.sampled_from([1e-2, 1e-5]),
        st.sampled_from(RELATIONS),
    )
    def test_epsilon_of_one_answer_is_no_less_than_the_exact_law_has(
        self, pairs, scale, delta, relation
    ):
        first, second = as_updates(*np.transpose(pairs), relation, 1.0)
        epsilon = Mechanism(1.0, scale).epsilon(delta, relation=relation)
        laws = [law_of_votes(update, scale) for update in (first, second)]
        assert hockey_stick(*laws, epsilon) <= delta

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize("scale", [1.0, 2.0, 10.0])
    @pytest.mark.parametrize("dim", [1, 10, 1000])
    @pytest.mark.parametrize("rounds", [1, 7, 100])
    def test_epsilon_of_many_answers_is_no_less_than_the_exact_law_has(
        self, rounds, dim, scale, relation
    ):
        # As the entries of each update are alike, all that is told is the number of votes of +1.
        entries = [1 / sqrt(dim), 0.0 if relation == "zero" else -1 / sqrt(dim)]
        votes = np.arange(rounds * dim + 1)
        laws = [binom.pmf(votes, rounds * dim, ndtr(entry / scale)) for entry in entries]
        for delta in (1e-2, 1e-5):
            epsilon = Mechanism(1.0, scale).epsilon(delta, rounds, relation)
            assert hockey_stick(*laws, epsilon) <= delta

    @given(
        st.floats(0, 3),
        st.floats(-1, 1),
        st.floats(-1, 1),
        st.sampled_from([1.01, 2.0, 5.0, 50.0]),
    )
    def test_the_theorem_holds_for_a_vote(self, reach, first, second, order):
        p, q = ndtr(reach * first), ndtr(reach * second)
        sums = p**order * q ** (1 - order) + (1 - p) ** order * (1 - q) ** (1 - order)
        bound = Signs.share(reach) * order / 2 * (reach * (abs(first) + abs(second))) ** 2
        assert np.log(sums) / (order - 1) <= bound * (1 + 1e-9) + 1e-12

    def test_small_entries_tell_two_over_pi_of_what_their_vector_does(self):
        assert Signs.share(0) == pytest.approx(2 / pi)
        shares = [Signs.share(reach) for reach in np.linspace(0, 3, 50)]
        assert shares == sorted(shares)
        assert shares[-1] == 1  # votes are made of the vector, and never tell more

    def test_of_many_entries_that_are_alike_the_theorem_is_the_truth(self):
        dim, reach = 10**6, 0.02
        p = ndtr(reach / sqrt(dim))
        for order in (1.5, 4.0, 30.0):
            sums = p**order * (1 - p) ** (1 - order) + (1 - p) ** order * p ** (1 - order)
            told = dim * np.log(sums) / (order - 1)
            bound = Signs.share(reach) * order / 2 * (2 * reach) ** 2
            assert bound == pytest.approx(told, rel=1e-3)

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize("scale", [0.2, 1.0, 5.0, 50.0])
    def test_they_never_tell_more_than_the_vector_and_in_much_noise_a_fifth_less(
        self, scale, relation
    ):
        signs, vector = (Mechanism(1.0, scale, kind).epsilon(1e-6, 10, relation) for kind in KINDS)
        assert signs <= vector
        if scale >= 5:
            assert signs < 0.87 * vector


def weights_of_votes(first, second, scale):
    """What a vote of +1, and one of −1, says for the first update and against the second."""
    positive = [ndtr(np.asarray(update, np.float64) / scale) for update in (first, second)]
    return [np.log(one / other) for one, other in (positive, [1 - p for p in positive])]


def epsilon_shown(evidence, delta):
    """Return the ε that an attack shows at δ, but for one case in 10⁷.

    `evidence` is what it makes of trials with each of two updates, more where it takes them for the
    first. A threshold is found on half of the trials and judged on the others.
    """
    half = len(evidence[0]) // 2

    def bound(one, other, thresholds):
        counts = [(values >= thresholds[:, None]).sum(axis=1) for values in (one, other)]
        # Clopper and Pearson's bounds; those of none and of all are no numbers.
        least = np.nan_to_num(beta.ppf(1e-7 / 4, counts[0], half - counts[0] + 1), nan=0.0)
        most = np.nan_to_num(beta.ppf(1 - 1e-7 / 4, counts[1] + 1, half - counts[1]), nan=1.0)
        return np.log(np.maximum(least - delta, 1e-300) / most)

    shown = [0.0]
    for one, other in (evidence, [-values for values in reversed(evidence)]):
        thresholds = np.quantile(one[:half], np.linspace(0.01, 0.999, 50))
        best = bound(one[:half], other[:half], thresholds).argmax()
        shown.extend(bound(one[half:], other[half:], thresholds[[best]]))
    return max(shown)


class TestAttack:
    """Whoever sees votes, and knows the two updates, guesses which of them it was."""

    def epsilon_of_votes(self, first, second, scale, rounds, delta, trials=100_000):
        weight = weights_of_votes(first, second, scale)
        rng = np.random.default_rng(0)
        evidence = []
        for update in (first, second):
            tiled = np.tile(update, rounds * trials).astype(np.float32)
            scales = np.array([scale], np.float32)
            packed = pack_noisy_signs([tiled], tiled.size, Gaussian(scale), scales, rng)
            votes = unpack_signs(packed, tiled.size).reshape(-1, rounds, len(update)) > 0
            evidence.append(np.where(votes, *weight).sum(axis=(1, 2)))
        return epsilon_shown(evidence, delta)

    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize(
        ("update", "scale", "rounds"),
        [([1.0], 1.0, 1), ([0.5] * 4, 1.0, 1), ([0.6, -0.8], 2.0, 3), ([0.5] * 4, 4.0, 5)],
    )
    def test_what_it_shows_is_below_what_is_reported(self, update, scale, rounds, relation):
        update = np.array(update)
        other = 0 * update if relation == "zero" else -update
        shown = self.epsilon_of_votes(update, other, scale, rounds, 1e-3)
        reported = Mechanism(1.0, scale).epsilon(1e-3, rounds, relation)
        assert reported / 5 < shown <= reported  # it is an attack, and no more than that

    def test_it_tells_noise_that_is_less_than_reported(self):
        update = np.array([0.5] * 4)
        shown = self.epsilon_of_votes(update, -update, 0.5, 1, 1e-3)
        assert shown > Mechanism(1.0, 4.0).epsilon(1e-3)

    @pytest.mark.parametrize("make", [SignSGD, MedianSGD])
    def test_what_it_shows_of_a_clients_whole_answer_is_below_what_is_reported(self, make):
        own = {"weighted": False} if make is SignSGD else {}
        strategy = make(Gaussian(2.0), client_steps=[Clip(1.0)], fraction_evaluate=0.0, **own)
        model = {"x": np.zeros(4, np.float32)}
        question = strategy.recipe.ask(RunState(), 1, model)
        instruction, layout = question.instruction, question.layout
        clip, rotation, *noise = instruction.steps
        clipped = (clip, replace(rotation, seed=1))
        rng = np.random.default_rng(0)

        def answer(update, steps):
            asked = replace(instruction, steps=steps)
            return perturb_update(asked, layout, update.copy(), model, rng)

        long = np.array([30.0, -40.0, 50.0, 0.1], np.float32)  # what clipping is for
        updates = [long, -long]
        hidden = [answer(update, (*clipped, Vector())).body for update in updates]
        assert np.linalg.norm(hidden[0]) == pytest.approx(1)
        evidence = []
        for update in updates:
            bodies = np.array([answer(update, (*clipped, *noise)).body for _ in range(1200)])
            if make is SignSGD:
                votes = np.unpackbits(bodies, axis=1)[:, : hidden[0].size] > 0
                seen = np.where(votes, *weights_of_votes(*hidden, 2.0)).sum(axis=1)
            else:
                seen = bodies @ (hidden[0] - hidden[1])
            evidence.append(seen)
        assert 0 < epsilon_shown(evidence, 1e-3) <= strategy.privacy.epsilon(1e-3)


class TestBudget:
    @pytest.mark.parametrize("relation", RELATIONS)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("rounds", [1, 30, 1000])
    def test_the_multiplier_for_a_budget_affords_just_its_rounds(self, rounds, kind, relation):
        multiplier = noise_multiplier_for(3.0, 1e-6, rounds, kind=kind, relation=relation)
        budget = PrivacyBudget(3.0, 1e-6, relation)
        assert Mechanism(2.0, 2 * multiplier, kind).rounds_within(budget) == rounds
        assert Mechanism(2.0, 1.99 * multiplier, kind).rounds_within(budget) < rounds

    @pytest.mark.parametrize("kind", KINDS)
    def test_clients_that_are_drawn_in_secret_need_less_noise_that_affords_just_their_rounds(
        self, kind
    ):
        budget, local = PrivacyBudget(3.0, 1e-6, sampling=0.1), PrivacyBudget(3.0, 1e-6)
        found = [noise_multiplier_for(3.0, 1e-6, 20, kind=kind)]
        for least in (1, 10):
            multiplier = noise_multiplier_for(3.0, 1e-6, 20, 0.1, kind=kind, min_replies=least)
            assert Mechanism(2.0, 2 * multiplier, kind).rounds_within(budget, least) == 20
            assert Mechanism(2.0, 1.99 * multiplier, kind).rounds_within(budget, least) < 20
            assert Mechanism(2.0, 2 * multiplier, kind).rounds_within(local) < 20
            assert multiplier < found[-1]
            found.append(multiplier)
        assert found[-1] < found[0] / 3

    def test_a_budget_that_affords_much_is_given_the_least_multiplier(self):
        assert noise_multiplier_for(1e6, 1e-6, 1) == pytest.approx(0.2, rel=1e-6)

    @pytest.mark.parametrize("clip", [1.0, 0.1, 0.3])
    def test_the_multiplier_affords_its_rounds_after_the_scale_is_rounded_to_float32(self, clip):
        for epsilon in (*np.arange(0.5, 10, 0.25), 1e6):
            scale = np.float32(noise_multiplier_for(epsilon, 1e-5, 1) * clip)
            for norm in (clip, float(np.float32(clip))):
                assert Mechanism(norm, float(scale)).epsilon(1e-5) <= epsilon

    @pytest.mark.parametrize("limit", [inf, 0.01, 0.03, 0.06])
    def test_a_fifth_of_the_largest_entry_is_enough_however_it_is_rounded(self, limit):
        for clip in np.arange(1, 100) / 100:
            largest = min(clip, limit)
            for scale in (0.2 * largest, largest / 5, round(largest / 5, 9)):
                for sent in (scale, float(np.float32(scale))):
                    assert Mechanism(clip, sent, limit=limit).epsilon(1e-6) < inf

    @pytest.mark.parametrize("kind", KINDS)
    def test_epsilon_grows_with_rounds_and_begins_at_nothing(self, kind):
        mechanism = Mechanism(1.0, 3.0, kind)
        spent = [mechanism.epsilon(1e-6, rounds) for rounds in range(50)]
        assert spent[0] == 0
        assert spent == sorted(set(spent))

    def test_to_tell_any_two_updates_apart_is_twice_as_easy_as_one_from_zero(self):
        any_two = Mechanism(1.0, 2.0, "vector").epsilon(1e-6, relation="replace")
        assert any_two == Mechanism(1.0, 1.0, "vector").epsilon(1e-6, relation="zero")

    @pytest.mark.parametrize("kind", [int, Fraction, np.float16, np.float32, np.longdouble])
    def test_numbers_of_any_kind_count_as_floats(self, kind):
        mechanism, budget = Mechanism(1.0, 10.0, limit=1.0), PrivacyBudget(8.0, 0.5, sampling=0.5)
        same = Mechanism(kind(1), kind(10), limit=kind(1))
        shares = (Fraction(1, 2), Fraction(1, 2)) if kind is int else (kind(0.5), kind(0.5))
        equal = PrivacyBudget(kind(8), shares[0], sampling=shares[1])
        assert (str(same), str(equal)) == (str(mechanism), str(budget))
        assert same.epsilon(1e-6, 100) == mechanism.epsilon(1e-6, 100)
        assert same.rounds_within(equal) == mechanism.rounds_within(budget)

    def test_what_it_affords_is_the_last_number_of_rounds_within_it(self):
        budget, mechanism = PrivacyBudget(5.0, 1e-6), Mechanism(1.0, 8.0)
        rounds = mechanism.rounds_within(budget)
        assert mechanism.epsilon(1e-6, rounds) <= 5 < mechanism.epsilon(1e-6, rounds + 1)
        assert Mechanism(1.0, 0.2).rounds_within(budget) == 0

    @pytest.mark.parametrize(
        ("make", "error", "name"),
        [
            *((lambda v=v: PrivacyBudget(v, 1e-5), ValueError, "epsilon") for v in (0, -1, nan)),
            *((lambda v=v: PrivacyBudget(1, v), ValueError, "delta") for v in (0, 1, inf)),
            (lambda: PrivacyBudget("1", 1e-5), TypeError, "epsilon"),
            (lambda: PrivacyBudget(1, 1e-5, "remove"), ValueError, "relation"),
            *(
                (lambda v=v: PrivacyBudget(1, 0.1, sampling=v), ValueError, "sampling")
                for v in (0, 2)
            ),
            (lambda: PrivacyBudget(1, 1e-5, "zero", 0.5), ValueError, "relation"),
            (lambda: Mechanism(0.0, 1.0), ValueError, "clip"),
            (lambda: Mechanism(1.0, 0.19), ValueError, "noise_scale"),
            (lambda: Mechanism(1.0, 1.0, "votes"), ValueError, "kind"),
            (lambda: Mechanism(1.0, 1.0).epsilon(0.0), ValueError, "delta"),
            (lambda: Mechanism(1.0, 1.0).epsilon(0.1, -1), ValueError, "rounds"),
            (lambda: Mechanism(1.0, 1.0).epsilon(0.1, 1, "one"), ValueError, "relation"),
            (lambda: Mechanism(1.0, 1.0).epsilon(0.1, 1, min_replies=0), ValueError, "min_replies"),
            (lambda: noise_multiplier_for(1.0, 1e-5, 0), ValueError, "rounds"),
            (lambda: noise_multiplier_for(1.0, 1e-5, 1, kind="bit"), ValueError, "kind"),
        ],
    )
    def test_an_argument_out_of_range_is_refused_by_name(self, make, error, name):
        with pytest.raises(error, match=f"^{name} must "):
            make()


@pytest.mark.parametrize("size", [1, 7, 300, 70_001])
def test_a_rotation_lengthens_no_update_by_more_than_is_counted_on(size):
    rng = np.random.default_rng(size)
    for update in (np.eye(1, size)[0], rng.standard_normal(size), rng.standard_cauchy(size)):
        update = update.astype(np.float32)
        rotated = rotate(update, np.random.default_rng(1))
        assert rotated.size == padded_size(size)
        before, after = (np.linalg.norm(v.astype(np.float64)) for v in (update, rotated))
        assert after <= before * (1 + 2e-6)


class TestExtremes:
    """Whatever numbers there are, a mechanism is counted or refused by the argument's name."""

    POSITIVE = st.one_of(
        st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        st.sampled_from([5e-324, 1e-300, 1e-160, 1e-38, 1e160, 1e300, 1.7e308]),
    )
    DELTA = st.one_of(
        st.floats(0, 1, exclude_min=True, exclude_max=True),
        st.sampled_from([5e-324, 1e-300, 1 - 2**-53]),
    )

    @given(
        clip=POSITIVE,
        noise_scale=POSITIVE,
        epsilon=POSITIVE,
        delta=DELTA,
        kind=st.sampled_from(KINDS),
    )
    def test_any_mechanism_and_budget_make_a_number_of_rounds_or_a_named_error(
        self, clip, noise_scale, epsilon, delta, kind
    ):
        if noise_scale < LEAST_ROUNDED * clip:
            with pytest.raises(ValueError, match="noise_scale must"):
                Mechanism(clip, noise_scale, kind)
            return
        mechanism = Mechanism(clip, noise_scale, kind)
        rounds = mechanism.rounds_within(PrivacyBudget(epsilon, delta))
        assert 0 <= rounds < 2**63
        assert rounds == 0 or mechanism.epsilon(delta, rounds) <= epsilon
        assert mechanism.epsilon(delta, 2**63 - 1) >= mechanism.epsilon(delta) >= 0

    @given(epsilon=POSITIVE, delta=DELTA, rounds=st.integers(1, 2**63 - 1))
    def test_any_budget_has_a_multiplier_that_affords_it(self, epsilon, delta, rounds):
        multiplier = noise_multiplier_for(epsilon, delta, rounds)
        assert Mechanism(1.0, multiplier).epsilon(delta, rounds) <= epsilon

    @given(size=POSITIVE, delta=DELTA)
    def test_each_bound_is_a_number_for_any_distance(self, size, delta):
        assert gaussian_epsilon(size, delta) >= 0
        assert renyi_epsilon(size, delta) >= 0
        assert 0 < Signs.share(size) <= 1
        for kind in KINDS:
            assert PrivacyLoss.of_answer(kind, size).epsilon(delta) >= 0

    @pytest.mark.parametrize("multiplier", [1e154, 1e170, 1e308])
    def test_noise_in_which_nothing_is_left_is_counted_where_clients_are_drawn_too(
        self, multiplier
    ):
        assert Mechanism(1.0, multiplier).epsilon(1e-5, 100, sampling=0.1) == 0

    def test_more_rounds_than_can_be_counted_are_refused(self):
        with pytest.raises(ValueError, match="rounds must"):
            Mechanism(1.0, 1.0).epsilon(1e-5, 2**63)
        with pytest.raises(ValueError, match="rounds must"):
            noise_multiplier_for(1.0, 1e-5, 10**400)
