"""The strategies' own arguments: each is shown, reaches the core, and is refused by name."""

import inspect
import pydoc
from dataclasses import dataclass, fields
from math import inf, nan
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvg

from fedmedian import (
    Adam,
    Adaptive,
    ClientMomentum,
    ClientStep,
    Clip,
    Counts,
    DecodeRule,
    DivideByLearningRate,
    Gaussian,
    Laplace,
    Logistic,
    Majority,
    Momentum,
    Rotation,
    Theory,
    TopUp,
    Uniform,
    register_client_step,
    register_noise,
)
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.rounds.settings import Settings
from fedmedian.rules.noise import NOISE_FAMILIES
from fedmedian.steps.base import CLIENT_STEPS
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.steps.tied import Tied
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD, legacy

STRATEGIES = (SignSGD, MedianSGD, legacy.SignSGD, legacy.MedianSGD)
OF_SIGNS = STRATEGIES[::2]
OF_MEDIANS = STRATEGIES[1::2]

every_strategy = pytest.mark.parametrize(
    "strategy", STRATEGIES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}"
)

OWN = {
    "optimizer": Adam(),
    "average_decay": 0.5,
    "client_steps": [DivideByLearningRate(0.1), ClientMomentum(0.9), Clip(1e-30)],
    "rotation": Rotation(smallest=9),
    "scale_from": "client",
    "exact": ["*mean"],
    "cohort_rules": [lambda cohort: {}],
    "diagnostics": False,
    "min_replies": 3,
    "max_failed_rounds": None,
    "proximal_mu": 0.5,
    "checkpoint": Checkpoint("runs/first"),
    "privacy_budget": None,  # it forbids the others; see test_budget.py
    "seed": 2**200,
}
OWN_OF_SIGNS = {
    "noise": Gaussian(Adaptive(0.5)),
    "decode": Majority("unchanged", calibrated=True),
    "learning_rate": 0.25,
    "weighted": False,
}
OWN_OF_MEDIANS = {
    "noise": Gaussian(Adaptive(0.5)),
    "noise_at": "server",
    "learning_rate": 0.25,
    "estimator": "smoothed",
}


class TestShownAndPassedOn:
    @every_strategy
    def test_every_argument_of_ours_stands_in_the_signature_with_its_default(self, strategy):
        own = OWN_OF_SIGNS if strategy in OF_SIGNS else OWN_OF_MEDIANS
        shown = inspect.signature(strategy).parameters
        assert set(shown) - {"numpy_clients", "fedavg"} == {*own, *OWN}
        for field in fields(Settings):
            assert shown[field.name].default == field.default
            assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert all(shown[name].default is not inspect.Parameter.empty for name in own)

    @every_strategy
    def test_help_shows_and_describes_every_argument_of_ours(self, strategy):
        text = pydoc.render_doc(strategy, renderer=pydoc.plaintext)
        for name, parameter in inspect.signature(strategy).parameters.items():
            if name != "fedavg":
                assert str(parameter) in text  # its name, type and default
                assert name in strategy.__doc__

    @every_strategy
    def test_every_argument_of_ours_reaches_the_core(self, strategy):
        own, shared = OWN_OF_SIGNS, OWN
        if strategy in OF_MEDIANS:
            # Clients choose no scale of a noise that the server adds.
            own, shared = OWN_OF_MEDIANS, {**OWN, "scale_from": "server"}
            assert strategy(scale_from="client").core.settings.scale_from == "client"
        core = strategy(**own, **shared).core
        assert core.client_noise == (None if "noise_at" in own else own["noise"])
        own = {name: value for name, value in own.items() if name != "noise_at"}
        assert {name: getattr(core, name) for name in own} == own
        assert {name: getattr(core.settings, name) for name in shared} == shared

    def test_start_shows_the_arguments_of_flowers_start(self):
        for strategy in (SignSGD, MedianSGD):
            shown = inspect.signature(strategy.start).parameters
            for name, flowers in inspect.signature(FedAvg.start).parameters.items():
                assert shown[name].default == flowers.default

    @pytest.mark.parametrize("stored", [False, True], ids=["without", "with a checkpoint"])
    def test_start_passes_on_arguments_that_only_a_newer_flower_knows(
        self, stored, monkeypatch, tmp_path, as_record
    ):
        passed = {}
        flowers = FedAvg.start

        def start(self, grid, initial_arrays, num_rounds=3, *arguments, should_stop=None):
            passed.update(num_rounds=num_rounds, should_stop=should_stop)
            return flowers(self, grid, initial_arrays, 0)

        monkeypatch.setattr(FedAvg, "start", start)
        strategy = SignSGD(checkpoint=Checkpoint(tmp_path) if stored else None)
        strategy.start(None, as_record({"x": np.zeros(2)}), 7, should_stop="when it is enough")
        assert passed == {"num_rounds": 7, "should_stop": "when it is enough"}


