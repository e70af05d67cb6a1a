"""The contract of every scale rule, and what each rule does.

A new rule is covered once an instance stands in `RULES`.
"""

from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Adaptive, ScaleRule, Theory, TopUp
from fedmedian.rules.scales import LADDER, Fixed, as_scale_rule, size_by_votes
from fedmedian.rules.trust import agreed_size, num_tolerated

RULES = [
    Fixed(0.1),
    Adaptive(),
    Adaptive(2.0, magnitude="max", quantile=1.0),
    TopUp(),
    TopUp(2.0, quantile=1.0),
    TopUp(voted=True),
    Theory(rounds=100, dim=10),
]

KINDS = ["signs", "vector"]


def at_first(rule, magnitudes):
    """The scales that follow where none are known."""
    return rule.following(np.full(magnitudes.shape[1], nan), magnitudes)


each_rule = pytest.mark.parametrize("rule", RULES, ids=repr)

# As clients report them: float32, so neither tiny nor huge for a float64.
reported = st.floats(0, float(np.float32(1e30)), width=32) | st.just(0.0)


@st.composite
def rounds_of_magnitudes(draw):
    arrays = draw(st.integers(0, 4))
    clients = st.integers(1, 6)
    one_round = clients.flatmap(
        lambda m: hnp.arrays(np.float64, (m, arrays), elements=reported, fill=st.nothing())
    )
    return arrays, draw(st.lists(one_round, min_size=1, max_size=5))


@each_rule
def test_a_rules_first_scales_are_positive_one_per_array_or_left_to_the_clients(rule):
    for kind in KINDS:
        scales = rule.first(3, kind)
        assert scales.shape == (3,)
        assert scales.dtype == np.float64
        if np.isnan(scales).all():
            assert rule.magnitude in ("rms", "max")
            assert rule.own_factor > 0
        else:
            assert np.all(np.isfinite(scales))
            assert np.all(scales > 0)


@each_rule
@given(rounds=rounds_of_magnitudes(), kind=st.sampled_from(KINDS))
def test_a_rules_scales_stay_finite_and_not_negative_and_positive_ones_positive(rule, rounds, kind):
    arrays, magnitudes = rounds
    scales = rule.first(arrays, kind)
    positive = scales > 0  # False where it is NaN
    for reports in magnitudes:
        scales = rule.following(scales, reports)
        assert scales.shape == (arrays,)
        assert np.all(np.isfinite(scales))
        assert np.all(scales >= 0)
        assert np.all(scales[positive] > 0)
        positive |= scales > 0


@each_rule
def test_a_rule_leaves_scales_and_magnitudes_as_they_were(rule):
    scales, magnitudes = np.array([1.0, 2.0]), np.array([[9.0, 0.0], [3.0, 1e-3]])
    rule.following(scales, magnitudes)
    assert scales.tolist() == [1.0, 2.0]
    assert magnitudes.tolist() == [[9.0, 0.0], [3.0, 1e-3]]


@pytest.mark.parametrize("rule", [Adaptive, TopUp])
def test_a_rule_of_fractions_has_the_scales_of_the_same_floats(rule):
    magnitudes = np.array([[1.0, 3.0], [2.0, 4.0], [5.0, 0.0]])
    scales = at_first(rule(Fraction(3, 2), quantile=Fraction(1, 2)), magnitudes)
    assert scales.dtype == np.float64
    assert np.array_equal(scales, at_first(rule(1.5), magnitudes))


@each_rule
def test_a_rule_is_a_value(rule):
    assert isinstance(rule, ScaleRule)
    assert as_scale_rule(rule) is rule
    assert rule == type(rule)(**vars(rule))
    assert hash(rule) == hash(type(rule)(**vars(rule)))


@pytest.mark.parametrize("rule", [Fixed(0.3), Theory(7, 9)], ids=repr)
def test_a_constant_rule_ignores_what_clients_report(rule):
    scales = rule.first(2, "signs")
    assert np.array_equal(rule.following(scales, np.array([[5.0, 0.0]])), scales)


