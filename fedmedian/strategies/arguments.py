"""The arguments of both APIs' strategies."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from flwr.common import Parameters

from fedmedian.aggregators.base import Aggregator, NoiseAt
from fedmedian.aggregators.medians import Median
from fedmedian.logs import as_line
from fedmedian.model.layout import RUNNING_STATISTICS
from fedmedian.privacy.accounting import Mechanism, PrivacyBudget
from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.rounds.checkpoint import Checkpoint
from fedmedian.rounds.downlink import CodedSteps
from fedmedian.rounds.mechanism import mechanism_of_strategy
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.recipe import (
    DEFAULT_AGGREGATOR,
    DEFAULT_NOISE,
    DEFAULT_ROTATION,
    Question,
    Recipe,
    ScaleFrom,
)
from fedmedian.rounds.screening import CohortRule
from fedmedian.rules.noise import Noise
from fedmedian.rules.optimizers import Optimizer
from fedmedian.rules.schedules import Schedule
from fedmedian.secure.cohort import SecureSum
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Signs, Vector
from fedmedian.steps.rotation import Rotation
from fedmedian.strategies.options import FlowerOptions

Value = TypeVar("Value")
Part = TypeVar("Part", Recipe, RunOptions)

_MEDIAN = Median()


class Argument(Generic[Value]):
    """A read-only attribute with the value of an argument in force."""

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
        value: Value = self._value_of(strategy)
        return value

    def _value_of(self, strategy: "ShowsArguments") -> Any:
        return strategy.arguments[self._name]

    def __set__(self, strategy: "ShowsArguments", value: Any) -> None:
        name = self._name
        if "recipe" not in vars(strategy):
            raise AttributeError(
                f"{name} cannot be set before the strategy is made: call "
                f"super().__init__({name}=…) first, and set it after that, to the same value"
            )
        # A subclass may set the attribute to what it has passed to super().__init__.
        if not _is_same(value, strategy.arguments[name]):
            raise AttributeError(
                f"{name} cannot be set, because that would have no effect: make another strategy, "
                f"{type(strategy).__name__}({name}=…); an attribute that a subclass adds needs "
                "another name"
            )


class _Fixed(Argument[Value]):
    """A read-only attribute that the strategy sets itself."""

    def _value_of(self, strategy: "ShowsArguments") -> Any:
        if self._name not in vars(strategy):
            raise AttributeError(f"{self._name} is known once super().__init__(…) has been called")
        return vars(strategy)[self._name]

    def __set__(self, strategy: "ShowsArguments", value: Value) -> None:
        is_own = isinstance(value, Recipe | RunOptions)  # as where a copy sets all attributes
        if not is_own or vars(strategy).setdefault(self._name, value) is not value:
            raise AttributeError(
                f"{self._name} cannot be set, because the strategy sets it itself: an attribute "
                "that a subclass adds needs another name"
            )


class ShowsArguments:
    """Shows a strategy's arguments, as attributes and in its text.

    Attributes
    ----------
    recipe : Recipe
        What a run's model depends on.
    options : RunOptions
        The arguments that may change when a run resumes.
    """

    recipe = _Fixed[Recipe]()
    options = _Fixed[RunOptions]()
    fraction_evaluate: float
    _fedmedian_usual: Mapping[str, Any]  # Flower's arguments, with the defaults

    aggregator = Argument[Aggregator]()
    noise = Argument[Noise | None]()
    learning_rate = Argument[float | Schedule]()
    optimizer = Argument[Optimizer | None]()
    client_steps = Argument[Sequence[ClientStep]]()
    rotation = Argument[Rotation | None]()
    scale_from = Argument[ScaleFrom]()
    exact = Argument[Sequence[str]]()
    downlink = Argument[CodedSteps | None]()
    seed = Argument[int | None]()
    cohort_rules = Argument[Sequence[CohortRule]]()
    diagnostics = Argument[bool]()
    min_replies = Argument[int]()
    max_failed_rounds = Argument[int | None]()
    checkpoint = Argument[Checkpoint | None]()
    privacy_budget = Argument[PrivacyBudget | None]()
    threads = Argument[int | None]()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments in force, by name; Flower's own are attributes that may be set."""
        both = (self.recipe, self.options)
        values = {one.name: getattr(part, one.name) for part in both for one in fields(part)}
        return {name: value for name, value in values.items() if hasattr(type(self), name)}

    @property
    def unusual(self) -> Mapping[str, Any]:
        """The arguments in force that are not the defaults, by name, including Flower's.

        Flower's functions are left out: their text means nothing in another process.
        """
        usual = {one.name: one.default for part in (Recipe, RunOptions) for one in fields(part)}
        is_of_signs = isinstance(self.recipe.aggregator.encoding, Signs)
        usual |= {
            "aggregator": DEFAULT_AGGREGATOR if is_of_signs else _MEDIAN,
            "learning_rate": 1.0,
            "weighted": True,
            "numpy_clients": False,
        }
        own = {
            name: value
            for name, value in self.arguments.items()
            if not _is_same(value, usual[name])
        }
        flower = {name: getattr(self, name) for name in self._fedmedian_usual}
        for phase in ("train", "evaluate"):
            # Flower sets this one itself.
            if flower.get(f"fraction_{phase}") == flower.get(f"min_{phase}_nodes") == 0:
                del flower[f"min_{phase}_nodes"]
        return own | {
            name: value
            for name, value in flower.items()
            if not callable(value) and value != self._fedmedian_usual[name]
        }

    @property
    def privacy(self) -> Mechanism | NoMechanism:
        """What clients release in a round, or the reasons why that has no bound.

        It holds for clients that follow their instructions and send no metrics of their apps; a
        `fedmedian.clients.Policy` on the client enforces both. Reasons that lie in the model are
        known once a round has begun.
        """
        return mechanism_of_strategy(self.recipe, self.fraction_evaluate, self._fedmedian_question)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(self.unusual)})"

    def _fedmedian_build(self, recipe: Recipe, options: RunOptions, flower: FlowerOptions) -> None:
        """Build the strategy from its arguments, including Flower's."""
        raise NotImplementedError

    @property
    def _fedmedian_question(self) -> Question | None:
        """The last question that was asked."""
        raise NotImplementedError