OUT_OF_RANGE = {
    "average_decay": (0.0, 1.0, -0.1, 1.1, nan, inf),
    "scale_from": ("above",),
    "min_replies": (0, -1),
    "max_failed_rounds": (0, -1),
    "proximal_mu": (-0.1, nan, inf),
    "seed": (-1,),
}
WRONG_TYPE = {
    "optimizer": (0.9, "adam", Momentum, lambda direction: direction),
    "average_decay": ("0.5", True, [0.5]),
    "client_steps": (Clip(1.0), "clip", None),
    "client_steps[0]": ([1.0], [Clip], [None]),
    "rotation": (True, 256, "rotation", Rotation),
    "scale_from": (None, True),
    "exact": ("*mean", [1], ("*mean", None), 3, None),
    "cohort_rules": (len, None, "one", [1]),
    "diagnostics": (1, None, "on"),
    "min_replies": (1.0, "1", None, True),
    "max_failed_rounds": (1.0, "1", True),
    "proximal_mu": ("0.5", True),
    "checkpoint": ("runs/first", Path("runs/first"), Checkpoint, True),
    "privacy_budget": (8.0, (8.0, 1e-5), True, PrivacyBudget),
    "seed": (1.0, "1", True),
}


def refuses(make, error, name, value):
    """Assert that making something with a value is refused by the argument's name."""
    with pytest.raises(error) as refused:
        make(**{name.partition("[")[0]: value})
    assert str(refused.value).startswith(f"{name} must ")
    return str(refused.value)


class TestSharedArguments:
    """`Settings` checks them; that each strategy passes them on is seen above."""

    @pytest.mark.parametrize("name", OUT_OF_RANGE)
    def test_a_shared_argument_out_of_range_is_refused_by_name_and_value(self, name):
        for value in OUT_OF_RANGE[name]:
            assert repr(value) in refuses(Settings, ValueError, name, value)

    @pytest.mark.parametrize("name", WRONG_TYPE)
    def test_a_shared_argument_of_a_wrong_type_is_refused_by_name(self, name):
        for value in WRONG_TYPE[name]:
            refuses(Settings, TypeError, name, value)

    def test_the_ends_of_each_shared_arguments_range_are_allowed(self):
        assert Settings(seed=0, min_replies=1, exact=(), cohort_rules=()).seed == 0


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

    name: ClassVar[str] = "settings-test"

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

    name: ClassVar[str] = "settings-test"


