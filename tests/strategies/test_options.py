"""FedAvg's own arguments: they reach FedAvg, and bad ones are refused by name."""

import inspect
from math import inf, nan

import flwr.server.strategy
import flwr.serverapp.strategy
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.common import Parameters

from fedmedian.clients import InProcessGrid
from fedmedian.strategies import MedianSGD, SignSGD, legacy


def call(*args):
    raise NotImplementedError


MESSAGE_API = {
    "fraction_train": 0.5,
    "fraction_evaluate": 0.25,
    "min_train_nodes": 3,
    "min_evaluate_nodes": 4,
    "min_available_nodes": 5,
    "weighted_by_key": "weight",
    "arrayrecord_key": "model",
    "configrecord_key": "settings",
    "train_metrics_aggr_fn": call,
    "evaluate_metrics_aggr_fn": call,
}
OLDER_API = {
    "fraction_fit": 0.5,
    "fraction_evaluate": 0.25,
    "min_fit_clients": 3,
    "min_evaluate_clients": 4,
    "min_available_clients": 5,
    "evaluate_fn": call,
    "on_fit_config_fn": call,
    "on_evaluate_config_fn": call,
    "accept_failures": False,
    "initial_parameters": Parameters([], "numpy.ndarray"),
    "fit_metrics_aggregation_fn": call,
    "evaluate_metrics_aggregation_fn": call,
}
STRATEGIES = [
    pytest.param(strategy, options, id=f"{api} {strategy.__name__}")
    for api, strategies, options in [
        ("Message API", (SignSGD, MedianSGD), MESSAGE_API),
        ("older API", (legacy.SignSGD, legacy.MedianSGD), OLDER_API),
    ]
    for strategy in strategies
]
every_strategy = pytest.mark.parametrize(("strategy", "options"), STRATEGIES)

FRACTIONS = ((-0.1, 1.1, nan, inf), ("half", None, True))
NUMBERS = ((-1,), (2.0, "2", None, True))
KEYS = (("",), (1, None))


def bad_values_of(name):
    """Values of an option that are out of range, and of a wrong type."""
    if name.startswith("fraction_"):
        return FRACTIONS
    if name.startswith("min_"):
        return NUMBERS
    if name.endswith("_key"):
        return KEYS
    if name == "initial_parameters":
        return (), ([np.zeros(3)], np.zeros(3), "zeros")
    if name == "accept_failures":
        return (), (1, None, "yes")
    return (), (1, "mean", {"epochs": 3})


@every_strategy
def test_every_option_of_fedavg_reaches_fedavg(strategy, options):
    made = strategy(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "fedavg", "but"),
    [
        (MESSAGE_API, flwr.serverapp.strategy.FedAvg, set()),
        # About an aggregation that does not happen here.
        (OLDER_API, flwr.server.strategy.FedAvg, {"inplace"}),
    ],
    ids=["Message API", "older API"],
)
def test_the_options_that_are_tested_are_all_of_fedavgs(options, fedavg, but):
    assert set(options) == set(inspect.signature(fedavg).parameters) - but


@every_strategy
def test_a_bad_option_is_refused_by_name(strategy, options):
    for name in options:
        out_of_range, wrong_type = bad_values_of(name)
        for error, values in ((ValueError, out_of_range), (TypeError, wrong_type)):
            for value in values:
                with pytest.raises(error, match=f"^{name} must "):
                    strategy(**{name: value})


@every_strategy
def test_the_ends_of_each_options_range_are_allowed(strategy, options):
    for name in options:
        if name.startswith("fraction_"):
            strategy(**{name: 0})
            strategy(**{name: 1})
        if name.startswith("min_"):
            strategy(**{name: 0})


@every_strategy
@pytest.mark.parametrize("name", ["momentum", "inplace", "of the other API"])
def test_an_unknown_argument_is_named(strategy, options, name):
    if name == "of the other API":
        name = "fraction_fit" if "fraction_train" in options else "numpy_clients"
    with pytest.raises(TypeError, match=repr(name)):
        strategy(**{name: 0.5})


@pytest.mark.parametrize("strategy", [SignSGD, MedianSGD])
def test_numpy_clients_have_names_of_their_own_for_their_records(strategy):
    for name in ("arrayrecord_key", "configrecord_key", "weighted_by_key"):
        with pytest.raises(ValueError, match=f"^{name} must not .*numpy_clients"):
            strategy(numpy_clients=True, **{name: "mine"})
    for value in (1, None, "all"):
        with pytest.raises(TypeError, match=r"^numpy_clients must "):
            strategy(numpy_clients=value)


@pytest.mark.parametrize("keys", [{"arrayrecord_key": "config"}, {"configrecord_key": "arrays"}])
def test_two_records_cannot_have_one_name(keys):
    with pytest.raises(ValueError, match=r"^configrecord_key must not be arrayrecord_key, got"):
        SignSGD(**keys)


