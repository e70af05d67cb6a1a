"""Checks of arguments: what they let through, and what their errors say."""

import re
from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest

from fedmedian.checks import require_choice, require_integer, require_real, require_type


class TestRequireType:
    def test_lets_instances_through(self):
        require_type("noise", 1, int, "an integer")
        require_type("noise", "a", (int, str), "an integer or a string")

    def test_names_the_argument_what_is_wanted_and_what_it_got(self):
        message = "noise must be a noise family, got 'gaussian' (str)"
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            require_type("noise", "gaussian", int, "a noise family")


class TestRequireReal:
    @pytest.mark.parametrize("value", [1, 1.5, -3, np.float32(0.5), np.int64(2), Fraction(1, 2)])
    def test_returns_any_finite_number_as_a_float(self, value):
        number = require_real("x", value)
        assert type(number) is float
        assert number == value

    @pytest.mark.parametrize("value", [True, np.True_, "1", None, 1j, [1], np.ones(2)])
    def test_refuses_what_is_not_a_number(self, value):
        with pytest.raises(TypeError, match=r"^x must be a number, got "):
            require_real("x", value)

    @pytest.mark.parametrize("value", [inf, -inf, nan])
    def test_refuses_what_is_not_finite(self, value):
        with pytest.raises(ValueError, match=f"^x must be finite, got {value}$"):
            require_real("x", value)
        with pytest.raises(ValueError, match=f"^x must be finite and > 0, got {value}$"):
            require_real("x", value, low=0, open_low=True)

    def test_the_ends_belong_to_the_range(self):
        assert require_real("x", 0, low=0, high=1) == 0
        assert require_real("x", 1, low=0, high=1) == 1

    @pytest.mark.parametrize(
        ("value", "bounds", "allowed"),
        [
            (-0.1, {"low": 0.0}, ">= 0"),
            (0.0, {"low": 0.0, "open_low": True}, "> 0"),
            (1.1, {"high": 1.0}, "<= 1"),
            (1.0, {"high": 1.0, "open_high": True}, "< 1"),
            (2, {"low": 0.0, "high": 1.0}, ">= 0 and <= 1"),
            (1.0, {"low": 1.0, "high": 2.5, "open_low": True}, "> 1 and <= 2.5"),
        ],
    )
    def test_names_the_range_and_the_value(self, value, bounds, allowed):
        with pytest.raises(ValueError, match=f"^x must be {allowed}, got {value}$"):
            require_real("x", value, **bounds)


class TestRequireInteger:
    @pytest.mark.parametrize("value", [1, 10**30, np.int32(7), np.uint8(1)])
    def test_returns_integers_as_int(self, value):
        number = require_integer("n", value, low=1)
        assert type(number) is int
        assert number == value

    @pytest.mark.parametrize("value", [1.0, True, np.True_, "1", None, np.float64(1)])
    def test_refuses_what_is_not_an_integer(self, value):
        with pytest.raises(TypeError, match=r"^n must be an integer, got "):
            require_integer("n", value, low=0)

    def test_refuses_what_is_too_small(self):
        with pytest.raises(ValueError, match=r"^n must be >= 1, got 0$"):
            require_integer("n", 0, low=1)


class TestRequireChoice:
    def test_lets_an_allowed_string_through(self):
        require_choice("of", "rms", ("rms", "max"))

    def test_refuses_another_string_and_lists_the_allowed_ones(self):
        message = "of must be one of ['max', 'rms'], got 'mean'"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            require_choice("of", "mean", ("rms", "max"))

    @pytest.mark.parametrize("value", [None, 1, ["rms"]])
    def test_refuses_what_is_not_a_string(self, value):
        with pytest.raises(TypeError, match=r"^of must be a string, got "):
            require_choice("of", value, ("rms", "max"))
