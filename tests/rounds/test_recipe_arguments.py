"""The arguments of a recipe and of a run's options: bad ones are refused by name.

That each strategy passes its own on to them is in tests/strategies/test_arguments.py.
"""

from dataclasses import dataclass, fields
from math import inf, nan
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fedmedian import (
    Adam,
    Adaptive,
    Aggregator,
    ClientStep,
    Clip,
    CodedSteps,
    Cosine,
    Counts,
    Gaussian,
    Laplace,
    Logistic,
    Majority,
    Median,
    Momentum,
    Rotation,
    SecureSum,
    SmoothedMedian,
    Theory,
    TopUp,
    Uniform,
    VoteAggregator,
    register_client_step,
    register_noise,
)
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.recipe import Recipe
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.steps.base import CLIENT_STEPS
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.steps.noise import AddNoise, Measure, SizeVotes
from fedmedian.steps.tied import Tied
from fedmedian.steps.updates import Limit

OUT_OF_RANGE = {
    "learning_rate": (0.0, -1.0, nan, inf, 0),
    "noise_at": ("sea",),
    "scale_from": ("above",),
    "seed": (-1,),
    "min_replies": (0, -1),
    "max_failed_rounds": (0, -1),
    "threads": (0, -1),
}
WRONG_TYPE = {
    "aggregator": ("majority", Majority, 1, None),
    "noise": (0.1, "gaussian", Gaussian, Adaptive()),
    "learning_rate": ("fast", True, [1.0], 1j, Cosine),
    "noise_at": (None, True),
    "weighted": (1, None),
    "optimizer": (0.9, "adam", Momentum, lambda direction: direction),
    "client_steps": (Clip(1.0), "clip", None),
    "client_steps[0]": ([1.0], [Clip], [None]),
    "rotation": (True, 256, "rotation", Rotation),
    "scale_from": (None, True),
    "downlink": (True, 1, "coded", CodedSteps),
    "secure": (True, 1, "secure", SecureSum),
    "exact": ("*mean", [1], ("*mean", None), 3, None),
    "seed": (1.0, "1", True),
    "cohort_rules": (len, None, "one", [1]),
    "diagnostics": (1, None, "on"),
    "min_replies": (1.0, "1", None, True),
    "max_failed_rounds": (1.0, "1", True),
    "threads": (1.0, "2", True),
    "checkpoint": ("runs/first", Path("runs/first"), Checkpoint, True),
    "privacy_budget": (8.0, (8.0, 1e-5), True, PrivacyBudget),
}
OWNERS = {field.name: owner for owner in (Recipe, RunOptions) for field in fields(owner)}
AT_THE_SERVER = ({"aggregator": Median(), "noise_at": "server"}, {"aggregator": SmoothedMedian()})


def refuses(error, name, value):
    """Assert that a value is refused by the argument's name, and return the message."""
    argument = name.partition("[")[0]
    with pytest.raises(error) as refused:
        OWNERS[argument](**{argument: value})
    assert str(refused.value).startswith(f"{name} must ")
    return str(refused.value)


class TestArguments:
    @pytest.mark.parametrize("name", OUT_OF_RANGE)
    def test_one_out_of_range_is_refused_by_name_and_value(self, name):
        for value in OUT_OF_RANGE[name]:
            assert repr(value) in refuses(ValueError, name, value)

    @pytest.mark.parametrize("name", WRONG_TYPE)
    def test_one_of_a_wrong_type_is_refused_by_name(self, name):
        for value in WRONG_TYPE[name]:
            refuses(TypeError, name, value)

    def test_a_seed_that_could_not_travel_is_refused_without_its_digits(self):
        with pytest.raises(ValueError, match=r"^seed must be < 10\*\*4300, got a larger number$"):
            Recipe(seed=10**4300)

    def test_numbers_of_other_types_are_the_same_recipe(self):
        other = Recipe(learning_rate=1, seed=np.int64(3))
        assert repr(other) == repr(Recipe(learning_rate=1.0, seed=3))

    def test_a_scale_that_knows_no_such_encoding_is_refused(self):
        @dataclass(frozen=True)
        class Whole(Encoding):
            name = "whole"

            def pack(self, draft):
                return draft.vector

            def check_body(self, body, blocks):
                pass

        @dataclass(frozen=True)
        class Last(Aggregator):
            encoding = Whole()

            def direction(self, answers, rng):
                return answers.bodies[-1]

        with pytest.raises(ValueError, match=r"^scale must not be Theory.*'whole'"):
            Recipe(Last(), Gaussian(Theory(2, 2)), rotation=None)

    def test_the_ends_of_each_range_are_allowed(self):
        assert Recipe(seed=0, exact=(), client_steps=()).seed == 0
        assert RunOptions(min_replies=1, max_failed_rounds=1, cohort_rules=()).min_replies == 1

    def test_each_argument_is_tried_with_a_wrong_type(self):
        assert {*OWNERS} <= {*WRONG_TYPE}


