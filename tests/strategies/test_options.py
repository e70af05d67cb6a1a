"""Bad arguments are refused at once, by name."""

from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from flwr.common import Parameters

from fedmedian import Adaptive, Gaussian, Momentum
from fedmedian.strategies import Checkpoint, MedianSGD, SignSGD, legacy

MESSAGE_API = (SignSGD, MedianSGD)
OLDER_API = (legacy.SignSGD, legacy.MedianSGD)
STRATEGIES = (*MESSAGE_API, *OLDER_API)

OUT_OF_RANGE = {
    "learning_rate": (0.0, -1.0, nan, inf, 0),
    "clip": (0.0, -1.0, nan, inf),
    "average": (0.0, 1.0, -0.1, 1.1, nan, inf),
    "client_learning_rate": (0.0, -1.0, nan, inf),
    "client_momentum": (-0.1, 1.0, 1.1, nan, inf),
    "noise_from": ("above",),
    "min_replies": (0, -1),
    "seed": (-1,),
    "fraction_evaluate": (-0.1, 1.1, inf),
}

OUT_OF_RANGE_IN_MESSAGE_API = {
    "fraction_train": (-0.1, 1.1, nan),
    "min_train_nodes": (-1,),
    "min_evaluate_nodes": (-1,),
    "min_available_nodes": (-1,),
    "weighted_by_key": ("",),
    "arrayrecord_key": ("",),
    "configrecord_key": ("",),
}

OUT_OF_RANGE_IN_OLDER_API = {
    "fraction_fit": (-0.1, 1.1, nan),
    "min_fit_clients": (-1,),
    "min_evaluate_clients": (-1,),
    "min_available_clients": (-1,),
}

WRONG_TYPE = {
    "noise": (0.1, "gaussian", Gaussian, Adaptive()),
    "learning_rate": ("fast", True, [1.0], 1j),
    "clip": ("1", True, [1.0]),
    "optimizer": (0.9, "adam", Momentum, lambda direction: direction),
    "average": ("0.5", True, [0.5]),
    "client_learning_rate": ("0.1", True, None),
    "client_momentum": ("0.9", True, None),
    "noise_from": (None, True),
    "diagnostics": (1, None, "on"),
    "dense": ("*mean", [1], ("*mean", None), 3, None),
    "min_replies": (1.0, "1", None, True),
    "checkpoint": ("runs/first", Path("runs/first"), Checkpoint, True),
    "seed": (1.0, "1", True),
    "fraction_evaluate": ("half", None),
}

WRONG_TYPE_IN_MESSAGE_API = {
    "fraction_train": ("half", None, True),
    "min_train_nodes": (2.0, "2", None, True),
    "min_evaluate_nodes": (2.0, None),
    "min_available_nodes": (2.0, None),
    "weighted_by_key": (1, None),
    "arrayrecord_key": (1, None),
    "configrecord_key": (1, None),
    "train_metrics_aggr_fn": (1, "mean"),
    "evaluate_metrics_aggr_fn": (1, "mean"),
    "numpy_clients": (1, None, "all"),
}

WRONG_TYPE_IN_OLDER_API = {
    "fraction_fit": ("half", None, True),
    "min_fit_clients": (2.0, "2", None, True),
    "min_evaluate_clients": (2.0, None),
    "min_available_clients": (2.0, None),
    "evaluate_fn": (1, "accuracy"),
    "on_fit_config_fn": (1, {"epochs": 3}),
    "on_evaluate_config_fn": (1, {"epochs": 3}),
    "accept_failures": (1, None, "yes"),
    "initial_parameters": ([np.zeros(3)], np.zeros(3), "zeros"),
    "fit_metrics_aggregation_fn": (1, "mean"),
    "evaluate_metrics_aggregation_fn": (1, "mean"),
}


def each(bad, bad_in_message_api, bad_in_older_api, *more):
    values = [
        (strategy, name, value)
        for strategies, arguments in (
            (STRATEGIES, bad),
            (MESSAGE_API, bad_in_message_api),
            (OLDER_API, bad_in_older_api),
        )
        for strategy in strategies
        for name, values in arguments.items()
        for value in values
    ]
    return pytest.mark.parametrize(("strategy", "name", "value"), [*values, *more])


