"""What hidden clients tell: against exact laws, and dp-accounting's figures."""

from itertools import combinations, pairwise, product
from math import exp, expm1, log, pi, sqrt
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln, ndtr
from scipy.stats import hypergeom, norm

from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.amplification import (
    ORDERS,
    _log_moments,
    epsilon_of_divergences,
    sampled_divergences,
    share_that_hides,
)
from fedmedian.steps.encodings import Signs

DELTA = 1e-5
MANY = 1000  # answers, all of those that were drawn


def divergences(law, other):
    """Rényi divergences of one discrete law from another, at the orders of the module."""
    ratios = np.log(law) - np.log(other)
    terms = np.log(other) + ORDERS[:, None] * ratios
    return np.logaddexp.reduce(terms, axis=1) / (ORDERS - 1)


@pytest.mark.parametrize("distance", [0.01, 0.5, 2.0])
def test_moments_are_those_of_normal_laws(distance):
    square = distance**2
    second = expm1(square)
    fourth = exp(6 * square) - 4 * exp(3 * square) + 6 * exp(square) - 3
    found = np.exp(_log_moments(distance, np.array([2.0, 4.0])))
    np.testing.assert_allclose(found, [second, fourth], rtol=1e-5)


def test_moments_of_laws_that_are_close_are_those_of_a_normal_variable():
    """E|μ·x|^j is μ^j·2^(j/2)·Γ((j + 1)/2)/√π, and p/p' − 1 is near μ·x for small μ."""
    orders = np.array([2.0, 33.0, 101.0, 256.0])
    expected = orders * (log(1e-9) + log(2) / 2) + gammaln((orders + 1) / 2) - log(pi) / 2
    np.testing.assert_allclose(_log_moments(1e-9, orders), expected, atol=1e-5)


FIGURES = [
    # σ, the share drawn, rounds, and what dp-accounting 0.6.0 says: RdpAccountant with
    # REPLACE_ONE, SampledWithoutReplacementDpEvent and GaussianDpEvent(σ/2), at δ = 10⁻⁵.
    (16.83, 0.1, 100, 0.99924),
    (3.04, 0.1, 100, 7.98829),
    (2.0, 0.1, 10, 4.58627),
    (2.0, 0.01, 1000, 3.57611),
    (1.0, 0.01, 100, 11.21268),
    (10.0, 0.5, 100, 10.92754),
]


@pytest.mark.parametrize(("multiplier", "fraction", "rounds", "epsilon"), FIGURES)
def test_epsilon_of_sampled_vectors_is_that_of_dp_accounting_or_a_little_less(
    multiplier, fraction, rounds, epsilon
):
    distance = 2 / multiplier
    told = rounds * sampled_divergences(distance, distance**2, fraction, MANY)
    found = epsilon_of_divergences(told, DELTA)
    assert found < 1.0001 * epsilon
    # Of a half of the clients what is told whenever a client is drawn is the lesser bound.
    assert found > 0.97 * epsilon or fraction == 0.5


@pytest.mark.parametrize(("multiplier", "fraction", "rounds", "epsilon"), FIGURES)
def test_the_figures_of_dp_accounting_are_its_own(multiplier, fraction, rounds, epsilon):
    dp = pytest.importorskip("dp_accounting")
    rdp = pytest.importorskip("dp_accounting.rdp")
    accountant = rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    gaussian = dp.GaussianDpEvent(multiplier / 2)
    event = dp.SampledWithoutReplacementDpEvent(1000, round(1000 * fraction), gaussian)
    accountant.compose(event, rounds)
    assert accountant.get_epsilon(DELTA) == pytest.approx(epsilon, rel=1e-4)


@given(
    st.sampled_from([1, 3]),
    st.floats(0.05, 4),
    st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    st.sampled_from([(4, 1), (4, 2), (4, 3), (5, 1)]),
)
def test_who_sees_the_votes_of_hidden_clients_learns_no_more_than_the_bound(
    dim, reach, others, cohort
):
    """Of all votes of the clients that are drawn only their number is seen, in either world."""
    clients, drawn = cohort

    def law(own):
        entries = [own, *others[: clients - 1]]
        total = np.zeros(dim * drawn + 1)
        subsets = list(combinations(entries, drawn))
        for subset in subsets:
            votes = np.ones(1)
            for entry in subset:
                p = ndtr(reach * entry / sqrt(dim))
                for _ in range(dim):
                    votes = np.convolve(votes, [1 - p, p])
            total += votes / len(subsets)
        return total

    distance, share = 2 * reach, Signs.share(reach)
    bound = sampled_divergences(distance, share * distance**2, drawn / clients, drawn)
    assert (divergences(law(1.0), law(-1.0)) <= bound * (1 + 1e-9) + 1e-12).all()


def test_a_bound_is_never_above_that_without_sampling_and_grows_with_the_share():
    found = [sampled_divergences(0.4, 0.16, share, MANY) for share in (0.001, 0.01, 0.1, 0.5, 1.0)]
    for less, more in pairwise(found):
        assert (less <= more * (1 + 1e-12)).all()
    np.testing.assert_allclose(found[-1], ORDERS * 0.08)
    assert (found[0] < found[-1] / 100)[ORDERS < 32].all()