@dataclass(frozen=True)
class UnknownStep(ClientStep):
    """A step that nobody has registered."""

    name: ClassVar[str] = "unknown-to-clients"

    def apply(self, draft):
        raise NotImplementedError


@dataclass(frozen=True)
class OwnStep(ClientStep):
    """A step that is registered where a test asks for it."""

    parameter: object = 1.0

    name: ClassVar[str] = "recipe-test"

    def apply(self, draft):
        raise NotImplementedError


@dataclass(frozen=True)
class UnknownNoise(Gaussian):
    """A noise family that nobody has registered."""

    name: ClassVar[str] = "unknown-to-clients"


@dataclass(frozen=True)
class OwnNoise(Gaussian):
    """A noise family that is registered where a test asks for it."""

    parameter: object = 1.0

    name: ClassVar[str] = "recipe-test"


@pytest.fixture
def registered(monkeypatch):
    """Registers this file's own step and noise family for one test."""
    for registry in (CLIENT_STEPS, NOISE_FAMILIES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    register_client_step(OwnStep)
    register_noise(OwnNoise)


class OwnRule(VoteAggregator):
    """A rule of this file's own, which cannot know a learning rate."""

    def usual_rate(self, noise):
        return None

    def weights(self, ballot):
        raise NotImplementedError

    def decode(self, votes, ballot, rng):
        raise NotImplementedError


class TestClientSteps:
    @pytest.mark.usefixtures("registered")
    def test_a_custom_client_step_is_taken_once_it_is_registered(self):
        assert Recipe(client_steps=[OwnStep()]).client_steps == [OwnStep()]

    def test_a_client_step_that_clients_do_not_know_is_refused_by_name(self):
        message = refuses(ValueError, "client_steps[1]", [Clip(1.0), UnknownStep()])
        assert "UnknownStep" in message
        assert "register_client_step" in message

    def test_a_second_client_step_of_one_kind_is_refused(self):
        message = refuses(ValueError, "client_steps[1]", [Clip(1.0), Clip(2.0)])
        assert repr(Clip(2.0)) in message

    @pytest.mark.parametrize(
        "step",
        [
            Rotation(),
            Limit(1.0),
            Measure("rms"),
            SizeVotes("rms"),
            AddNoise(Gaussian()),
            Tied(()),
            Signs(),
            Vector(),
        ],
        ids=repr,
    )
    def test_a_client_step_that_strategies_add_themselves_is_refused(self, step):
        assert repr(step) in refuses(ValueError, "client_steps[0]", [step])

    @pytest.mark.usefixtures("registered")
    def test_a_client_step_whose_parameters_cannot_travel_is_refused(self):
        with pytest.raises(TypeError, match=r"OwnStep\.parameter"):
            Recipe(client_steps=[OwnStep([1, 2])])


class TestNoise:
    @pytest.mark.usefixtures("registered")
    def test_a_custom_noise_family_is_taken_once_it_is_registered(self):
        assert Recipe(noise=OwnNoise(0.5)).client_noise == OwnNoise(0.5)

    def test_a_noise_family_that_clients_do_not_know_is_refused_where_they_are_to_add_it(self):
        assert "register_noise" in refuses(ValueError, "noise", UnknownNoise(0.5))
        for options in AT_THE_SERVER:
            assert Recipe(noise=UnknownNoise(0.5), **options).client_noise is None

    @pytest.mark.usefixtures("registered")
    def test_a_noise_family_whose_parameters_cannot_travel_is_refused(self):
        with pytest.raises(TypeError, match=r"OwnNoise\.parameter"):
            Recipe(noise=OwnNoise(parameter=[1, 2]))

    def test_noise_that_tops_up_is_refused_without_a_rotation_and_by_families_but_gaussian(self):
        with pytest.raises(ValueError, match=r"^rotation must .*TopUp"):
            Recipe(noise=Gaussian(TopUp()), rotation=None)
        assert Recipe(noise=Gaussian(TopUp())).rule == TopUp()
        for family in (Laplace, Logistic, Uniform):
            with pytest.raises(ValueError, match=r"^scale must .*TopUp"):
                family(TopUp())

    def test_a_rotation_with_a_seed_is_refused_since_each_round_has_one_of_its_own(self):
        with pytest.raises(ValueError, match=r"^rotation must .*seed=3"):
            Recipe(rotation=Rotation(seed=3))

    @pytest.mark.parametrize("scale", [0.5, Theory(rounds=10, dim=5)], ids=repr)
    def test_clients_that_are_to_choose_a_scale_that_is_fixed_are_refused(self, scale):
        with pytest.raises(ValueError, match=r"^scale_from must .*'client'"):
            Recipe(noise=Gaussian(scale), scale_from="client")

    def test_clients_that_are_to_choose_the_scale_of_noise_that_they_do_not_add_are_refused(self):
        for options in ({"aggregator": Median(), "noise": None}, *AT_THE_SERVER):
            with pytest.raises(ValueError, match=r"^scale_from must .*'client'"):
                Recipe(**options, scale_from="client")

    @pytest.mark.parametrize("rule", [Counts(), Majority(calibrated=True)], ids=repr)
    def test_a_rule_that_needs_noise_is_refused_without(self, rule):
        with pytest.raises(ValueError, match=r"^noise must ") as refused:
            Recipe(rule, None, 0.1)
        assert repr(rule) in str(refused.value)


class TestNoiseWithoutAScale:
    @pytest.mark.parametrize("aggregator", [Counts(), Median()], ids=repr)
    @pytest.mark.parametrize("rotation", [Rotation(), Rotation(8)], ids=repr)
    def test_gaussian_noise_without_a_scale_is_the_default_in_a_random_basis(
        self, aggregator, rotation
    ):
        given = Recipe(aggregator, Gaussian(), rotation=rotation)
        assert given.noise == Gaussian(TopUp())
        assert given == Recipe(aggregator, rotation=rotation)

    def test_gaussian_noise_without_a_scale_adapts_in_the_parameters_basis(self):
        given = Recipe(noise=Gaussian(), rotation=None)
        assert given.noise == Gaussian(Adaptive(3.0))
        assert given == Recipe(noise=given.noise, rotation=None)

    @pytest.mark.parametrize("family", [Laplace, Logistic, Uniform])
    @pytest.mark.parametrize("rotation", [Rotation(), None], ids=repr)
    def test_noise_that_cannot_top_up_adapts_in_every_basis(self, family, rotation):
        assert Recipe(noise=family(), rotation=rotation).noise == family() == family(Adaptive(3.0))

    @pytest.mark.parametrize("options", AT_THE_SERVER, ids=str)
    def test_the_server_adds_the_same_noise_as_clients_would(self, options):
        assert Recipe(noise=Gaussian(), **options).noise == Gaussian(TopUp())

    def test_a_rule_that_reads_the_noise_reads_the_scale_in_force(self):
        class Reading(OwnRule):
            def usual_rate(self, noise):
                return 0.5 if noise.rule.tops_up else 0.25

        assert Recipe(Reading(), Gaussian()).learning_rate == 0.5
        assert Recipe(Reading(), Gaussian(), rotation=None).learning_rate == 0.25


class TestLearningRate:
    T, D = 16, 625
    THEORY = Gaussian(Theory(rounds=T, dim=D))

    @pytest.mark.parametrize("rule", [Majority(), OwnRule()], ids=["majority", "own rule"])
    def test_a_rule_that_cannot_know_its_learning_rate_must_be_given_one(self, rule):
        with pytest.raises(ValueError, match=r"^learning_rate must ") as refused:
            Recipe(rule)
        assert repr(rule) in str(refused.value)
        assert Recipe(rule, learning_rate=0.1).aggregator is rule

    @pytest.mark.parametrize("rate", [1e-50, 1e50])
    def test_it_is_a_number_that_float32_holds(self, rate):
        with pytest.raises(ValueError, match=r"^learning_rate must be from 1.18e-38 to 1e\+12"):
            Recipe(learning_rate=rate)

    @pytest.mark.parametrize("rate", [Cosine, "0.1", [0.1]], ids=str)
    def test_it_is_a_number_or_a_schedule(self, rate):
        with pytest.raises(TypeError, match=r"^learning_rate must be a number, or a schedule such"):
            Recipe(learning_rate=rate)

    @pytest.mark.parametrize("aggregator", [Counts(), Median()], ids=repr)
    def test_an_optimizer_brings_the_learning_rate_that_its_steps_are_made_for(self, aggregator):
        assert Recipe(aggregator).learning_rate == 1.0
        assert Recipe(aggregator, optimizer=Momentum()).learning_rate == 1.0
        assert Recipe(aggregator, optimizer=Adam()).learning_rate == 0.01
        assert Recipe(aggregator, optimizer=Adam(), learning_rate=0.5).learning_rate == 0.5

    def test_theory_gives_a_majority_the_learning_rate_of_theorem_5(self):
        assert Recipe(Majority(), self.THEORY).learning_rate == pytest.approx(0.01)

    @pytest.mark.parametrize("noise_at", ["client", "server"])
    def test_theory_gives_the_median_the_learning_rate_of_theorem_6(self, noise_at):
        expected = (self.T * self.D) ** (-2 / 3)
        recipe = Recipe(Median(), self.THEORY, noise_at=noise_at)
        assert recipe.learning_rate == pytest.approx(expected)

    @pytest.mark.parametrize("rule", [Counts(), Majority(calibrated=True)], ids=repr)
    def test_theory_leaves_an_estimate_of_the_mean_its_natural_rate(self, rule):
        assert Recipe(rule, self.THEORY).learning_rate == 1.0

    @pytest.mark.parametrize("rule", [Majority(), Median()], ids=repr)
    def test_theory_leaves_a_learning_rate_that_is_given(self, rule):
        assert Recipe(rule, self.THEORY, 0.5).learning_rate == 0.5
