"""The arguments that all strategies share, FedAvg's own among them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, cast

from flwr.app import MetricRecord, RecordDict

from fedmedian.checks import require_choice, require_integer, require_real, require_type
from fedmedian.layout import RUNNING_STATISTICS
from fedmedian.optimizers import Optimizer

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


NoiseFrom = Literal["server", "client"]
"""Who chooses the noise scale of a round."""


class StrategyOptions(FedAvgOptions, total=False):
    """The keyword arguments of every strategy; `SignSGD` describes each."""

    optimizer: Optimizer | None
    average: float | None
    clip: float | None
    client_learning_rate: float
    client_momentum: float
    noise_from: NoiseFrom
    dense: Sequence[str]
    diagnostics: bool
    seed: int | None


@dataclass(frozen=True)
class Settings:
    """The options of `StrategyOptions` that are not FedAvg's, with their defaults, checked.

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
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)


def split_options(options: StrategyOptions) -> tuple[Settings, FedAvgOptions]:
    """Return our own options, with defaults, and FedAvg's, all checked.

    Raises
    ------
    TypeError, ValueError
        If an option is unknown, has the wrong type or is out of range.
    """
    given: dict[str, Any] = dict(options)
    own = {field.name: given.pop(field.name) for field in fields(Settings) if field.name in given}
    for_fedavg = cast(FedAvgOptions, given)
    _require_fedavg_options(for_fedavg)
    return Settings(**own), for_fedavg


def _require_fedavg_options(options: FedAvgOptions) -> None:
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
