"""The arguments that all strategies share, FedAvg's own among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, Literal, TypedDict

from flwr.app import MetricRecord, RecordDict
from flwr.common import MetricsAggregationFn, NDArrays, Parameters, Scalar

from fedmedian.checks import require_choice, require_integer, require_real, require_type
from fedmedian.layout import RUNNING_STATISTICS
from fedmedian.optimizers import Optimizer
from fedmedian.strategies.checkpoint import Checkpoint

MetricsAggregator = Callable[[list[RecordDict], str], MetricRecord]
Evaluation = tuple[float, dict[str, Scalar]]


NoiseFrom = Literal["server", "client"]
"""Who chooses the noise scale of a round."""


class CoreOptions(TypedDict, total=False):
    """The keyword arguments that every strategy adds to FedAvg's; `SignSGD` describes each."""

    optimizer: Optimizer | None
    average: float | None
    clip: float | None
    client_learning_rate: float
    client_momentum: float
    noise_from: NoiseFrom
    dense: Sequence[str]
    diagnostics: bool
    min_replies: int
    checkpoint: Checkpoint | None
    seed: int | None


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


class StrategyOptions(CoreOptions, FedAvgOptions, total=False):
    """The keyword arguments of every strategy of the Message API."""

    numpy_clients: bool


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


class LegacyOptions(CoreOptions, LegacyFedAvgOptions, total=False):
    """The keyword arguments of every strategy of the older API."""


@dataclass(frozen=True)
class Settings:
    """The options of `CoreOptions`, with their defaults, checked.

    Raises
    ------
    TypeError, ValueError
        If one has the wrong type or is out of range.
    """

    optimizer: Optimizer | None = None
    average: float | None = None
    clip: float | None = None
    client_learning_rate: float = 1.0
    client_momentum: float = 0.0
    noise_from: NoiseFrom = "server"
    dense: Sequence[str] = RUNNING_STATISTICS
    diagnostics: bool = True
    min_replies: int = 1
    checkpoint: Checkpoint | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            require_type("optimizer", self.optimizer, Optimizer, "an optimiser such as Momentum()")
        if self.average is not None:
            require_real("average", self.average, low=0.0, high=1.0, open_low=True, open_high=True)
        if self.clip is not None:
            require_real("clip", self.clip, low=0.0, open_low=True)
        require_real("client_learning_rate", self.client_learning_rate, low=0.0, open_low=True)
        require_real("client_momentum", self.client_momentum, low=0.0, high=1.0, open_high=True)
        require_choice("noise_from", self.noise_from, ("server", "client"))
        if isinstance(self.dense, str) or not isinstance(self.dense, Sequence):
            raise TypeError(f"dense must be a sequence of strings, got {self.dense!r}")
        for pattern in self.dense:
            require_type("dense", pattern, str, "a sequence of strings")
        require_type("diagnostics", self.diagnostics, bool, "a bool")
        require_integer("min_replies", self.min_replies, low=1)
        if self.checkpoint is not None:
            require_type("checkpoint", self.checkpoint, Checkpoint, "a Checkpoint, or None")
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)


def split_options(
    options: CoreOptions, fedavg_options: frozenset[str]
) -> tuple[Settings, dict[str, Any]]:
    """Return our own options, with defaults, and FedAvg's, all checked.

    Parameters
    ----------
    options : dict
        What the strategy was given.
    fedavg_options : frozenset of str
        The names of FedAvg's own among them.

    Returns
    -------
    settings : Settings
        Our own.
    fedavg : dict
        FedAvg's.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, has the wrong type or is out of range.
    """
    fedavg: dict[str, Any] = dict(options)
    own = {field.name: fedavg.pop(field.name) for field in fields(Settings) if field.name in fedavg}
    if unknown := sorted(set(fedavg) - fedavg_options):
        raise TypeError(f"unknown argument {unknown[0]!r}")
    for name, value in fedavg.items():
        _require_fedavg_option(name, value)
    return Settings(**own), fedavg


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