def test_signs_tell_less_than_their_vectors_also_where_clients_are_hidden():
    vector = sampled_divergences(0.4, 0.16, 0.1, MANY)
    votes = sampled_divergences(0.4, Signs.share(0.2) * 0.16, 0.1, MANY)
    told = [epsilon_of_divergences(100 * one, DELTA) for one in (votes, vector)]
    assert told[0] < 0.87 * told[1]


class TestClientsThatDoNotAnswer:
    """Whichever of the clients would answer, and however many, the bound holds."""

    @pytest.mark.parametrize("present", [1, 2, 5, 12, 30])
    def test_the_theorem_holds_for_every_draw(self, present):
        powers = np.arange(1, 41)
        for drawn, least in product(range(1, present + 1), repeat=2):
            if least > drawn:
                continue
            share = share_that_hides(drawn, present, least)
            assert share >= drawn / present * (1 - 1e-12)
            bound = share ** np.minimum(powers, least)
            for alive in range(least, present + 1):
                answers = np.arange(least, min(alive, drawn) + 1)
                chances = hypergeom.pmf(answers, present, alive, drawn)
                means = chances @ (answers[:, None] / alive) ** powers
                assert (means <= bound * (1 + 1e-9)).all()

    @given(
        st.floats(0.05, 4),
        st.lists(st.floats(-1, 1), min_size=4, max_size=4),
        st.sampled_from([(5, 4, 1, 1), (5, 2, 2, 2), (5, 3, 2, 1), (4, 4, 3, 2), (5, 1, 1, 1)]),
    )
    def test_who_sees_the_number_of_answers_and_of_votes_learns_no_more(
        self, reach, others, cohort
    ):
        present, alive, drawn, least = cohort

        def law(own):
            entries, outcomes = [own, *others[: alive - 1]], []
            for answers in range(drawn + 1):
                chance = hypergeom.pmf(answers, present, alive, drawn)
                if answers < least:  # the model stays as it is
                    outcomes.append([chance])
                    continue
                subsets = list(combinations(entries, answers))
                total = np.zeros(answers + 1)
                for subset in subsets:
                    votes = np.ones(1)
                    for entry in subset:
                        p = ndtr(reach * entry)
                        votes = np.convolve(votes, [1 - p, p])
                    total += votes / len(subsets)
                outcomes.append(chance * total)
            found = np.concatenate(outcomes)
            return found[found > 0]

        distance, share = 2 * reach, Signs.share(reach)
        hidden = share_that_hides(drawn, present, least)
        bound = sampled_divergences(distance, share * distance**2, hidden, least)
        assert (divergences(law(1.0), law(-1.0)) <= bound * (1 + 1e-9) + 1e-12).all()

    CASES: ClassVar = [
        (present, alive, drawn, least)
        for present, alive in ((50, 10), (50, 1), (50, 50), (8, 3))
        for drawn, least in ((1, 1), (2, 1), (2, 2), (5, 1), (5, 4), (5, 5))
    ]

    def exact_delta(self, epsilon, scale, present, alive, drawn, least):
        """δ of who sees the sum of the answers, in one dimension, for the worst of the others."""
        found = [0.0]
        for own, other in product((1.0, -1.0), (-1.0, 0.0, 1.0)):
            total = 0.0
            for answers in range(least, min(alive, drawn) + 1):
                spread, hit = scale * sqrt(answers), answers / alive
                x = np.linspace(-answers - 14 * spread - 2, answers + 14 * spread + 2, 8001)
                rest = (1 - hit) * norm.pdf(x, answers * other, spread)
                laws = [
                    hit * norm.pdf(x, one + (answers - 1) * other, spread) + rest
                    for one in (own, -own)
                ]
                excess = np.maximum(laws[0] - exp(epsilon) * laws[1], 0).sum() * (x[1] - x[0])
                total += hypergeom.pmf(answers, present, alive, drawn) * excess
            found.append(total)
        return max(found)

    @pytest.mark.parametrize("scale", [1.0, 5.0])
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_delta_of_an_exact_law_is_within_what_is_claimed(self, case, scale):
        present, _, drawn, least = case
        share = share_that_hides(drawn, present, least)
        mechanism = Mechanism(1.0, scale, "vector")
        epsilon = mechanism.epsilon(DELTA, sampling=min(1.0, share), min_replies=least)
        assert self.exact_delta(epsilon, scale, *case) <= DELTA

    @pytest.mark.parametrize("case", [(50, 1, 10, 1), (50, 10, 1, 1)], ids=str)
    @pytest.mark.parametrize("scale", [2.0, 5.0])
    def test_a_count_of_all_that_are_connected_would_have_claimed_too_little(self, case, scale):
        present, _, drawn, _ = case
        mechanism = Mechanism(1.0, scale, "vector")
        epsilon = mechanism.epsilon(DELTA, sampling=drawn / present, min_replies=MANY)
        assert self.exact_delta(epsilon, scale, *case) > DELTA

    def test_fewer_answers_hide_less_and_one_hides_as_if_all_were_seen_that_are_drawn(self):
        found = [sampled_divergences(0.4, 0.16, 0.1, least) for least in (MANY, 10, 3, 2, 1)]
        for less, more in pairwise(found):
            assert (less <= more * (1 + 1e-12)).all()
        exponent = (ORDERS - 1) * ORDERS * 0.08
        seen = np.logaddexp(np.log(0.9), np.log(0.1) + exponent) / (ORDERS - 1)
        assert (found[-1] <= seen * (1 + 1e-12)).all()
