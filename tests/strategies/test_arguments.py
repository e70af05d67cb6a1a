"""What a strategy shows of its arguments and passes on, and what a Result shows of a run."""

import inspect
import pickle
import pydoc
from dataclasses import fields

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from flwr.serverapp.strategy import FedAvg, Result

from fedmedian import (
    Adam,
    Adaptive,
    ClientMomentum,
    Clip,
    CodedSteps,
    Counts,
    DivideByLearningRate,
    Gaussian,
    Majority,
    Median,
    Momentum,
    Rotation,
    SmoothedMedian,
)
from fedmedian.clients import InProcessGrid
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.recipe import Recipe
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD, legacy

STRATEGIES = (SignSGD, MedianSGD, legacy.SignSGD, legacy.MedianSGD)
OF_SIGNS, OF_MEDIANS = STRATEGIES[::2], STRATEGIES[1::2]
every_strategy = pytest.mark.parametrize(
    "strategy", STRATEGIES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}"
)
GIVEN = {
    "noise": Gaussian(0.5),
    "learning_rate": 0.25,
    "optimizer": Momentum(0.5),
    "client_steps": [Clip(2.0)],
    "exact": ["mask"],
    "min_replies": 2,
    "max_failed_rounds": None,
    "seed": 3,
}
ALL = {
    "optimizer": Adam(),
    "client_steps": [DivideByLearningRate(0.1), ClientMomentum(0.9), Clip(1e-30)],
    "rotation": Rotation(smallest=9),
    "scale_from": "client",
    "exact": ["*mean"],
    "downlink": CodedSteps(),
    "cohort_rules": [lambda cohort: {}],
    "diagnostics": False,
    "min_replies": 3,
    "max_failed_rounds": None,
    "threads": 2,
    "checkpoint": Checkpoint("runs/first"),
    "privacy_budget": None,  # it forbids the others; see test_budget.py
    "seed": 2**200,
}
ALL_OF_SIGNS = {
    "noise": Gaussian(Adaptive(0.5)),
    "aggregator": Majority("unchanged", calibrated=True),
    "learning_rate": 0.25,
    "weighted": False,
    "secure": None,  # it forbids others; see test_secure_sums.py
}
ALL_OF_MEDIANS = {
    "noise": Gaussian(Adaptive(0.5)),
    "aggregator": SmoothedMedian(),
    "learning_rate": 0.25,
    "noise_at": "server",
    "scale_from": "server",  # clients choose no scale of a noise that they do not add
}
GIVEN_TO_FLOWER = {"fraction_evaluate": 0.5, "min_available_nodes": 3}
GIVEN_TO_OLDER_FLOWER = {"fraction_evaluate": 0.5, "min_available_clients": 3}


def is_older(strategy):
    return strategy.__module__ == legacy.__name__


def own_arguments(strategy):
    own = [name for name in inspect.signature(strategy).parameters if name != "flower"]
    return own if is_older(strategy) else [*own, "numpy_clients"]


def all_of(strategy):
    """Return a value for each argument but Flower's."""
    return ALL | (ALL_OF_SIGNS if strategy in OF_SIGNS else ALL_OF_MEDIANS)


def flowers(strategy):
    return GIVEN_TO_OLDER_FLOWER if is_older(strategy) else GIVEN_TO_FLOWER