def test_a_plain_number_means_a_fixed_scale():
    assert as_scale_rule(0.5) == Fixed(0.5)
    assert as_scale_rule(np.float32(0.5)).first(2, "vector").tolist() == [0.5, 0.5]


def test_a_fixed_scale_that_is_no_positive_number_of_float32_is_refused():
    for scale in (0.0, -0.1, inf, nan, 1e-50, 1e300):
        with pytest.raises(ValueError, match=r"^scale must "):
            as_scale_rule(scale)
    for scale in ("0.1", None, False, 1j, [0.1]):
        with pytest.raises(TypeError, match=r"^scale must "):
            as_scale_rule(scale)


def test_an_adaptive_scale_is_each_clients_own_in_the_first_round():
    np.testing.assert_array_equal(Adaptive().first(3, "signs"), [nan] * 3)


def test_an_adaptive_scale_is_the_factor_times_the_median_magnitude_of_the_array():
    magnitudes = np.array([[1.0, 10.0], [2.0, 30.0], [9.0, 20.0]])
    assert at_first(Adaptive(3.0), magnitudes).tolist() == [6.0, 60.0]


@given(
    values=hnp.arrays(
        np.float64,
        st.tuples(st.integers(1, 11), st.integers(0, 4)),
        elements=st.just(0.0) | st.floats(1e-6, 1e6),
    ),
    quantile=st.floats(0, 1),
)
def test_an_adaptive_scale_is_a_lower_quantile_of_the_clients_that_moved_the_array(
    values, quantile
):
    clients = len(values)
    above = clients - 1 - int(quantile * (clients - 1))
    liars = min(max(clients // 5, 1), above)
    sizes = agreed_size(values, quantile)
    for column, size in zip(values.T, sizes, strict=True):
        positive = [value for value in column if value > 0]
        expected = np.quantile(positive, quantile, method="lower") if positive else 0.0
        assert size == min(expected, sorted(column)[-1 - liars])
    following = at_first(Adaptive(2.0, quantile=quantile), values)
    np.testing.assert_array_equal(following, 2 * sizes)


class TestWhatLiarsCanDoToASize:
    """Of M = 2 … 11 clients f lie, h of the others moved the block; the h sizes are 1 … 2."""

    def sizes_of(self, clients, liars, claim, moved):
        """The agreed size, with the clients that moved the block between the liars and the rest."""
        honest = np.zeros(clients - liars)
        honest[:moved] = np.linspace(1, 2, moved)
        return agreed_size(np.concatenate([np.full(liars, claim), honest])[:, None]).item()

    def tolerated(self, clients):
        return max(clients // 5, 1)

    @pytest.mark.parametrize("clients", range(2, 12))
    def test_a_frozen_block_has_size_zero_whatever_up_to_a_fifth_of_the_clients_claim(
        self, clients
    ):
        for liars in range(1, clients):
            size = self.sizes_of(clients, liars, claim=3e38, moved=0)
            assert (size == 0) == (liars <= self.tolerated(clients))

    @pytest.mark.parametrize("clients", range(2, 12))
    def test_no_claim_raises_it_above_the_largest_honest_size_while_honest_clients_are_as_many(
        self, clients
    ):
        for liars in range(1, clients):
            for moved in range(1, clients - liars + 1):
                size = self.sizes_of(clients, liars, claim=3e38, moved=moved)
                assert (size <= 2) == (liars <= max(self.tolerated(clients), moved))

    @pytest.mark.parametrize("clients", range(2, 12))
    def test_no_claim_lowers_it_below_the_smallest_honest_size_while_honest_clients_are_more(
        self, clients
    ):
        for liars in range(1, clients):
            for moved in range(max(liars, self.tolerated(clients)) + 1, clients - liars + 1):
                for claim in (0.0, 1e-30):
                    assert self.sizes_of(clients, liars, claim=claim, moved=moved) >= 1

    def test_the_largest_size_is_taken_only_by_who_asks_for_it(self):
        sizes = np.array([[1.0], [2.0], [9.0]])
        assert [agreed_size(sizes, q).item() for q in (0.0, 0.5, 0.99, 1.0)] == [1, 2, 2, 9]


@each_rule
def test_whatever_clients_claim_scales_and_their_squares_are_finite_in_float32(rule):
    claims = np.full((3, 2), float(np.finfo(np.float32).max))
    scales = rule.first(2, "signs")
    for _ in range(3):
        scales = rule.following(scales, claims)
        assert np.isfinite(np.square(scales.astype(np.float32))).all()


@given(
    scale=st.floats(1e-6, 1e6),
    magnitudes=hnp.arrays(np.float64, (3, 1), elements=st.floats(1e-12, 1e9)),
)
def test_an_adaptive_scale_follows_what_is_wanted_within_a_factor_of_two(scale, magnitudes):
    rule = Adaptive()
    (following,) = rule.following(np.array([scale]), magnitudes)
    (wanted,) = at_first(rule, magnitudes)
    expected = min(max(wanted, scale / 2), scale * 2)
    assert following == pytest.approx(max(expected, wanted / 4), rel=1e-12)


@pytest.mark.parametrize("rule", [Adaptive(), TopUp(), Adaptive(quantile=1.0)])
def test_a_scale_that_a_liar_of_two_made_tiny_recovers_in_the_next_honest_rounds(rule):
    honest = np.array([[0.1], [0.1]])
    tiny = at_first(rule, np.array([[1e-38], [0.1 if rule.quantile < 1 else 1e-38]]))
    usual = at_first(rule, honest)
    once = rule.following(tiny, honest)
    assert once >= usual / 4
    assert rule.following(rule.following(once, honest), honest) == usual


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_no_t_liars_more_than_double_a_scale_in_a_round(quantile):
    rule = Adaptive(quantile=quantile)
    for clients in (3, 5, 10, 25):
        sizes = np.ones((clients, 1))
        usual = at_first(rule, sizes)
        sizes[: num_tolerated(clients)] = 1e9
        assert rule.following(usual, sizes) <= 2 * usual


@pytest.mark.parametrize("in_force", [np.array([nan]), np.array([3.0])], ids=["at first", "later"])
def test_one_client_that_lies_a_millionfold_changes_an_adaptive_scale_by_less_than_two(in_force):
    rule = Adaptive()
    for clients in (3, 5, 10):
        honest = np.random.default_rng(0).uniform(0.8, 1.25, (clients, 1))
        usual = rule.following(in_force, honest)
        for lie in (1e6, 1e-6):
            attacked = honest.copy()
            attacked[0] *= lie
            assert 0.5 < (rule.following(in_force, attacked) / usual).item() < 2


def test_a_lasting_liar_does_not_make_an_adaptive_scale_drift():
    rule, scales = Adaptive(), np.array([nan])
    for _ in range(100):
        scales = rule.following(scales, np.array([[1.0], [1.1], [1.2], [1e6]]))
    assert 3.0 <= scales.item() < 6.0


def test_an_adaptive_scale_of_an_array_that_nobody_moved_stays():
    rule = Adaptive(1.0)
    assert rule.following(np.array([5.0]), np.zeros((3, 1))).tolist() == [5.0]
    assert at_first(rule, np.zeros((3, 1))).tolist() == [0.0]


def test_a_block_whose_scale_is_unknown_begins_afresh_and_the_others_follow_theirs():
    scales = Adaptive(1.0).following(np.array([nan, 5.0]), np.array([[100.0, 100.0]]))
    assert scales[0] == 100.0
    assert 5.0 < scales[1] < 100.0


def test_an_adaptive_scale_of_an_array_that_moves_for_the_first_time_is_there_at_once():
    assert Adaptive(1.0).following(np.zeros(1), np.array([[100.0]])).tolist() == [100.0]


@pytest.mark.parametrize(
    ("argument", "out_of_range"),
    [
        ("factor", (0.0, -1.0, inf, nan)),
        ("magnitude", ("mean", "")),
        ("quantile", (-0.1, 1.1, nan)),
    ],
)
def test_an_argument_that_an_adaptive_scale_cannot_use_is_named(argument, out_of_range):
    for value in out_of_range:
        with pytest.raises(ValueError, match=f"^{argument} must "):
            Adaptive(**{argument: value})
    for value in (None, True, [1.5]):
        with pytest.raises(TypeError, match=f"^{argument} must "):
            Adaptive(**{argument: value})


def test_the_quantile_of_an_adaptive_scale_may_be_the_least_and_the_largest():
    magnitudes = np.array([[1.0], [2.0], [9.0]])
    assert at_first(Adaptive(1.0, quantile=0), magnitudes) == 1
    assert at_first(Adaptive(1.0, quantile=1), magnitudes) == 9


@pytest.mark.parametrize(("clients", "factor"), [(1, 1.0), (2, 1.057), (10, 1.202), (100, 1.445)])
def test_the_level_that_updates_are_topped_up_to_grows_with_the_number_of_clients(clients, factor):
    (level,) = at_first(TopUp(), np.full((clients, 1), 2.0))
    assert level == pytest.approx(2 * factor, rel=1e-3)
    assert at_first(TopUp(1.5), np.full((clients, 1), 2.0)) == pytest.approx(3.0)


def test_a_client_that_chooses_its_own_level_tops_up_a_fifth_unless_told_otherwise():
    assert TopUp().own_factor == 1.2
    assert TopUp(1.5).own_factor == 1.5


def test_the_theoretical_scale_and_rate_of_signs_are_those_of_theorem_5():
    rule = Theory(rounds=16, dim=625)
    assert rule.first(2, "signs").tolist() == pytest.approx([10.0, 10.0])
    assert rule.learning_rate("signs") == pytest.approx(0.01)


def test_the_theoretical_scale_and_rate_of_the_median_are_those_of_theorem_6():
    rule = Theory(rounds=1000, dim=1000)
    assert rule.first(2, "vector").tolist() == pytest.approx([10.0, 10.0])
    assert rule.learning_rate("vector") == pytest.approx(1e-4)


def test_the_theoretical_scale_of_numpys_integers_does_not_overflow():
    rule = Theory(rounds=np.int32(10**5), dim=np.int32(10**7))
    assert rule.first(1, "signs").item() == pytest.approx(1000.0)
    assert rule.learning_rate("signs") == pytest.approx(1e-6)


@pytest.mark.parametrize("argument", ["rounds", "dim"])
def test_an_argument_of_a_theoretical_scale_that_is_no_positive_integer_is_named(argument):
    for value in (0, -1):
        with pytest.raises(ValueError, match=f"^{argument} must .*{value}"):
            Theory(**{"rounds": 1, "dim": 1, argument: value})
    for value in (1.0, "1", None, True):
        with pytest.raises(TypeError, match=f"^{argument} must "):
            Theory(**{"rounds": 1, "dim": 1, argument: value})


class TestSizeByVotes:
    """Each client says whether its magnitude is above the last quantile, or above each rung."""

    quantiles = st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0])

    def votes_on(self, sizes, thresholds):
        return np.array([(np.asarray(sizes) > one).sum() for one in thresholds])

    @given(num_votes=st.integers(2, 200), quantile=quantiles, data=st.data())
    def test_moves_towards_the_quantile_by_a_factor_of_two_at_most(self, num_votes, quantile, data):
        above = data.draw(st.integers(1, num_votes - 1))
        size = size_by_votes(3.0, np.array([above]), num_votes, quantile)
        assert 1.5 <= size <= 6.0
        wanted = max((1 - quantile) * num_votes, min(num_tolerated(num_votes) + 0.5, num_votes / 2))
        assert (size > 3.0) == (above > wanted)
        assert (size < 3.0) == (above < wanted)

    @given(num_votes=st.integers(3, 200), quantile=quantiles, data=st.data())
    def test_one_client_changes_it_by_no_more_than_one_vote(self, num_votes, quantile, data):
        above = data.draw(st.integers(1, num_votes - 2))
        sizes = [size_by_votes(3.0, np.array([n]), num_votes, quantile) for n in (above, above + 1)]
        assert 1 <= sizes[1] / sizes[0] <= 4 ** (1 / num_votes) * (1 + 1e-12)

    @given(num_votes=st.integers(3, 200), quantile=quantiles)
    def test_liars_alone_neither_raise_it_nor_keep_it_up(self, num_votes, quantile):
        liars = np.array([num_tolerated(num_votes)])
        assert size_by_votes(3.0, liars, num_votes, quantile) < 3.0

    @pytest.mark.parametrize("above", [0, 7])
    def test_after_a_unanimous_vote_nothing_is_known(self, above):
        assert np.isnan(size_by_votes(3.0, np.array([above]), 7, 0.5))

    @given(
        sizes=st.lists(st.floats(1e-10, 1e5), min_size=1, max_size=20),
        quantile=quantiles,
    )
    def test_of_an_unknown_size_the_ladder_finds_the_quantile_within_half_a_rung(
        self, sizes, quantile
    ):
        found = size_by_votes(nan, self.votes_on(sizes, LADDER), len(sizes), quantile)
        if len(sizes) <= num_tolerated(len(sizes)):
            assert found == 0
            return
        rank = max(int(np.ceil(quantile * len(sizes))) - 1, 0)
        # The largest sizes may be lies.
        expected = np.sort(sizes)[min(rank, len(sizes) - num_tolerated(len(sizes)) - 1)]
        assert expected / 2**0.26 <= found <= expected * 2**0.26

    @given(
        moved=st.lists(st.floats(1e-10, 1e5), min_size=1, max_size=20),
        still=st.integers(1, 50),
        quantile=quantiles,
        seed=st.integers(0, 99),
    )
    def test_of_an_unknown_size_liars_make_no_more_than_an_honest_clients(
        self, moved, still, quantile, seed
    ):
        """Whatever they vote, even what no size is: rung by rung, or never for the first."""
        lying = num_tolerated(len(moved) + still + 1)
        honest, lies = self.votes_on(moved, LADDER), np.full(LADDER.size, lying)
        anything = np.random.default_rng(seed).integers(0, lying + 1, LADDER.size)
        for votes in (lies, np.where(np.arange(LADDER.size) > 0, lies, 0), anything):
            found = size_by_votes(nan, honest + votes, len(moved) + still + lying, quantile)
            assert found <= max(moved) * 2**0.26

    def test_a_ladder_that_one_client_of_many_lies_about_moves_to_the_next_clients_size(self):
        honest = [1.0] * 5 + [2.0] * 4
        for lie in (0.0, 1e9):
            found = size_by_votes(nan, self.votes_on([*honest, lie], LADDER), 10, 0.5)
            assert found == pytest.approx(1.0, rel=0.2)

    def test_a_block_that_no_more_than_the_tolerated_clients_have_moved_has_size_zero(self):
        for clients in (2, 3, 5, 10, 20):
            most = num_tolerated(clients)
            for moved in (0, most):
                above = np.full(LADDER.size, moved)
                assert size_by_votes(nan, above, clients, 0.5) == 0
            assert size_by_votes(nan, np.full(LADDER.size, most + 1), clients, 0.5) > 0

    @given(
        size=st.floats(1e-30, 1e12) | st.just(nan),
        num_votes=st.integers(1, 300),
        quantile=quantiles,
        seed=st.integers(0, 99),
    )
    def test_whatever_the_counts_are_it_is_a_size_or_unknown(self, size, num_votes, quantile, seed):
        rungs = LADDER.size if np.isnan(size) else 1
        counts = np.random.default_rng(seed).integers(0, num_votes + 1, rungs)
        found = size_by_votes(size, counts, num_votes, quantile)
        assert np.isnan(found) or 0 <= found <= 2 * 1e12


@pytest.mark.parametrize("rule", [Adaptive, TopUp])
@pytest.mark.parametrize("value", [1, None, "yes"])
def test_whether_clients_vote_is_a_bool(rule, value):
    with pytest.raises(TypeError, match=r"^voted must be a bool"):
        rule(voted=value)