@each(
    OUT_OF_RANGE,
    OUT_OF_RANGE_IN_MESSAGE_API,
    OUT_OF_RANGE_IN_OLDER_API,
    (SignSGD, "decode", "average"),
    (SignSGD, "ties", "heads"),
    (MedianSGD, "noise_at", "sea"),
    (MedianSGD, "estimator", "mean"),
)
def test_a_value_out_of_range_is_named(strategy, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*, got {value!r}"):
        strategy(**{name: value})


@each(
    WRONG_TYPE,
    WRONG_TYPE_IN_MESSAGE_API,
    WRONG_TYPE_IN_OLDER_API,
    (SignSGD, "decode", 1),
    (SignSGD, "decode", None),
    (SignSGD, "ties", True),
    (SignSGD, "weighted", 1),
    (SignSGD, "weighted", None),
    (SignSGD, "calibrated", 1),
    (SignSGD, "calibrated", None),
    (MedianSGD, "noise_at", None),
    (MedianSGD, "estimator", None),
)
def test_a_value_of_a_wrong_type_is_named(strategy, name, value):
    with pytest.raises(TypeError, match=rf"^{name} must "):
        strategy(**{name: value})


@pytest.mark.parametrize(
    ("strategies", "name"),
    [
        (STRATEGIES, "momentum"),
        (MESSAGE_API, "fraction_fit"),
        (OLDER_API, "fraction_train"),
        (OLDER_API, "numpy_clients"),
        (OLDER_API, "inplace"),  # FedAvg's, about an aggregation that does not happen
    ],
)
def test_an_unknown_argument_is_named(strategies, name):
    for strategy in strategies:
        with pytest.raises(TypeError, match=f"unknown argument '{name}'"):
            strategy(**{name: 0.5})


@pytest.mark.parametrize("strategy", MESSAGE_API)
@pytest.mark.parametrize("name", ["arrayrecord_key", "configrecord_key", "weighted_by_key"])
def test_what_numpy_clients_call_their_records_is_not_for_the_caller_to_say(strategy, name):
    with pytest.raises(ValueError, match=f"^{name} must not be given with numpy_clients=True"):
        strategy(numpy_clients=True, **{name: "mine"})


def test_counts_cannot_do_without_noise():
    with pytest.raises(ValueError, match="noise must not be None with decode='counts'"):
        SignSGD(noise=None)


def test_a_calibrated_majority_cannot_do_without_noise():
    with pytest.raises(ValueError, match=r"noise must not be None with .*calibrated=True"):
        SignSGD(None, "majority", 0.1, calibrated=True)


def test_counts_are_calibrated_as_they_are():
    with pytest.raises(ValueError, match="calibrated must be False with decode='counts'"):
        SignSGD(calibrated=True)


def test_a_majority_vote_wants_a_learning_rate():
    with pytest.raises(ValueError, match="learning_rate must be given with decode='majority'"):
        SignSGD(decode="majority")


@pytest.mark.parametrize(
    ("strategies", "options"),
    [
        (
            (SignSGD, legacy.SignSGD),
            {
                "noise": Gaussian(0.5),
                "decode": "majority",
                "learning_rate": 0.25,
                "calibrated": True,
                "weighted": False,
                "ties": "unchanged",
            },
        ),
        (
            (MedianSGD, legacy.MedianSGD),
            {"noise": Gaussian(0.5), "learning_rate": 0.25, "estimator": "smoothed"},
        ),
    ],
)
def test_its_own_arguments_reach_the_core(strategies, options):
    for strategy in strategies:
        core = strategy(**options).core
        assert {name: getattr(core, name) for name in options} == options


@pytest.mark.parametrize("strategy", MESSAGE_API)
def test_fedavgs_own_arguments_reach_fedavg(strategy):
    def aggregate(contents, key):
        raise NotImplementedError

    options = {
        "fraction_train": 0.5,
        "fraction_evaluate": 0.25,
        "min_train_nodes": 3,
        "min_evaluate_nodes": 4,
        "min_available_nodes": 5,
        "weighted_by_key": "weight",
        "arrayrecord_key": "model",
        "configrecord_key": "settings",
        "train_metrics_aggr_fn": aggregate,
        "evaluate_metrics_aggr_fn": aggregate,
    }
    made = strategy(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize("strategy", OLDER_API)
def test_older_fedavgs_own_arguments_reach_older_fedavg(strategy):
    def call(*args):
        raise NotImplementedError

    options = {
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
    made = strategy(**options)
    assert {name: getattr(made, name) for name in options} == options


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ends_of_each_range_are_allowed(strategy):
    strategy(fraction_evaluate=1, seed=0, clip=1e-30, min_replies=1)
    strategy(fraction_evaluate=0, dense=(), seed=2**200, learning_rate=1)


def test_so_are_those_of_each_apis_own():
    for strategy in MESSAGE_API:
        strategy(fraction_train=0, min_train_nodes=0)
        strategy(fraction_train=1)
    for strategy in OLDER_API:
        strategy(fraction_fit=0, min_fit_clients=0)
        strategy(fraction_fit=1)