class TestAttributes:
    @every_strategy
    def test_each_argument_can_be_read_by_its_name(self, strategy):
        made = strategy(**GIVEN)
        assert {name: getattr(made, name) for name in GIVEN} == GIVEN
        assert {*own_arguments(strategy)} == {*made.arguments}
        for name in own_arguments(strategy):
            assert getattr(made, name) == made.arguments[name]

    @every_strategy
    def test_what_is_read_of_an_argument_that_was_left_out_is_what_is_in_force(self, strategy):
        assert strategy().learning_rate == 1.0
        assert strategy(optimizer=Adam()).learning_rate == 0.01

    @every_strategy
    def test_no_argument_can_be_set_and_the_error_says_what_to_do(self, strategy):
        made = strategy()
        for name in own_arguments(strategy):
            before = getattr(made, name)
            with pytest.raises(AttributeError, match=rf"^{name} .*{strategy.__name__}\({name}=…\)"):
                setattr(made, name, object())
            assert getattr(made, name) == before

    @every_strategy
    def test_flowers_arguments_which_it_reads_each_round_can_be_set(self, strategy):
        made = strategy()
        for name, value in flowers(strategy).items():
            setattr(made, name, value)
            assert getattr(made, name) == value

    @every_strategy
    def test_a_subclass_adds_attributes_and_keeps_what_it_has_passed_on(self, strategy):
        class Own(strategy):
            def __init__(self, seed):
                super().__init__(seed=seed)
                self.seed = seed
                self.history = []

        assert (Own(5).seed, Own(5).history) == (5, [])

    @every_strategy
    @pytest.mark.parametrize("name", ["recipe", "options"])
    @pytest.mark.parametrize("is_early", [True, False], ids=["before", "after"])
    def test_an_attribute_of_the_strategys_own_is_refused_whenever_it_is_set(
        self, strategy, name, is_early
    ):
        class Own(strategy):
            def __init__(self):
                if is_early:
                    setattr(self, name, {"lr": 0.1})
                super().__init__()
                setattr(self, name, {"lr": 0.1})

        with pytest.raises(AttributeError, match=rf"^{name} cannot be set.*another name"):
            Own()

    @every_strategy
    def test_it_may_be_built_again_as_where_two_bases_call_init(self, strategy):
        class One(strategy):
            def __init__(self, seed):
                strategy.__init__(self, seed=seed)

        class Other(strategy):
            def __init__(self, seed):
                strategy.__init__(self, seed=seed + 1)

        class Both(One, Other):
            def __init__(self, seed):
                One.__init__(self, seed)
                Other.__init__(self, seed)

        made = Both(5)
        assert (made.seed, made.recipe.seed) == (6, 6)

    @every_strategy
    def test_one_that_a_subclass_sets_too_early_is_refused_with_the_order(self, strategy):
        class Own(strategy):
            def __init__(self, seed):
                self.seed = seed
                super().__init__(seed=seed)

        with pytest.raises(AttributeError, match=r"^seed .*super\(\).__init__\(seed=…\) first"):
            Own(5)

    @every_strategy
    def test_a_class_in_an_instances_place_is_named_with_how_to_make_one(self, strategy):
        for name, value, example in (
            ("noise", Gaussian, "Gaussian()"),
            ("aggregator", SmoothedMedian, "SmoothedMedian()"),
            ("optimizer", Momentum, "Momentum()"),
            ("client_steps", [Clip], "Clip(…)"),
            ("checkpoint", Checkpoint, "Checkpoint(…)"),
        ):
            with pytest.raises(TypeError, match=f"^{name}") as refused:
                strategy(**{name: value})
            assert str(refused.value).endswith(f"an instance, such as {example}")

    @every_strategy
    def test_a_subclass_may_have_a_class_attribute_or_a_property_of_an_arguments_name(
        self, strategy
    ):
        class Own(strategy):
            checkpoint = "best.pt"

            @property
            def seed(self):
                return 7

        assert (Own().checkpoint, Own().seed) == ("best.pt", 7)
        assert repr(Own(min_replies=2)) == "Own(min_replies=2)"


class TestShownAndPassedOn:
    @every_strategy
    def test_every_argument_of_ours_stands_in_the_signature_with_its_default(self, strategy):
        own = all_of(strategy)
        shown = inspect.signature(strategy).parameters
        assert {*shown} - {"flower"} == {*own}
        assert all(shown[name].default is not inspect.Parameter.empty for name in own)
        for field in (*fields(Recipe), *fields(RunOptions)):
            if field.name in ALL:
                assert shown[field.name].default == field.default
                assert shown[field.name].kind is inspect.Parameter.KEYWORD_ONLY

    @every_strategy
    def test_help_shows_and_describes_every_argument_of_ours(self, strategy):
        text = pydoc.render_doc(strategy, renderer=pydoc.plaintext)
        for name, parameter in inspect.signature(strategy).parameters.items():
            if name != "flower":
                assert str(parameter) in text  # its name, type and default
                assert name in strategy.__doc__

    @every_strategy
    def test_every_argument_of_ours_reaches_the_recipe_or_the_options(self, strategy):
        made, given = strategy(**all_of(strategy)), all_of(strategy)
        in_force = {**vars(made.recipe), **vars(made.options)}
        assert {name: in_force[name] for name in given} == given
        assert strategy(scale_from="client").recipe.scale_from == "client"
        rest = {name: value for name, value in in_force.items() if name not in given}
        of_median = {"weighted": False, "secure": None}
        assert rest == ({"noise_at": "client"} if strategy in OF_SIGNS else of_median)

    @pytest.mark.parametrize(("strategies", "rule"), [(OF_SIGNS, Median()), (OF_MEDIANS, Counts())])
    def test_a_rule_for_the_other_strategy_is_refused_with_its_name(self, strategies, rule):
        for strategy in strategies:
            other = "SignSGD" if strategy in OF_MEDIANS else "MedianSGD"
            with pytest.raises(ValueError, match=rf"^aggregator must .*{other} is for") as refused:
                strategy(aggregator=rule)
            assert repr(rule) in str(refused.value)

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


