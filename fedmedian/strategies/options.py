"""FedAvg's own arguments, which the strategies take besides theirs."""

from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, TypedDict

from flwr.app import MetricRecord, RecordDict
from flwr.common import MetricsAggregationFn, NDArrays, Parameters, Scalar

from fedmedian.checks import require_integer, require_real, require_type

MetricsAggregator = Callable[[list[RecordDict], str], MetricRecord]
Evaluation = tuple[float, dict[str, Scalar]]


class FedAvgOptions(TypedDict, total=False):
    """The keyword arguments of `flwr.serverapp.strategy.FedAvg`; see there for each."""

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
    """The keyword arguments of `flwr.server.strategy.FedAvg` but `inplace`; see there for each."""

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


def require_fedavg_options(options: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise unless all options are FedAvg's own and in order.

    Parameters
    ----------
    options : mapping
        The options.
    allowed : frozenset of str
        The names that FedAvg knows.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, has the wrong type or is out of range.
    """
    if unknown := sorted(set(options) - allowed):
        raise TypeError(f"unknown argument {unknown[0]!r}")
    for name, value in options.items():
        _require_fedavg_option(name, value)


def _require_fedavg_option(name: str, value: Any) -> None:
    if name.startswith("fraction_"):
        require_real(name, value, low=0.0, high=1.0)
    elif name.startswith("min_"):
        require_integer(name, value, low=0)
    elif name.endswith("_key"):
        require_type(name, value, str, "a string")
        if not value:
            raise ValueError(f"{name} must not be empty, got {value!r}")
    elif name == "accept_failures":
        require_type(name, value, bool, "a bool")
    elif name == "initial_parameters":
        require_type(name, value, (Parameters, NoneType), "a flwr.common.Parameters, or None")
    elif value is not None and not callable(value):
        raise TypeError(f"{name} must be a callable or None, got {value!r}")
