"""Learning-rate schedules: their values, and what they refuse."""

from itertools import pairwise
from math import cos, inf, nan, pi

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmedian import Cosine

rates = st.floats(1e-6, 1e3)


@given(initial=rates, final=rates, rounds=st.integers(2, 500), data=st.data())
def test_a_cosine_schedule_is_half_a_cosine(initial, final, rounds, data):
    number = data.draw(st.integers(1, rounds))
    angle = pi * (number - 1) / (rounds - 1)
    expected = (initial + final) / 2 + (initial - final) / 2 * cos(angle)
    assert Cosine(initial, rounds, final)(number) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_cosine_schedule_goes_from_the_initial_rate_to_the_final_one_and_stays():
    rate = Cosine(1.0, rounds=101, final=0.2)
    assert rate(1) == 1.0
    assert rate(51) == pytest.approx(0.6)
    assert {rate(number) for number in (101, 102, 10_000)} == {0.2}


def test_a_cosine_schedule_may_rise():
    rate = Cosine(0.1, rounds=3, final=1.0)
    assert [rate(number) for number in (1, 2, 3)] == pytest.approx([0.1, 0.55, 1.0])


@given(initial=rates, rounds=st.integers(1, 50))
def test_a_cosine_schedule_never_rises_by_default_and_is_always_positive(initial, rounds):
    values = [Cosine(initial, rounds)(number) for number in range(1, rounds + 10)]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(values))
    assert min(values) > 0


def test_a_cosine_schedule_ends_at_a_hundredth_of_the_initial_rate_by_default():
    assert Cosine(0.5, rounds=10)(10) == pytest.approx(0.005)


def test_a_cosine_schedule_of_a_single_round_is_the_initial_rate():
    assert Cosine(1.0, rounds=1)(1) == 1.0


@pytest.mark.parametrize(
    ("argument", "out_of_range", "of_another_type"),
    [
        ("initial", (0.0, -1.0, nan, inf), ("1", None, True, [1.0])),
        ("rounds", (0, -1), (5.0, "5", None, True)),
        ("final", (0.0, -1.0, nan, inf), ("1", True, [1.0])),
    ],
)
def test_an_argument_that_a_cosine_schedule_cannot_use_is_named(
    argument, out_of_range, of_another_type
):
    for wrong, values in ((ValueError, out_of_range), (TypeError, of_another_type)):
        for value in values:
            with pytest.raises(wrong, match=f"^{argument} must "):
                Cosine(**{"initial": 1.0, "rounds": 5, argument: value})