class TestMistakes:
    """What people type out of habit, and what they are answered."""

    @pytest.mark.parametrize(
        ("typed", "answer"),
        [
            ("fraction_fit", "use 'fraction_train', 'fraction_fit' belongs to"),
            ("min_fit_clients", "use 'min_train_nodes', 'min_fit_clients' belongs to"),
            ("min_available_clients", "use 'min_available_nodes'"),
            ("fit_metrics_aggregation_fn", "use 'train_metrics_aggr_fn'"),
            ("initial_parameters", "start(initial_arrays=…); 'initial_parameters' belongs to"),
            ("evaluate_fn", "pass it to start(evaluate_fn=…); 'evaluate_fn' belongs to"),
            ("on_fit_config_fn", "pass it to start(train_config=…)"),
            ("num_rounds", "pass it to start(num_rounds=…)"),
            ("lr", "did you mean learning_rate=?"),
            ("server_learning_rate", "did you mean learning_rate=?"),
            ("server_momentum", "did you mean optimizer=Momentum(…)?"),
            ("noise_multiplier", "did you mean noise=Gaussian(…)?"),
            ("decode", "did you mean aggregator=?"),
            ("estimator", "did you mean aggregator=?"),
            ("fraction_trian", "did you mean 'fraction_train'?"),
            ("rotations", "did you mean 'rotation'?"),
        ],
    )
    @pytest.mark.parametrize("strategy", [SignSGD, MedianSGD])
    def test_the_message_api_answers_with_what_is_meant(self, strategy, typed, answer):
        with pytest.raises(TypeError) as refused:
            strategy(**{typed: 0.5})
        message = str(refused.value)
        assert message.startswith(f"{strategy.__name__}() has no argument {typed!r}")
        assert answer in message
        if "belongs to" in answer:
            assert message.endswith(f"belongs to fedmedian.strategies.legacy.{strategy.__name__}")

    @pytest.mark.parametrize(
        ("typed", "answer"),
        [
            ("fraction_train", "use 'fraction_fit', 'fraction_train' belongs to"),
            ("min_train_nodes", "use 'min_fit_clients', 'min_train_nodes' belongs to"),
            ("lr", "did you mean learning_rate=?"),
            ("min_fit_client", "did you mean 'min_fit_clients'?"),
            ("num_rounds", "pass it to ServerConfig(num_rounds=…)"),
            ("train_config", "use 'on_fit_config_fn'"),
            ("numpy_clients", "clients of the older API are NumPyClients"),
            ("inplace", "leave it out"),
        ],
    )
    @pytest.mark.parametrize("strategy", [legacy.SignSGD, legacy.MedianSGD])
    def test_the_older_api_answers_with_what_is_meant(self, strategy, typed, answer):
        with pytest.raises(TypeError) as refused:
            strategy(**{typed: 0.5})
        assert answer in str(refused.value)
        if "belongs to" in answer:
            owner = f"fedmedian.strategies.{strategy.__name__}"
            assert str(refused.value).endswith(f"belongs to {owner}")

    @pytest.mark.parametrize(
        ("strategy", "typed", "owner"),
        [(MedianSGD, "weighted", "SignSGD"), (SignSGD, "noise_at", "MedianSGD")],
    )
    def test_arguments_of_the_other_strategy_are_said_to_be_its(self, strategy, typed, owner):
        with pytest.raises(TypeError, match=f"has no argument '{typed}': it belongs to {owner}"):
            strategy(**{typed: 0.5})

    def test_a_class_of_the_users_is_named_and_hinted_at_like_ours(self):
        class Mine(SignSGD):
            pass

        with pytest.raises(TypeError, match=r"^Mine\(\) has no argument 'fraction_fit'.*SignSGD$"):
            Mine(fraction_fit=0.5)

    def test_what_nobody_can_have_meant_has_no_hint(self):
        with pytest.raises(TypeError, match=r"^SignSGD\(\) has no argument 'xyzzy'$"):
            SignSGD(xyzzy=1)

    @pytest.mark.parametrize("name", ["train_config", "evaluate_config"])
    def test_a_config_cannot_have_keys_of_ours(self, name):
        grid, model = InProcessGrid(ClientApp(), 2), ArrayRecord({"0": Array(np.zeros(3))})
        config = {name: ConfigRecord({"lr": 0.1, "fedmedian.noise": 0.1})}
        with pytest.raises(ValueError, match=rf"^{name} must not have keys .*'fedmedian.noise'"):
            SignSGD().start(grid, model, **config)

    @pytest.mark.parametrize(
        ("name", "value", "wanted"),
        [
            ("train_config", "lr=0.1", "a ConfigRecord, or None, got 'lr=0.1' (str)"),
            ("evaluate_config", 0.1, "a ConfigRecord, or None, got 0.1 (float)"),
            ("evaluate_fn", {"accuracy": 0.5}, "a callable or None, got {'accuracy': 0.5}"),
        ],
        ids=["a text", "a number", "metrics"],
    )
    def test_a_config_or_an_evaluate_fn_of_another_type_is_refused(self, name, value, wanted):
        grid, model = InProcessGrid(ClientApp(), 2), ArrayRecord({"0": Array(np.zeros(3))})
        with pytest.raises(TypeError) as refused:
            SignSGD().start(grid, model, **{name: value})
        assert str(refused.value) == f"{name} must be {wanted}"

    def test_an_evaluate_fn_that_returns_no_metrics_is_refused_before_training(self):
        app = ClientApp()
        grid, model = InProcessGrid(app, 2), ArrayRecord({"0": Array(np.zeros(3))})
        with pytest.raises(TypeError, match=r"^what evaluate_fn returns must be a mapping .* 0\.5"):
            SignSGD().start(grid, model, evaluate_fn=lambda server_round, arrays: 0.5)

    @pytest.mark.parametrize(
        "arrays", [[np.zeros(3)], {"x": np.zeros(3)}, None], ids=["a list", "a dict", "None"]
    )
    def test_a_run_cannot_start_with_anything_but_an_array_record(self, arrays):
        with pytest.raises(TypeError, match=r"^initial_arrays must be an ArrayRecord, such as"):
            SignSGD().start(None, arrays)