class SignArguments(ShowsArguments):
    """The arguments of `SignSGD` in both APIs."""

    weighted = Argument[bool]()
    secure = Argument[SecureSum | None]()

    def __init__(
        self,
        noise: Noise | None = DEFAULT_NOISE,
        aggregator: Aggregator = DEFAULT_AGGREGATOR,
        learning_rate: float | Schedule | None = None,
        *,
        weighted: bool = True,
        optimizer: Optimizer | None = None,
        client_steps: Sequence[ClientStep] = (),
        rotation: Rotation | None = DEFAULT_ROTATION,
        scale_from: ScaleFrom = "server",
        exact: Sequence[str] = RUNNING_STATISTICS,
        downlink: CodedSteps | None = None,
        secure: SecureSum | None = None,
        cohort_rules: Sequence[CohortRule] = (),
        diagnostics: bool = True,
        min_replies: int = 1,
        max_failed_rounds: int | None = 3,
        checkpoint: Checkpoint | None = None,
        privacy_budget: PrivacyBudget | None = None,
        threads: int | None = None,
        seed: int | None = None,
        **flower: Unpack[FlowerOptions],
    ) -> None:
        if isinstance(aggregator, Aggregator) and isinstance(aggregator.encoding, Vector):
            raise ValueError(
                f"aggregator must be of signs such as Counts() or Majority(), got {aggregator!r}: "
                "MedianSGD is for rules of whole updates"
            )
        if secure is not None and cohort_rules:
            raise ValueError(
                f"cohort_rules must be empty with secure={secure!r}, got {cohort_rules!r}: a "
                "secure sum hides single votes, so there is nothing to judge"
            )
        given = locals()  # the signature names each argument; here they are sorted by use
        self._fedmedian_build(_of(Recipe, given), _of(RunOptions, given), flower)


class MedianArguments(ShowsArguments):
    """The arguments of `MedianSGD` in both APIs."""

    noise_at = Argument[NoiseAt]()

    def __init__(
        self,
        noise: Noise | None = DEFAULT_NOISE,
        aggregator: Aggregator = _MEDIAN,
        learning_rate: float | Schedule | None = None,
        *,
        noise_at: NoiseAt = "client",
        optimizer: Optimizer | None = None,
        client_steps: Sequence[ClientStep] = (),
        rotation: Rotation | None = DEFAULT_ROTATION,
        scale_from: ScaleFrom = "server",
        exact: Sequence[str] = RUNNING_STATISTICS,
        downlink: CodedSteps | None = None,
        cohort_rules: Sequence[CohortRule] = (),
        diagnostics: bool = True,
        min_replies: int = 1,
        max_failed_rounds: int | None = 3,
        checkpoint: Checkpoint | None = None,
        privacy_budget: PrivacyBudget | None = None,
        threads: int | None = None,
        seed: int | None = None,
        **flower: Unpack[FlowerOptions],
    ) -> None:
        if isinstance(aggregator, Aggregator) and not isinstance(aggregator.encoding, Vector):
            raise ValueError(
                "aggregator must be of whole updates such as Median() or SmoothedMedian(), got "
                f"{aggregator!r}: SignSGD is for rules of signs"
            )
        given = locals()  # the signature names each argument; here they are sorted by use
        self._fedmedian_build(_of(Recipe, given), _of(RunOptions, given), flower)


def _of(kind: type[Part], given: Mapping[str, Any]) -> Part:
    """Return a Recipe or RunOptions with the arguments that it takes."""
    return kind(**{one.name: given[one.name] for one in fields(kind) if one.name in given})


def usual_of(flower: object, options: type) -> dict[str, Any]:
    """Return the defaults of Flower's arguments by name: the attributes of its own strategy."""
    return {
        name: getattr(flower, name) for name in options.__annotations__ if name != "numpy_clients"
    }


def described(arguments: Mapping[str, Any]) -> str:
    """Return arguments as they are written in a call, long ones in short."""
    return ", ".join(f"{name}={_in_short(value)}" for name, value in arguments.items())


def _is_same(value: Any, other: Any) -> bool:
    """Return whether two values of an argument are the same."""
    return value is other or (type(value) is type(other) and bool(value == other))


def _in_short(value: Any) -> str:
    # The text of a model's bytes is several times longer than the bytes.
    return "Parameters(…)" if isinstance(value, Parameters) else as_line(repr(value))