@pytest.fixture
def registered(monkeypatch):
    """Registers this file's own step and noise family for one test."""
    for registry in (CLIENT_STEPS, NOISE_FAMILIES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    register_client_step(OwnStep)
    register_noise(OwnNoise)


class OwnRule(DecodeRule):
    """A decode rule of this file's own, which cannot know a learning rate."""

    def learning_rate(self, noise):
        return None

    def weights(self, ballot):
        raise NotImplementedError

    def direction(self, votes, ballot, rng):
        raise NotImplementedError


class TestClientSteps:
    @pytest.mark.usefixtures("registered")
    @every_strategy
    def test_a_client_step_of_ones_own_is_taken_once_it_is_registered(self, strategy):
        assert strategy(client_steps=[OwnStep()]).core.settings.client_steps == [OwnStep()]

    def test_a_client_step_that_clients_do_not_know_is_refused_by_name(self):
        message = refuses(Settings, ValueError, "client_steps[1]", [Clip(1.0), UnknownStep()])
        assert "UnknownStep" in message
        assert "register_client_step" in message

    def test_a_second_client_step_of_one_kind_is_refused(self):
        message = refuses(Settings, ValueError, "client_steps[1]", [Clip(1.0), Clip(2.0)])
        assert repr(Clip(2.0)) in message

    @pytest.mark.parametrize(
        "step",
        [Rotation(), Measure("rms"), AddNoise(Gaussian()), Tied(()), Signs(), Vector()],
        ids=repr,
    )
    def test_a_client_step_that_strategies_add_themselves_is_refused(self, step):
        assert repr(step) in refuses(Settings, ValueError, "client_steps[0]", [step])

    @pytest.mark.usefixtures("registered")
    def test_a_client_step_whose_parameters_cannot_travel_is_refused(self):
        with pytest.raises(TypeError, match=r"OwnStep\.parameter"):
            Settings(client_steps=[OwnStep([1, 2])])


class TestNoise:
    @pytest.mark.parametrize("value", [0.1, "gaussian", Gaussian, Adaptive()], ids=str)
    def test_noise_of_a_wrong_type_is_refused_by_name(self, value):
        for strategy in STRATEGIES:
            refuses(strategy, TypeError, "noise", value)

    @pytest.mark.usefixtures("registered")
    def test_a_noise_family_of_ones_own_is_taken_once_it_is_registered(self):
        for strategy in STRATEGIES:
            assert strategy(OwnNoise(0.5)).core.noise == OwnNoise(0.5)

    def test_a_noise_family_that_clients_do_not_know_is_refused_where_they_are_to_add_it(self):
        for strategy in STRATEGIES:
            message = refuses(strategy, ValueError, "noise", UnknownNoise(0.5))
            assert "register_noise" in message
        for strategy in OF_MEDIANS:
            assert strategy(UnknownNoise(0.5), "server").core.client_noise is None

    @pytest.mark.usefixtures("registered")
    def test_a_noise_family_whose_parameters_cannot_travel_is_refused(self):
        for strategy in STRATEGIES:
            with pytest.raises(TypeError, match=r"OwnNoise\.parameter"):
                strategy(OwnNoise(parameter=[1, 2]))

    def test_noise_that_tops_up_is_refused_without_a_rotation_and_by_families_but_gaussian(self):
        for strategy in STRATEGIES:
            with pytest.raises(ValueError, match=r"^rotation must .*TopUp"):
                strategy(Gaussian(TopUp()), rotation=None)
            assert strategy(Gaussian(TopUp())).core.tops_up
        for family in (Laplace, Logistic, Uniform):
            with pytest.raises(ValueError, match=r"^scale must .*TopUp"):
                family(TopUp())

    def test_a_rotation_with_a_seed_is_refused_since_each_round_has_one_of_its_own(self):
        for strategy in STRATEGIES:
            with pytest.raises(ValueError, match=r"^rotation must .*seed=3"):
                strategy(rotation=Rotation(seed=3))

    @pytest.mark.parametrize("scale", [0.5, Theory(rounds=10, dim=5)], ids=repr)
    def test_clients_that_are_to_choose_a_scale_that_is_fixed_are_refused(self, scale):
        for strategy in STRATEGIES:
            with pytest.raises(ValueError, match=r"^scale_from must .*'client'"):
                strategy(Gaussian(scale), scale_from="client")

    def test_clients_that_are_to_choose_the_scale_of_noise_that_they_do_not_add_are_refused(self):
        for strategy in OF_MEDIANS:
            for options in ({"noise": None}, {"noise_at": "server"}, {"estimator": "smoothed"}):
                with pytest.raises(ValueError, match=r"^scale_from must .*'client'"):
                    strategy(**options, scale_from="client")


class TestSignArguments:
    @pytest.mark.parametrize(
        ("name", "values", "error"),
        [
            ("learning_rate", (0.0, -1.0, nan, inf, 0), ValueError),
            ("learning_rate", ("fast", True, [1.0], 1j), TypeError),
            ("decode", ("majority", Majority, 1, None), TypeError),
            ("weighted", (1, None), TypeError),
        ],
        ids=["learning rate out of range", "learning rate", "decode", "weighted"],
    )
    def test_a_bad_value_is_refused_by_name(self, name, values, error):
        for value in values:
            for strategy in OF_SIGNS:
                if (name, value) != ("learning_rate", None):
                    refuses(strategy, error, name, value)

    @pytest.mark.parametrize("rule", [Counts(), Majority(calibrated=True)], ids=repr)
    def test_a_decode_rule_that_needs_noise_is_refused_without(self, rule):
        for strategy in OF_SIGNS:
            with pytest.raises(ValueError, match=r"^noise must ") as refused:
                strategy(None, rule, 0.1)
            assert repr(rule) in str(refused.value)

    @pytest.mark.parametrize("rule", [Majority(), OwnRule()], ids=["majority", "own rule"])
    def test_a_decode_rule_that_cannot_know_its_learning_rate_must_be_given_one(self, rule):
        for strategy in OF_SIGNS:
            with pytest.raises(ValueError, match=r"^learning_rate must ") as refused:
                strategy(decode=rule)
            assert repr(rule) in str(refused.value)
            assert strategy(decode=rule, learning_rate=0.1).core.decode is rule


class TestMedianArguments:
    @pytest.mark.parametrize(
        ("name", "value", "error"),
        [
            ("noise_at", "sea", ValueError),
            ("noise_at", None, TypeError),
            ("estimator", "mean", ValueError),
            ("estimator", None, TypeError),
            ("learning_rate", 0.0, ValueError),
            ("learning_rate", "fast", TypeError),
        ],
    )
    def test_a_bad_value_is_refused_by_name(self, name, value, error):
        for strategy in OF_MEDIANS:
            refuses(strategy, error, name, value)


class TestNoiseWithoutAScale:
    @pytest.mark.parametrize("rotation", [Rotation(), Rotation(8)], ids=repr)
    def test_gaussian_noise_without_a_scale_is_the_default_in_a_random_basis(self, rotation):
        for strategy in STRATEGIES:
            given, left_out = strategy(Gaussian(), rotation=rotation), strategy(rotation=rotation)
            assert given.noise == left_out.noise == Gaussian(TopUp())
            assert given.core.identity == left_out.core.identity
            assert repr(given) == repr(left_out)

    def test_gaussian_noise_without_a_scale_adapts_in_the_parameters_basis(self):
        for strategy in STRATEGIES:
            given = strategy(Gaussian(), rotation=None)
            assert given.noise == Gaussian(Adaptive(3.0))
            assert repr(strategy(given.noise, rotation=None)) == repr(given)

    @pytest.mark.parametrize("family", [Laplace, Logistic, Uniform])
    @pytest.mark.parametrize("rotation", [Rotation(), None], ids=repr)
    def test_noise_that_cannot_top_up_adapts_in_every_basis(self, family, rotation):
        for strategy in STRATEGIES:
            given = strategy(family(), rotation=rotation)
            assert given.noise == family() == family(Adaptive(3.0))

    def test_the_server_adds_the_same_noise_as_clients_would(self):
        for strategy in OF_MEDIANS:
            for options in ({"noise_at": "server"}, {"estimator": "smoothed"}):
                assert strategy(Gaussian(), **options).noise == Gaussian(TopUp())

    def test_a_rule_that_reads_the_noise_reads_the_scale_in_force(self):
        class Reading(OwnRule):
            def learning_rate(self, noise):
                return 0.5 if noise.rule.tops_up else 0.25

        for strategy in OF_SIGNS:
            assert strategy(Gaussian(), Reading()).learning_rate == 0.5
            assert strategy(Gaussian(), Reading(), rotation=None).learning_rate == 0.25
