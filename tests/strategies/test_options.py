"""Bad arguments are refused at once, by name."""

from math import inf, nan

import pytest

from fedmedian import Adaptive, Gaussian, Momentum
from fedmedian.strategies import MedianSGD, SignSGD

STRATEGIES = (SignSGD, MedianSGD)

OUT_OF_RANGE = {
    "learning_rate": (0.0, -1.0, nan, inf, 0),
    "clip": (0.0, -1.0, nan, inf),
    "average": (0.0, 1.0, -0.1, 1.1, nan, inf),
    "client_learning_rate": (0.0, -1.0, nan, inf),
    "client_momentum": (-0.1, 1.0, 1.1, nan, inf),
    "noise_from": ("above",),
    "seed": (-1,),
    "fraction_train": (-0.1, 1.1, nan),
    "fraction_evaluate": (-0.1, 1.1, inf),
    "min_train_nodes": (-1,),
    "min_evaluate_nodes": (-1,),
    "min_available_nodes": (-1,),
    "weighted_by_key": ("",),
    "arrayrecord_key": ("",),
    "configrecord_key": ("",),
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
    "seed": (1.0, "1", True),
    "fraction_train": ("half", None, True),
    "fraction_evaluate": ("half", None),
    "min_train_nodes": (2.0, "2", None, True),
    "min_evaluate_nodes": (2.0, None),
    "min_available_nodes": (2.0, None),
    "weighted_by_key": (1, None),
    "arrayrecord_key": (1, None),
    "configrecord_key": (1, None),
    "train_metrics_aggr_fn": (1, "mean"),
    "evaluate_metrics_aggr_fn": (1, "mean"),
}


def each(bad, *more):
    values = [
        (strategy, name, value)
        for strategy in STRATEGIES
        for name, values in bad.items()
        for value in values
    ]
    return pytest.mark.parametrize(("strategy", "name", "value"), [*values, *more])


@each(
    OUT_OF_RANGE,
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_unknown_argument_is_named(strategy):
    with pytest.raises(TypeError, match="unknown argument 'fraction_fit'"):
        strategy(fraction_fit=0.5)


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


@pytest.mark.parametrize("strategy", STRATEGIES)
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_ends_of_each_range_are_allowed(strategy):
    strategy(fraction_train=0, fraction_evaluate=1, seed=0, min_train_nodes=0, clip=1e-30)
    strategy(fraction_train=1, fraction_evaluate=0, dense=(), seed=2**200, learning_rate=1)
