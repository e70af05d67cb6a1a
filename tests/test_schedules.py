"""Learning-rate schedules: their values, and what they refuse."""

from itertools import pairwise
from math import cos, inf, nan, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import Cosine, StepDecay
from fedmedian.schedules import as_schedule

rates = st.floats(1e-6, 1e3)


class TestCosine:
    def test_goes_from_the_initial_rate_in_the_first_round_to_the_final_one_in_the_last(self):
        rate = Cosine(1.0, rounds=101, final=0.2)
        assert rate(1) == 1.0
        assert rate(51) == pytest.approx(0.6)
        assert rate(101) == pytest.approx(0.2)

    @given(initial=rates, final=rates, rounds=st.integers(2, 500), data=st.data())
    def test_is_half_a_cosine(self, initial, final, rounds, data):
        number = data.draw(st.integers(1, rounds))
        angle = pi * (number - 1) / (rounds - 1)
        expected = (initial + final) / 2 + (initial - final) / 2 * cos(angle)
        assert Cosine(initial, rounds, final)(number) == pytest.approx(expected, rel=1e-9, abs=1e-9)

    @given(initial=rates, rounds=st.integers(1, 50))
    def test_never_rises_and_is_always_positive(self, initial, rounds):
        values = [Cosine(initial, rounds)(number) for number in range(1, rounds + 10)]
        assert all(later <= earlier for earlier, later in pairwise(values))
        assert min(values) > 0

    def test_ends_at_a_hundredth_of_the_initial_rate_unless_told_otherwise(self):
        assert Cosine(0.5, rounds=10)(10) == pytest.approx(0.005)

    def test_stays_at_the_final_rate_in_rounds_beyond_the_last(self):
        assert {Cosine(1.0, 10, 0.1)(number) for number in (10, 11, 1000)} == {0.1}

    def test_of_a_single_round_is_the_initial_rate(self):
        assert Cosine(1.0, rounds=1)(1) == 1.0

    def test_may_rise(self):
        rate = Cosine(0.1, rounds=3, final=1.0)
        assert [rate(number) for number in (1, 2, 3)] == pytest.approx([0.1, 0.55, 1.0])

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            *[(name, value) for name in ("initial", "final") for value in (0.0, -1.0, nan, inf)],
            ("rounds", 0),
            ("rounds", -1),
        ],
    )
    def test_out_of_range(self, argument, value):
        with pytest.raises(ValueError, match=f"^{argument} must be "):
            Cosine(**{"initial": 1.0, "rounds": 5, argument: value})

    @pytest.mark.parametrize(
        ("argument", "value"),
        [
            *[(name, value) for name in ("initial", "final") for value in ("1", True, [1.0])],
            ("initial", None),
            *[("rounds", value) for value in (5.0, "5", None, True)],
        ],
    )
    def test_wrong_type(self, argument, value):
        with pytest.raises(TypeError, match=f"^{argument} must be "):
            Cosine(**{"initial": 1.0, "rounds": 5, argument: value})


class TestStepDecay:
    @pytest.mark.parametrize(
        ("number", "divisor"),
        [(1, 1), (1000, 1), (1001, 2), (3000, 2), (3001, 10), (5000, 10), (5001, 20), (10**6, 20)],
    )
    def test_divides_as_the_paper_does_unless_told_otherwise(self, number, divisor):
        """By 2, 10 and 20 after 1000, 3000 and 5000 rounds."""
        assert StepDecay(0.1)(number) == pytest.approx(0.1 / divisor)

    def test_a_divisor_replaces_the_one_before_it(self):
        rate = StepDecay(12.0, {2: 3, 4: 4})
        assert [rate(number) for number in range(1, 7)] == [12, 12, 4, 4, 3, 3]

    def test_the_order_in_which_divisors_are_given_does_not_matter(self):
        rate = StepDecay(12.0, {4: 4, 2: 3})
        assert [rate(number) for number in (3, 5)] == [4, 3]

    def test_without_divisors_the_rate_is_constant(self):
        assert {StepDecay(0.3, {})(number) for number in (1, 10, 10_000)} == {0.3}

    def test_the_default_divisors_are_each_schedules_own(self):
        assert StepDecay(1.0).divisors is not StepDecay(1.0).divisors

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            *[("initial", {"initial": value}) for value in (0.0, -1.0, nan, inf)],
            *[(r"divisors\[7\]", {"divisors": {7: value}}) for value in (0, -2, nan, inf)],
            ("divisors' rounds", {"divisors": {0: 2}}),
        ],
    )
    def test_out_of_range(self, name, arguments):
        with pytest.raises(ValueError, match=f"^{name} must be "):
            StepDecay(**{"initial": 1.0, **arguments})

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            *[("initial", {"initial": value}) for value in ("1", None, True)],
            *[("divisors", {"divisors": value}) for value in (None, 2, [(7, 2)])],
            (r"divisors\[7\]", {"divisors": {7: "2"}}),
            ("divisors' rounds", {"divisors": {"7": 2}}),
            ("divisors' rounds", {"divisors": {7.0: 2}}),
        ],
    )
    def test_wrong_type(self, name, arguments):
        with pytest.raises(TypeError, match=f"^{name} must be "):
            StepDecay(**{"initial": 1.0, **arguments})


class TestAsSchedule:
    @pytest.mark.parametrize("rate", [0.5, 2, 1e-9])
    def test_a_number_is_the_rate_of_every_round(self, rate):
        schedule = as_schedule(rate)
        assert [schedule(number) for number in (1, 2, 10**6)] == [rate] * 3

    @pytest.mark.parametrize("schedule", [Cosine(1.0, 5), StepDecay(1.0), lambda t: 1 / t])
    def test_a_callable_is_a_schedule_already(self, schedule):
        assert as_schedule(schedule) is schedule

    @pytest.mark.parametrize("rate", [0.0, -1.0, nan, inf])
    def test_out_of_range(self, rate):
        with pytest.raises(ValueError, match=r"^learning_rate must be .*> 0, got"):
            as_schedule(rate)

    @pytest.mark.parametrize("rate", ["fast", None, True, [0.1]])
    def test_wrong_type(self, rate):
        with pytest.raises(TypeError, match=r"^learning_rate must be a number"):
            as_schedule(rate)
