"""Checks of arguments: what they let through, and that their errors name argument and value."""

import re
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest

from fedmedian.checks import require_choice, require_integer, require_real, require_type


def naming(argument, value):
    """A pattern of messages that begin with an argument's name and hold its value."""
    return rf"^{argument}\b.*{re.escape(repr(value))}"


def test_an_instance_of_an_allowed_type_is_let_through():
    require_type("noise", 1, int, "an integer")
    require_type("noise", "a", int | str, "an integer or a string")


def test_an_instance_of_another_type_is_refused():
    with pytest.raises(TypeError, match=naming("noise", "gaussian")):
        require_type("noise", "gaussian", int, "a noise family")


@pytest.mark.parametrize(
    "check",
    [
        lambda value: require_type("x", value, str, "a string"),
        lambda value: require_real("x", value),
        lambda value: require_integer("x", value, low=0),
    ],
    ids=["type", "real", "integer"],
)
def test_only_the_start_of_a_long_value_is_shown(check):
    value = {f"layer{number}": np.ones((5, 5)) for number in range(9)}
    with pytest.raises(TypeError, match=r"^x must be .*, got \{'layer0': array") as refused:
        check(value)
    assert str(refused.value).endswith(f"… (cut, of {len(repr(value))} characters) (dict)")
    assert len(str(refused.value)) < 300


def test_any_finite_number_is_a_real_and_comes_back_as_a_float():
    for value in (1, 1.5, -3, np.float32(0.5), np.int64(2), Fraction(1, 2)):
        number = require_real("x", value)
        assert type(number) is float
        assert number == value


def test_what_is_not_a_number_is_refused_as_a_real():
    for value in (True, np.True_, "1", None, 1j, [1], np.ones(2)):
        with pytest.raises(TypeError, match=naming("x", value)):
            require_real("x", value)


def test_what_is_not_finite_is_refused_as_a_real():
    for value in (inf, -inf, nan, 10**400, -(10**400), Fraction(10**400)):
        for bounds in ({}, {"low": 0}, {"low": 0, "open_low": True}):
            with pytest.raises(ValueError, match=naming("x", value)):
                require_real("x", value, **bounds)


def test_a_real_is_let_through_to_the_ends_of_its_range_and_no_further():
    closed, opened = {"low": 0.0, "high": 1.0}, {"open_low": True, "open_high": True}
    for value in (0, 1, 0.5):
        assert require_real("x", value, **closed) == value
    assert require_real("x", 0.5, **closed, **opened) == 0.5
    for bounds, values in ((closed, (-0.1, 1.1)), ({**closed, **opened}, (0.0, 1.0, -0.1, 1.1))):
        for value in values:
            with pytest.raises(ValueError, match=naming("x", value)):
                require_real("x", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "allowed"),
    [
        (-0.1, {"low": 0.0}, [">= 0"]),
        (0.0, {"low": 0.0, "open_low": True}, ["> 0"]),
        (2, {"low": 0.0, "high": 1.0}, [">= 0", "<= 1"]),
        (2.5, {"high": 2.5, "open_high": True}, ["< 2.5"]),
    ],
)
def test_a_real_out_of_range_is_refused_with_the_range(value, bounds, allowed):
    with pytest.raises(ValueError, match=naming("x", value)) as refused:
        require_real("x", value, **bounds)
    assert all(bound in str(refused.value) for bound in allowed)


def test_any_integer_comes_back_as_an_int():
    for value in (1, 10**30, np.int32(7), np.uint8(1)):
        number = require_integer("n", value, low=1)
        assert type(number) is int
        assert number == value


def test_what_is_not_an_integer_is_refused():
    for value in (1.0, True, np.True_, "1", None, np.float64(1)):
        with pytest.raises(TypeError, match=naming("n", value)):
            require_integer("n", value, low=0)


def test_an_integer_that_is_too_small_is_refused_with_the_least():
    with pytest.raises(ValueError, match=naming("n", 0)) as refused:
        require_integer("n", 0, low=1)
    assert ">= 1" in str(refused.value)


def test_an_integer_that_is_too_large_is_refused_with_both_bounds():
    assert require_integer("n", 3, low=1, high=3) == 3
    with pytest.raises(ValueError, match=naming("n", 4)) as refused:
        require_integer("n", 4, low=1, high=3)
    assert ">= 1 and <= 3" in str(refused.value)


def test_an_allowed_string_is_let_through_as_a_choice():
    require_choice("of", "rms", ("rms", "max"))


def test_another_string_is_refused_as_a_choice_with_those_that_there_are():
    with pytest.raises(ValueError, match=naming("of", "mean")) as refused:
        require_choice("of", "mean", ("rms", "max"))
    assert all(choice in str(refused.value) for choice in ("rms", "max"))


def test_what_is_not_a_string_is_refused_as_a_choice():
    for value in (None, 1, ["rms"]):
        with pytest.raises(TypeError, match=naming("of", value)):
            require_choice("of", value, ("rms", "max"))
