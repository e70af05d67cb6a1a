"""What hidden clients tell: against exact laws, and dp-accounting's figures."""

from itertools import combinations, pairwise
from math import exp, expm1, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from fedmedian.privacy import share_in_votes
from fedmedian.sampling import (
    ORDERS,
    _log_moments,
    epsilon_of_divergences,
    sampled_divergences,
)

DELTA = 1e-5


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
    told = rounds * sampled_divergences(distance, distance**2, fraction)
    assert 0.97 * epsilon < epsilon_of_divergences(told, DELTA) < 1.0001 * epsilon


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

    distance, share = 2 * reach, share_in_votes(reach)
    bound = sampled_divergences(distance, share * distance**2, drawn / clients)
    assert (divergences(law(1.0), law(-1.0)) <= bound * (1 + 1e-9) + 1e-12).all()


def test_a_bound_is_never_above_that_without_sampling_and_grows_with_the_share():
    found = [sampled_divergences(0.4, 0.16, share) for share in (0.001, 0.01, 0.1, 0.5, 1.0)]
    for less, more in pairwise(found):
        assert (less <= more * (1 + 1e-12)).all()
    np.testing.assert_allclose(found[-1], ORDERS * 0.08)
    assert (found[0] < found[-1] / 100)[ORDERS < 32].all()


def test_signs_tell_less_than_their_vectors_also_where_clients_are_hidden():
    vector = sampled_divergences(0.4, 0.16, 0.1)
    votes = sampled_divergences(0.4, share_in_votes(0.2) * 0.16, 0.1)
    told = [epsilon_of_divergences(100 * one, DELTA) for one in (votes, vector)]
    assert told[0] < 0.87 * told[1]
