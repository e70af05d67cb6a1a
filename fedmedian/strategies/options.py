"""The arguments of FedAvg, which strategies accept in addition to their own."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypedDict

from flwr.app import MetricRecord, RecordDict
from flwr.common import MetricsAggregationFn, NDArrays, Parameters, Scalar

from fedmedian.checks import require_integer, require_real, require_type

MetricsAggregator = Callable[[list[RecordDict], str], MetricRecord]
Evaluation = tuple[float, dict[str, Scalar]]


class FedAvgOptions(TypedDict, total=False):
    """The keyword arguments of `flwr.serverapp.strategy.FedAvg`, and `numpy_clients`."""

    numpy_clients: bool
    fraction_train: float
    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str
    train_metrics_aggr_fn: MetricsAggregator | None
    evaluate_metrics_aggr_fn: MetricsAggregator | None


class LegacyFedAvgOptions(TypedDict, total=False):
    """The keyword arguments of `flwr.server.strategy.FedAvg` except `inplace`."""

    fraction_fit: float
    fraction_evaluate: float
    min_fit_clients: int
    min_evaluate_clients: int
    min_available_clients: int
    evaluate_fn: Callable[[int, NDArrays, dict[str, Scalar]], Evaluation | None] | None
    on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None
    on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None
    accept_failures: bool
    initial_parameters: Parameters | None
    fit_metrics_aggregation_fn: MetricsAggregationFn | None
    evaluate_metrics_aggregation_fn: MetricsAggregationFn | None


class FlowerOptions(FedAvgOptions, LegacyFedAvgOptions, total=False):
    """The keyword arguments of both of Flower's APIs; a strategy accepts those of its own API."""


OLDER_NAMES = {
    "fraction_train": "fraction_fit",
    "min_train_nodes": "min_fit_clients",
    "min_evaluate_nodes": "min_evaluate_clients",
    "min_available_nodes": "min_available_clients",
    "train_metrics_aggr_fn": "fit_metrics_aggregation_fn",
    "evaluate_metrics_aggr_fn": "evaluate_metrics_aggregation_fn",
}
"""Arguments of Message API strategies, and their names in the older API."""

_OF_START = {
    "initial_parameters": "initial_arrays",
    "initial_arrays": "initial_arrays",
    "evaluate_fn": "evaluate_fn",
    "on_fit_config_fn": "train_config",
    "on_evaluate_config_fn": "evaluate_config",
    "num_rounds": "num_rounds",
    "timeout": "timeout",
    "train_config": "train_config",
    "evaluate_config": "evaluate_config",
}
"""Arguments that the Message API passes to ``start``, and their names there."""

_OF_OLDER_START = {
    "num_rounds": ": pass it to ServerConfig(num_rounds=…)",
    "timeout": ": pass it to ServerConfig(round_timeout=…)",
    "initial_arrays": ": use 'initial_parameters'",
    "train_config": ": use 'on_fit_config_fn'",
    "evaluate_config": ": use 'on_evaluate_config_fn'",
}
"""What the older API has in place of arguments of the Message API's ``start``."""

_OF_ONE = {
    "secure": ": secure sums are of votes, use fedmedian.strategies.SignSGD",
    "weighted": ": it belongs to SignSGD",
    "noise_at": ": it belongs to MedianSGD, votes need the clients' noise",
    "numpy_clients": ": clients of the older API are NumPyClients",
    "inplace": ": leave it out, it is about how FedAvg adds up",
    "proximal_mu": ": FedProx's term is part of the clients' loss; send its weight in their config",
}
"""Arguments that only some strategies have."""

_SYNONYMS = {
    **dict.fromkeys(
        ("lr", "eta", "server_lr", "server_learning_rate", "step_size"), "learning_rate="
    ),
    **dict.fromkeys(("momentum", "server_momentum"), "optimizer=Momentum(…)"),
    **dict.fromkeys(("beta_1", "beta_2", "tau"), "optimizer=Adam(…)"),
    **dict.fromkeys(("noise_scale", "noise_multiplier", "sigma", "scale"), "noise=Gaussian(…)"),
    **dict.fromkeys(("clip", "clipping_norm"), "client_steps=[Clip(…)]"),
    **dict.fromkeys(("decode", "estimator"), "aggregator="),
    **dict.fromkeys(("epsilon", "delta", "budget"), "privacy_budget=PrivacyBudget(…)"),
}
"""Common names of arguments that have a different name here."""


def require_fedavg_options(
    strategy: type, options: Mapping[str, Any], allowed: frozenset[str]
) -> None:
    """Raise unless all options are valid arguments of FedAvg.

    Parameters
    ----------
    strategy : type
        The strategy made with them: `SignSGD`, `MedianSGD` or a custom class.
    options : mapping
        The options.
    allowed : frozenset of str
        The names of FedAvg's arguments.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, has the wrong type or is out of range. For an unknown option the
        message suggests a known one.
    """
    if unknown := sorted(set(options) - allowed):
        name, hint = unknown[0], _hint(strategy, unknown[0], allowed)
        raise TypeError(f"{strategy.__name__}() has no argument {name!r}{hint}")
    for name, value in options.items():
        _require_fedavg_option(name, value)
    config = options.get("configrecord_key", "config")
    if config == options.get("arrayrecord_key", "arrays") and not options.get("numpy_clients"):
        raise ValueError(f"configrecord_key must not be arrayrecord_key, got {config!r} for both")


def _hint(strategy: type, name: str, allowed: frozenset[str]) -> str:
    """Return a suggestion for an unknown argument."""
    ours = next(one for one in strategy.__mro__ if one.__module__.startswith("fedmedian."))
    older = "fraction_fit" in allowed
    other = "fedmedian.strategies" if older else "fedmedian.strategies.legacy"
    words = OLDER_NAMES if older else {old: new for new, old in OLDER_NAMES.items()}
    if name in words:
        return f": use {words[name]!r}, {name!r} belongs to {other}.{ours.__name__}"
    if not older and name in _OF_START:
        theirs = name in LegacyFedAvgOptions.__optional_keys__
        owner = f"; {name!r} belongs to {other}.{ours.__name__}" if theirs else ""
        return f": pass it to start({_OF_START[name]}=…){owner}"
    if older and name in _OF_OLDER_START:
        return _OF_OLDER_START[name]
    if name in _OF_ONE:
        return _OF_ONE[name]
    if name in _SYNONYMS:
        return f", did you mean {_SYNONYMS[name]}?"
    known = [*inspect.signature(ours).parameters, *allowed]
    close = get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _require_fedavg_option(name: str, value: Any) -> None:
    if name.startswith("fraction_"):
        require_real(name, value, low=0.0, high=1.0)
    elif name.startswith("min_"):
        require_integer(name, value, low=0)
    elif name.endswith("_key"):
        require_type(name, value, str, "a string")
        if not value:
            raise ValueError(f"{name} must not be empty, got {value!r}")
    elif name in ("accept_failures", "numpy_clients"):
        require_type(name, value, bool, "a bool")
    elif name == "initial_parameters":
        require_type(name, value, Parameters | None, "a flwr.common.Parameters, or None")
    elif value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable or None, got {value!r}")