class TestRepr:
    @every_strategy
    def test_a_strategy_shows_no_argument_that_was_left_out(self, strategy):
        assert repr(strategy()) == f"{strategy.__name__}()"

    @every_strategy
    def test_noise_without_a_scale_is_shown_with_the_one_in_force(self, strategy):
        assert repr(strategy(Gaussian())) == f"{strategy.__name__}()"
        in_place = strategy(Gaussian(), rotation=None)
        assert in_place.noise == Gaussian(Adaptive(3.0))
        assert repr(strategy(in_place.noise, rotation=None)) == repr(in_place)

    @every_strategy
    def test_a_strategy_shows_each_argument_that_is_not_the_default(self, strategy):
        text = repr(strategy(**GIVEN, **flowers(strategy)))
        assert text.startswith(f"{strategy.__name__}(")
        for name, value in (GIVEN | flowers(strategy)).items():
            assert f"{name}={value!r}" in text

    @every_strategy
    def test_evaluating_a_repr_makes_the_same_strategy(self, strategy):
        made = strategy(**(GIVEN | {"client_steps": (), **flowers(strategy)}))
        names = {"Gaussian": Gaussian, "Momentum": Momentum, strategy.__name__: strategy}
        again = eval(repr(made), names)
        assert again.arguments == made.arguments
        assert repr(again) == repr(made)

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_what_flower_has_set_by_itself_is_not_shown(self, strategy):
        made = strategy(fraction_evaluate=0.0)
        assert repr(made) == f"{strategy.__name__}(fraction_evaluate=0.0)"

    def test_arguments_that_only_one_strategy_has_are_shown(self):
        majority = Majority(calibrated=True)
        for sign, median in (STRATEGIES[:2], STRATEGIES[2:]):
            assert repr(sign(aggregator=majority, weighted=False)) == (
                f"SignSGD(aggregator={majority!r}, weighted=False)"
            )
            assert repr(median(noise_at="server", aggregator=SmoothedMedian())) == (
                "MedianSGD(aggregator=SmoothedMedian(), noise_at='server')"
            )

    @pytest.mark.parametrize("strategy", [SignSGD, MedianSGD])
    def test_records_of_numpy_clients_are_not_shown_as_if_they_had_been_given(self, strategy):
        text = f"{strategy.__name__}(numpy_clients=True)"
        assert repr(strategy(numpy_clients=True)) == text

    @pytest.mark.parametrize("strategy", STRATEGIES[2:])
    def test_a_model_among_the_arguments_is_not_printed(self, strategy):
        model = ndarrays_to_parameters([np.zeros(100_000)])
        made = strategy(initial_parameters=model)
        assert repr(made) == f"{strategy.__name__}(initial_parameters=Parameters(…))"

    @every_strategy
    def test_a_repr_is_one_line_and_no_value_in_it_is_long(self, strategy):
        text = repr(strategy(exact=[f"layer\n{i}" for i in range(10_000)]))
        assert len(text) < 500
        assert "\n" not in text

    @every_strategy
    def test_a_repr_survives_a_trip_between_processes(self, strategy):
        made = strategy(**GIVEN, **flowers(strategy))
        assert repr(pickle.loads(pickle.dumps(made))) == repr(made)


class TestResult:
    @pytest.fixture
    def result_of(self, make_app, as_record):
        def train(model, partition):
            trained = {name: array + np.float32(partition) for name, array in model.items()}
            return trained, {"num-examples": 1, "loss": 0.5}

        def result_of(strategy):
            model = {f"layer{i}.weight": np.zeros((20, 20), np.float32) for i in range(40)}
            return strategy.start(InProcessGrid(make_app(train), 3), as_record(model), 3)

        return result_of

    def test_a_result_of_numbers_alone_prints_as_flowers_does(self, result_of):
        result = result_of(MedianSGD(None, fraction_evaluate=0.0, seed=1))
        assert repr(result) == repr(Result(**vars(result)))

    def test_what_a_round_reports_of_each_block_is_kept_and_not_printed(self, result_of):
        result = result_of(SignSGD(fraction_evaluate=0.0, seed=1))
        assert len(result.train_metrics_clientapp[3]["noise-scale"]) == 40
        text = repr(result)
        assert "noise-scale" not in text
        assert "'loss': '5.0000e-01'" in text
        assert len(text) < 3000
