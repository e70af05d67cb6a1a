"""The contract of every scale rule, and what each rule does."""

from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedmedian import Adaptive, Gaussian, ScaleRule, Theory
from fedmedian.scales import Fixed, as_scale_rule, quantile_of_positive

RULES = [
    Fixed(0.1),
    Adaptive(),
    Adaptive(0.1, magnitude="max", quantile=1.0),
    Adaptive(2.0, quantile=0.0, max_change=1.5),
    Theory(rounds=100, dim=10),
]

KINDS = ["signs", "vector"]

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


@pytest.mark.parametrize("rule", RULES, ids=repr)
class TestEveryRule:
    @pytest.mark.parametrize("kind", KINDS)
    def test_first_scales_are_positive_one_per_array_or_left_to_the_clients(self, rule, kind):
        scales = rule.first(3, kind)
        if scales is not None:
            assert scales.shape == (3,)
            assert scales.dtype == np.float64
            assert np.all(scales > 0)
            assert np.all(np.isfinite(scales))

    @given(rounds=rounds_of_magnitudes(), kind=st.sampled_from(KINDS))
    def test_scales_are_never_nan_negative_or_infinite_nor_zero_once_positive(
        self, rule, rounds, kind
    ):
        arrays, magnitudes = rounds
        scales = rule.first(arrays, kind)
        positive = np.zeros(arrays, bool) if scales is None else scales > 0
        for reports in magnitudes:
            scales = rule.following(scales, reports)
            assert scales.shape == (arrays,)
            assert np.all(np.isfinite(scales))
            assert np.all(scales >= 0)
            assert np.all(scales[positive] > 0)
            positive |= scales > 0

    def test_what_it_is_given_stays_as_it_was(self, rule):
        scales, magnitudes = np.array([1.0, 2.0]), np.array([[9.0, 0.0], [3.0, 1e-3]])
        rule.following(scales, magnitudes)
        assert scales.tolist() == [1.0, 2.0]
        assert magnitudes.tolist() == [[9.0, 0.0], [3.0, 1e-3]]

    def test_tells_clients_that_choose_for_themselves_how(self, rule):
        assert rule.factor > 0
        assert rule.magnitude in ("rms", "max", None)

    def test_is_a_scale_rule_and_a_value(self, rule):
        assert isinstance(rule, ScaleRule)
        assert as_scale_rule(rule) is rule
        assert hash(rule) == hash(type(rule)(**vars(rule)))


@pytest.mark.parametrize("rule", [Fixed(0.3), Theory(7, 9)], ids=repr)
def test_a_constant_rule_ignores_what_clients_report(rule):
    scales = rule.first(2, "signs")
    assert np.array_equal(rule.following(scales, np.array([[5.0, 0.0]])), scales)


class TestFixed:
    def test_a_plain_number_means_fixed(self):
        assert as_scale_rule(0.5) == Fixed(0.5)
        assert as_scale_rule(np.float32(0.5)).first(2, "vector").tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("scale", [0.0, -0.1, inf, nan])
    def test_out_of_range(self, scale):
        with pytest.raises(ValueError, match=r"^scale must be .*> 0"):
            as_scale_rule(scale)

    @pytest.mark.parametrize("scale", ["0.1", None, False, 1j])
    def test_wrong_type(self, scale):
        with pytest.raises(TypeError, match=r"^scale must be a number"):
            as_scale_rule(scale)


