"""FedAvg's own arguments, as our strategies pass them on."""

from collections.abc import Callable
from typing import Any, TypedDict

from flwr.app import MetricRecord, RecordDict

from fedmedian.checks import require_integer, require_real, require_type

MetricsAggregator = Callable[[list[RecordDict], str], MetricRecord]


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


def require_fedavg_options(options: FedAvgOptions) -> None:
    """Raise unless every one of FedAvg's arguments is known and in range.

    Raises
    ------
    TypeError
        If an argument is unknown or has the wrong type.
    ValueError
        If it is out of range.
    """
    unknown = sorted(set(options) - FedAvgOptions.__optional_keys__)
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r}")
    values: dict[str, Any] = dict(options)
    for name, value in values.items():
        if name.startswith("fraction_"):
            require_real(name, value, low=0.0, high=1.0)
        elif name.startswith("min_"):
            require_integer(name, value, low=0)
        elif name.endswith("_key"):
            require_type(name, value, str, "a string")
            if not value:
                raise ValueError(f"{name} must not be empty, got {value!r}")
        elif value is not None and not callable(value):
            raise TypeError(f"{name} must be a callable or None, got {value!r}")
