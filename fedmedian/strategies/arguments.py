"""A strategy's arguments as it shows them: attributes to read, and its repr."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypeVar, overload

from flwr.common import Parameters

from fedmedian.logs import as_line
from fedmedian.privacy.accounting import PrivacyBudget
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.core import Core, is_same
from fedmedian.rounds.screening import CohortRule
from fedmedian.rounds.settings import ScaleFrom
from fedmedian.rules.noise import Noise
from fedmedian.rules.optimizers import Optimizer
from fedmedian.rules.schedules import Schedule
from fedmedian.steps.base import ClientStep
from fedmedian.steps.rotation import Rotation

Value = TypeVar("Value")


class Argument(Generic[Value]):
    """An argument of a strategy as an attribute to read, whose value is the one in force."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = f"The argument `{name}` in force, which cannot be set."

    @overload
    def __get__(self, strategy: None, owner: type) -> Self: ...
    @overload
    def __get__(self, strategy: "ShowsArguments", owner: type) -> Value: ...
    def __get__(self, strategy: "ShowsArguments | None", owner: type) -> Self | Value:
        if strategy is None:
            return self
        value: Value = strategy.arguments[self._name]
        return value

    def __set__(self, strategy: "ShowsArguments", value: Any) -> None:
        # A subclass may keep what it has passed on, under the same name.
        if "core" in vars(strategy) and is_same(value, strategy.arguments[self._name]):
            return
        name, made = self._name, type(strategy).__name__
        if "core" not in vars(strategy):
            raise AttributeError(
                f"{name} cannot be set before the strategy is made: call "
                f"super().__init__({name}=…) first, and set it after that, to the same value"
            )
        raise AttributeError(
            f"{name} cannot be set, it would have no effect: make another strategy, "
            f"{made}({name}=…); an attribute that a subclass adds needs another name"
        )


class ShowsArguments:
    """What the strategies of both of Flower's APIs show of their arguments.

    Attributes
    ----------
    core : Core
        The strategy's own work.
    """

    core: Core

    noise = Argument[Noise | None]()
    learning_rate = Argument[float | Schedule]()
    optimizer = Argument[Optimizer | None]()
    average_decay = Argument[float | None]()
    client_steps = Argument[Sequence[ClientStep]]()
    rotation = Argument[Rotation | None]()
    scale_from = Argument[ScaleFrom]()
    exact = Argument[Sequence[str]]()
    cohort_rules = Argument[Sequence[CohortRule]]()
    diagnostics = Argument[bool]()
    min_replies = Argument[int]()
    max_failed_rounds = Argument[int | None]()
    checkpoint = Argument[Checkpoint | None]()
    privacy_budget = Argument[PrivacyBudget | None]()
    seed = Argument[int | None]()
    proximal_mu = Argument[float | None]()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments in force, by name; Flower's own are attributes that may be set."""
        return self.core.arguments

    def __repr__(self) -> str:
        shown = {**self.core.unusual, **self._unusual_of_flower()}
        arguments = ", ".join(f"{name}={_in_short(value)}" for name, value in shown.items())
        return f"{type(self).__name__}({arguments})"

    def _unusual_of_flower(self) -> Mapping[str, Any]:
        """Return the arguments that the core does not know and are not as usual, by name."""
        raise NotImplementedError


def differing(strategy: object, usual: object, names: Sequence[str]) -> dict[str, Any]:
    """Return those attributes of a strategy, by name, that are not as on a usual one.

    Functions are left out: they have no text that another process would understand.
    """
    own = {name: getattr(strategy, name) for name in names}
    for phase in ("train", "evaluate"):
        # Flower sets this one itself.
        if own.get(f"fraction_{phase}") == own.get(f"min_{phase}_nodes") == 0:
            del own[f"min_{phase}_nodes"]
    return {
        name: value
        for name, value in own.items()
        if not callable(value) and value != getattr(usual, name)
    }


def _in_short(value: Any) -> str:
    # The text of a model's bytes is several times as long as they are.
    return "Parameters(…)" if isinstance(value, Parameters) else as_line(repr(value))