class TestAdaptive:
    def test_lets_each_client_choose_in_the_first_round(self):
        assert Adaptive().first(3, "signs") is None

    def test_then_takes_the_factor_times_the_median_magnitude_of_each_array(self):
        magnitudes = np.array([[1.0, 10.0], [2.0, 30.0], [9.0, 20.0]])
        assert Adaptive(3.0).following(None, magnitudes).tolist() == [6.0, 60.0]

    @pytest.mark.parametrize(("quantile", "expected"), [(0.0, 1.0), (0.25, 1.5), (1.0, 9.0)])
    def test_another_quantile(self, quantile, expected):
        magnitudes = np.array([[1.0], [2.0], [9.0]])
        assert Adaptive(1.0, quantile=quantile).following(None, magnitudes).tolist() == [expected]

    def test_follows_within_the_allowed_change(self):
        scales, rule = np.array([1.0, 1.0, 1.0, 1.0]), Adaptive(1.0, max_change=2.0)
        wanted = np.array([[0.01, 0.7, 1.5, 100.0]])
        assert rule.following(scales, wanted).tolist() == [0.5, 0.7, 1.5, 2.0]

    @given(
        change=st.floats(1.01, 10),
        scale=st.floats(1e-6, 1e6),
        magnitudes=hnp.arrays(np.float64, (3, 1), elements=st.floats(1e-12, 1e12)),
    )
    def test_no_report_moves_a_scale_by_more_than_the_allowed_change(
        self, change, scale, magnitudes
    ):
        (following,) = Adaptive(max_change=change).following(np.array([scale]), magnitudes)
        assert scale / change * (1 - 1e-12) <= following <= scale * change * (1 + 1e-12)

    @pytest.mark.parametrize("clients", [3, 5, 10])
    @pytest.mark.parametrize("in_force", [None, np.array([3.0])])
    def test_one_client_that_reports_a_million_times_more_changes_it_by_less_than_two(
        self, clients, in_force
    ):
        honest = np.random.default_rng(0).uniform(0.8, 1.25, (clients, 1))
        attacked = honest.copy()
        attacked[0] *= 1e6
        rule = Adaptive()
        for attack in (attacked, np.where(attacked > 2, 1e-6, attacked)):
            ratio = rule.following(in_force, attack) / rule.following(in_force, honest)
            assert 0.5 < ratio.item() < 2

    def test_a_lasting_attacker_does_not_make_it_drift(self):
        rule, scales = Adaptive(), None
        for _ in range(100):
            scales = rule.following(scales, np.array([[1.0], [1.1], [1.2], [1e6]]))
        assert 3.0 <= scales.item() < 6.0

    def test_leaves_out_clients_that_did_not_move_the_array(self):
        magnitudes = np.array([[0.0], [0.0], [0.0], [2.0], [4.0]])
        assert Adaptive(1.0).following(None, magnitudes).tolist() == [3.0]

    def test_keeps_the_scale_of_an_array_that_nobody_moved(self):
        rule = Adaptive(1.0)
        assert rule.following(np.array([5.0]), np.zeros((3, 1))).tolist() == [5.0]
        assert rule.following(None, np.zeros((3, 1))).tolist() == [0.0]

    def test_an_array_that_moves_for_the_first_time_gets_its_scale_at_once(self):
        assert Adaptive(1.0).following(np.zeros(1), np.array([[100.0]])).tolist() == [100.0]

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            ("factor", 0.0),
            ("factor", -1.0),
            ("factor", inf),
            ("factor", nan),
            ("magnitude", "mean"),
            ("quantile", -0.1),
            ("quantile", 1.1),
            ("quantile", nan),
            ("max_change", 1.0),
            ("max_change", 0.5),
            ("max_change", inf),
        ],
    )
    def test_out_of_range(self, argument, value):
        with pytest.raises(ValueError, match=f"^{argument} must be "):
            Adaptive(**{argument: value})

    @pytest.mark.parametrize("argument", ["factor", "magnitude", "quantile", "max_change"])
    @pytest.mark.parametrize("value", [None, True, [1.0]])
    def test_wrong_type(self, argument, value):
        with pytest.raises(TypeError, match=f"^{argument} must be "):
            Adaptive(**{argument: value})

    def test_the_ends_of_the_range_are_allowed(self):
        assert Adaptive(quantile=0).quantile == 0
        assert Adaptive(quantile=1).quantile == 1


class TestTheory:
    def test_theorem_5_for_signs(self):
        rule = Theory(rounds=16, dim=625)
        assert rule.first(2, "signs").tolist() == pytest.approx([10.0, 10.0])
        assert rule.learning_rate("signs") == pytest.approx(0.01)

    def test_theorem_6_for_the_median(self):
        rule = Theory(rounds=1000, dim=1000)
        assert rule.first(2, "vector").tolist() == pytest.approx([10.0, 10.0])
        assert rule.learning_rate("vector") == pytest.approx(1e-4)

    def test_integers_of_numpy_do_not_overflow(self):
        rule = Theory(rounds=np.int32(10**5), dim=np.int32(10**7))
        assert rule.first(1, "signs").item() == pytest.approx(1000.0)
        assert rule.learning_rate("signs") == pytest.approx(1e-6)

    @pytest.mark.parametrize("argument", ["rounds", "dim"])
    def test_out_of_range(self, argument):
        with pytest.raises(ValueError, match=f"^{argument} must be >= 1, got 0"):
            Theory(**{"rounds": 1, "dim": 1, argument: 0})

    @pytest.mark.parametrize("argument", ["rounds", "dim"])
    @pytest.mark.parametrize("value", [1.0, "1", None, True])
    def test_wrong_type(self, argument, value):
        with pytest.raises(TypeError, match=f"^{argument} must be an integer"):
            Theory(**{"rounds": 1, "dim": 1, argument: value})


class TestQuantileOfPositive:
    @given(
        values=hnp.arrays(
            np.float64,
            st.tuples(st.integers(1, 6), st.integers(0, 4)),
            elements=st.just(0.0) | st.floats(1e-6, 1e6),
        ),
        quantile=st.floats(0, 1),
    )
    def test_equals_the_quantile_of_what_is_not_zero(self, values, quantile):
        for column, result in zip(values.T, quantile_of_positive(values, quantile), strict=True):
            positive = [value for value in column if value > 0]
            expected = np.quantile(positive, quantile) if positive else 0.0
            assert result == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-50, 1e300])
def test_a_scale_that_float32_cannot_hold_is_refused(scale):
    with pytest.raises(ValueError, match=r"^scale must be within float32"):
        Gaussian(scale)
