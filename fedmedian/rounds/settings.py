"""The arguments that all strategies share, FedAvg's own aside."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from fedmedian.checks import require_choice, require_integer, require_real, require_type
from fedmedian.model.layout import RUNNING_STATISTICS
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.screening import CohortRule
from fedmedian.rules.noise import Gaussian, Noise
from fedmedian.rules.optimizers import Optimizer
from fedmedian.rules.scales import TopUp
from fedmedian.steps.base import CLIENT_STEPS, ClientStep
from fedmedian.steps.encodings import Encoding
from fedmedian.steps.noise import AddNoise, Measure
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.tied import Tied

DEFAULT_NOISE = Gaussian(TopUp())
DEFAULT_ROTATION = Rotation()

ScaleFrom = Literal["server", "client"]
"""The side that chooses the noise scale of a round."""

_MAY_CHANGE = (
    "cohort_rules",
    "diagnostics",
    "min_replies",
    "max_failed_rounds",
    "checkpoint",
    "privacy_budget",
)
"""The arguments that a run may go on with others of: whom it hears, as nodes come and go, what it
notes, and how long it may go on."""


@dataclass(frozen=True)
class Settings:
    """The arguments that every strategy has, checked; `SignSGD` describes each.

    Raises
    ------
    TypeError, ValueError
        If one has the wrong type or is out of range.
    """

    optimizer: Optimizer | None = None
    average_decay: float | None = None
    client_steps: Sequence[ClientStep] = ()
    rotation: Rotation | None = DEFAULT_ROTATION
    scale_from: ScaleFrom = "server"
    exact: Sequence[str] = RUNNING_STATISTICS
    cohort_rules: Sequence[CohortRule] = ()
    diagnostics: bool = True
    min_replies: int = 1
    max_failed_rounds: int | None = 3
    checkpoint: Checkpoint | None = None
    privacy_budget: PrivacyBudget | None = None
    seed: int | None = None
    proximal_mu: float | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            require_type("optimizer", self.optimizer, Optimizer, "an optimiser such as Momentum()")
        if (decay := self.average_decay) is not None:
            require_real("average_decay", decay, low=0.0, high=1.0, open_low=True, open_high=True)
        self._require_client_steps()
        if self.rotation is not None:
            require_type("rotation", self.rotation, Rotation, "a Rotation(), or None")
            if self.rotation.seed is not None:
                raise ValueError(
                    "rotation must be without a seed, one is drawn for each round, "
                    f"got {self.rotation!r}"
                )
        require_choice("scale_from", self.scale_from, ("server", "client"))
        for pattern in _require_sequence("exact", self.exact, "strings"):
            require_type("exact", pattern, str, "a sequence of strings")
        for rule in _require_sequence("cohort_rules", self.cohort_rules, "callables"):
            if not callable(rule):
                raise TypeError(f"cohort_rules must be callables, got {rule!r}")
        require_type("diagnostics", self.diagnostics, bool, "a bool")
        require_integer("min_replies", self.min_replies, low=1)
        if self.max_failed_rounds is not None:
            require_integer("max_failed_rounds", self.max_failed_rounds, low=1)
        if self.checkpoint is not None:
            require_type("checkpoint", self.checkpoint, Checkpoint, "a Checkpoint, or None")
        if self.privacy_budget is not None:
            wanted = "a PrivacyBudget, or None"
            require_type("privacy_budget", self.privacy_budget, PrivacyBudget, wanted)
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)
        if self.proximal_mu is not None:
            require_real("proximal_mu", self.proximal_mu, low=0.0)

    def scaled(self, noise: Noise | None) -> Noise | None:
        """Return the noise as these settings have it: a family without a scale gets the default.

        Raises
        ------
        TypeError
            If it is no noise.
        """
        if noise is None:
            return None
        require_type("noise", noise, Noise, "a noise family such as Gaussian(0.1), or None")
        return noise.with_scale(in_random_basis=self.rotation is not None)

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments that the model depends on, by name."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names if name not in _MAY_CHANGE}

    def _require_client_steps(self) -> None:
        names: set[str] = set()
        steps = _require_sequence("client_steps", self.client_steps, "client steps")
        for index, step in enumerate(steps):
            argument = f"client_steps[{index}]"
            CLIENT_STEPS.require(argument, step)
            if isinstance(step, Rotation | Measure | AddNoise | Tied | Encoding):
                raise ValueError(f"{argument} must not be one that strategies add, got {step!r}")
            if step.name in names:
                raise ValueError(f"{argument} must not be the second of its kind, got {step!r}")
            names.add(step.name)
            step.encode()  # raises if a parameter cannot travel


def _require_sequence(name: str, value: Any, of: str) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of {of}, got {value!r}")
    return value
