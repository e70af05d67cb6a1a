"""What a client that takes some steps releases."""

import re
from fractions import Fraction
from math import inf

import numpy as np
import pytest

from fedmedian import Clip, DivideByLearningRate, Gaussian, Rotation
from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism, mechanism_of
from fedmedian.steps.encodings import Signs
from fedmedian.steps.noise import AddNoise
from fedmedian.steps.updates import Limit

CLIP, LIMIT, TURN = Clip(1.0), Limit(0.1), Rotation(seed=1)


def answering(*steps, scale=0.5):
    return mechanism_of((*steps, AddNoise(Gaussian(), np.float32([scale])), Signs()))


@pytest.mark.parametrize(
    ("steps", "limit"),
    [
        ((CLIP, TURN, LIMIT), 0.1),
        ((CLIP, LIMIT, Limit(0.2)), 0.2),
        ((CLIP, LIMIT, TURN), inf),
        ((LIMIT, CLIP), inf),
        ((CLIP,), inf),
    ],
    ids=["last", "twice", "before the rotation", "before the clipping", "none"],
)
def test_entries_are_limited_by_the_last_step_before_the_noise(steps, limit):
    assert answering(*steps) == Mechanism(1.0, 0.5, limit=limit)


def test_a_limit_does_not_replace_the_clipping():
    assert "without Clip" in str(answering(LIMIT))
    assert isinstance(answering(CLIP, DivideByLearningRate(0.1), LIMIT), NoMechanism)


def test_noise_for_limited_entries_may_be_a_small_share_of_the_norm():
    assert answering(CLIP, LIMIT, scale=0.03125).noise_multiplier == 0.03125
    for steps, largest in (((CLIP, LIMIT), "entries are clipped to, 0.1"), ((CLIP,), "to, 1")):
        assert re.search(f"0.2 times .*{largest}$", str(answering(*steps, scale=0.015625)))


def test_too_little_noise_for_a_norm_that_is_a_fraction_is_said():
    assert str(answering(Clip(Fraction(9, 2)))).endswith("clipped to, 4.5")


def test_noise_of_a_fifth_of_the_norm_is_enough_after_its_scale_is_rounded_to_float32():
    for norm, scale in ((0.3, 0.06), (0.7, 0.14), (0.9, 0.18)):
        assert answering(Clip(norm), scale=scale) == Mechanism(norm, float(np.float32(scale)))
