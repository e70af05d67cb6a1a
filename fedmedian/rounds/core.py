"""A strategy's own work in a round, whichever of Flower's APIs carries its messages."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregators.aggregation import Aggregate
from fedmedian.aggregators.diagnostics import Report
from fedmedian.checks import require_real, require_type
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import Arrays, Layout, first_spoiled
from fedmedian.randomness import rotation_seed
from fedmedian.rounds.screening import Answer
from fedmedian.rounds.settings import DEFAULT_NOISE, Settings
from fedmedian.rules.noise import NOISE_FAMILIES, Noise
from fedmedian.rules.optimizers import State
from fedmedian.rules.scales import ScaleRule, Scales
from fedmedian.rules.schedules import Schedule, as_schedule
from fedmedian.rules.trust import (
    agreed_size,
    count_out_of_proportion,
    num_tolerated,
    voting_weights,
)
from fedmedian.steps.base import ClientStep
from fedmedian.steps.encodings import Encoding, Vector
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.noise import AddNoise, Measure, TopUpNoise
from fedmedian.steps.payload import Payload
from fedmedian.steps.tied import Tied
from fedmedian.wire.scalars import Float32, WireError

Weights = NDArray[np.float64]
Model = dict[str, NDArray[Any]]


class PlainWeightsError(WireError):
    """A reply of plain weights, where clients were to perturb their updates."""


class NoStepError(Exception):
    """A round that keeps the model as it is, with the reason."""


@dataclass(frozen=True)
class Round:
    """A round that has begun: all that the server remembers until it hears from the clients.

    Parameters
    ----------
    number : int
        The round.
    arrays : mapping of str to array
        The model that the clients were sent.
    layout : Layout
        Its layout.
    instruction : Instruction
        What they were asked.
    blocks : Blocks
        The blocks of what they send.
    """

    number: int
    arrays: Arrays
    layout: Layout
    instruction: Instruction
    blocks: Blocks


@dataclass(frozen=True)
class ServerStep:
    """A round's step x ← x − δ·direction, which together with x is the new model.

    Parameters
    ----------
    direction : (d,) float32
        The direction, pointing uphill.
    rate : float
        The learning rate δ.
    exact : mapping of str to array
        The new values of the exact arrays.
    scales : (L,) float64 or None
        The next round's noise scales.
    optimizer_state : dict of str to array
        What the optimiser remembers of it.
    """

    direction: Float32
    rate: float
    exact: Arrays
    scales: Scales = None
    optimizer_state: State = field(default_factory=dict)


class Core(ABC):
    """The state of a run, and the way from a round's answers to a step.

    Parameters
    ----------
    noise : Noise or None
        The noise family and scale rule.
    noise_at_client : bool
        Whether the clients are to add the noise.
    learning_rate : float or callable, or None
        The server's step size δ, > 0, in x ← x − δ·step, or a schedule of it; None for the usual.
    usual_rate : float
        The usual step size along a direction; an optimiser's goes on top of it.
    weighted : bool
        Whether clients count in proportion to their examples.
    settings : Settings
        The arguments that all strategies have.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    encoding: ClassVar[Encoding]
    """The encoding that clients are asked for."""

    def __init__(
        self,
        *,
        noise: Noise | None,
        noise_at_client: bool,
        learning_rate: float | Schedule | None,
        usual_rate: float,
        weighted: bool,
        settings: Settings,
    ) -> None:
        noise = settings.scaled(noise)
        if noise is not None:
            if noise.rule.tops_up and settings.rotation is None:
                raise ValueError(
                    f"rotation must be given with noise={noise!r}, got None: only in a random "
                    "basis do noise and coordinates add up to normal ones; Gaussian(Adaptive(3.0)) "
                    "is for the parameters' own"
                )
            if noise_at_client:
                NOISE_FAMILIES.require("noise", noise)
                AddNoise(noise).encode()  # raises if a parameter cannot travel
        client_noise = noise if noise_at_client else None
        if settings.scale_from == "client" and (
            client_noise is None or client_noise.rule.magnitude is None
        ):
            raise ValueError(
                "scale_from must be 'server' unless clients add noise in proportion to what they "
                f"measure, got {settings.scale_from!r} with client noise {client_noise!r}"
            )
        require_type("weighted", weighted, bool, "a bool")
        if learning_rate is None:
            optimizer = settings.optimizer
            learning_rate = usual_rate * (1.0 if optimizer is None else optimizer.usual_rate)
        self.noise = noise
        self.client_noise = client_noise
        self.learning_rate = learning_rate
        self.weighted = weighted
        self.settings = settings
        self.average: Model | None = None
        self._schedule = as_schedule(learning_rate)
        self._scales: Scales = None
        self._optimizer_state: State = {}
        self._round: Round | None = None

    @abstractmethod
    def aggregate_payloads(
        self,
        payloads: list[Payload],
        weights: Weights,
        scales: Float32 | None,
        used: Float32,
        magnitudes: Float32,
        current: Round,
    ) -> Aggregate:
        """Return the direction that the accepted payloads add up to.

        Parameters
        ----------
        payloads : list of M Payload
            The accepted answers, M >= 1.
        weights : (M,) float64
            The clients' weights, which add up to 1.
        scales : (L,) float32 or None
            The noise scale of each block, the median client's where they differ; None without
            noise.
        used, magnitudes : (M, L) float32
            Each client's noise scales, and the magnitudes that it reported.
        current : Round
            The round they belong to.

        Returns
        -------
        Aggregate
            The direction, in the round's blocks, and what to report about it.
        """

    @property
    @abstractmethod
    def cost_of_few(self) -> tuple[int, str]:
        """The largest cohort to which being small costs something, and what it costs in words."""

    @abstractmethod
    def centre(self, values: Weights, weights: Weights) -> Weights:
        """Return the centre, (*shape), of the clients' values of an exact array, (M, *shape)."""

    @property
    def current(self) -> Round:
        """The round that has begun.

        Raises
        ------
        RuntimeError
            If none has.
        """
        if self._round is None:
            raise RuntimeError(
                "replies were aggregated before a round was configured: a subclass's "
                "configure_train must call super().configure_train and keep the keys 'fedmedian.…' "
                "of the configs in its messages"
            )
        return self._round

    @property
    def begun(self) -> Round | None:
        """The round that has begun, or None if none has."""
        return self._round

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments that must not change when a run resumes, by name."""
        return {
            "kind": self.encoding.name,
            "noise": self.noise,
            "learning_rate": self.learning_rate,
            "weighted": self.weighted,
            **self.settings.identity,
        }

    @property
    def unusual(self) -> dict[str, Any]:
        """The arguments that are not as usual, by name."""
        return {
            name: value for name, value, usual in self._arguments() if not is_same(value, usual)
        }

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments in force, by name."""
        return {name: value for name, value, _ in self._arguments()}

    def _arguments(self) -> Iterator[tuple[str, Any, Any]]:
        """Yield the arguments, each with its name, its value and its default."""
        yield "noise", self.noise, DEFAULT_NOISE
        yield "learning_rate", self.learning_rate, 1.0
        for one in fields(self.settings):
            yield one.name, getattr(self.settings, one.name), one.default

    @property
    def state(self) -> dict[str, Arrays]:
        """All that the next round depends on beside the model, in groups."""
        scales = {} if self._scales is None else {"scales": self._scales}
        average = {} if self.average is None else {"average": self.average}
        return {"optimizer": self._optimizer_state, "scales": scales, **average}

    def restore(self, state: Mapping[str, Arrays]) -> None:
        """Take over a `state` of another process, or of this one earlier."""
        self._optimizer_state = dict(state["optimizer"])
        self._scales = state["scales"].get("scales")
        self.average = dict(state["average"]) if "average" in state else None

    def begin(self, server_round: int, model: Arrays) -> Instruction:
        """Begin a round.

        Parameters
        ----------
        server_round : int
            Its number; 1 starts a run afresh.
        model : mapping of str to array
            The model that the clients are sent.

        Returns
        -------
        Instruction
            What to ask of them.
        """
        settings = self.settings
        layout = Layout.of_model(model, settings.exact)
        if server_round == 1:
            self._scales, self._optimizer_state, self.average = None, {}, None
        own = self._own_steps(server_round)
        if server_round == 1 and self._rule is not None:
            self._scales = self._rule.first(len(blocks_after(own, layout.blocks)), self._kind)
        told = None if self._scales is None else np.asarray(self._scales, dtype=np.float32)
        tied = layout.tied(model)
        steps = (*([Tied(tied)] if tied else []), *own, *self._noise_steps(told))
        instruction = Instruction(steps, server_round, settings.seed, layout.exact_positions)
        blocks = instruction.blocks(layout)
        self._round = Round(server_round, model, layout, instruction, blocks)
        return instruction

    def read(self, arrays: Arrays, scalars: Mapping[str, Any] | None) -> Payload:
        """Read a reply, and make sure that it answers the instruction.

        Plain weights, from a client that is not perturbed, are as good as a vector without noise.

        Parameters
        ----------
        arrays : mapping of str to array
            The reply's arrays.
        scalars : mapping or None
            The scalars of the reply's payload; None for plain weights.

        Returns
        -------
        Payload
            The answer.

        Raises
        ------
        ValueError
            If the reply is unusable, saying why.
        """
        current = self.current
        instruction, layout = current.instruction, current.layout
        if scalars is not None:
            payload = Payload.decode(list(arrays.values()), scalars)
        elif type(instruction.encoding) is Vector and instruction.find(AddNoise) is None:
            after = layout.named(arrays)
            update = layout.difference(current.arrays, after)
            # Without noise and signs there is nothing to draw.
            payload = perturb_update(instruction, layout, update, after, np.random.default_rng(0))
        else:
            raise PlainWeightsError(
                f"sent plain weights, was asked for {self._kind!r} with noise "
                f"{self.client_noise!r}: does its ClientApp have mods=[perturb]?"
            )
        instruction.require_answer(payload, layout, current.arrays)
        return payload

    def finish(self, answers: list[Answer[Any]]) -> tuple[ServerStep, Report]:
        """Turn the accepted answers into a step.

        Parameters
        ----------
        answers : list of Answer
            The accepted answers; with a seed they are put into an order of their own.

        Returns
        -------
        step : ServerStep
            The step.
        report : dict
            What to report about the round.

        Raises
        ------
        NoStepError
            If there are too few answers.
        """
        current, settings = self.current, self.settings
        instruction = current.instruction

        def sizes_of(payload: Payload) -> tuple[Float32, Float32]:
            return (
                instruction.scales_of(payload, current.blocks),
                instruction.magnitudes_of(payload, current.blocks),
            )

        if len(answers) < settings.min_replies:
            raise NoStepError(
                f"{len(answers)} usable replies, min_replies is {settings.min_replies}"
            )
        if settings.seed is not None:
            # Replies arrive in any order, and sums of floats depend on it.
            answers.sort(key=lambda answer: answer.key(*sizes_of(answer.payload)))
        payloads = [answer.payload for answer in answers]
        examples = np.array([answer.num_examples if self.weighted else 1.0 for answer in answers])
        weights = voting_weights(examples)
        used, reported = (np.stack(rows) for rows in zip(*map(sizes_of, payloads), strict=True))
        magnitudes = reported.astype(np.float64)
        scales = self._scales_in_force(used, magnitudes)
        report: Report = {
            "replies-out-of-proportion": count_out_of_proportion(examples, magnitudes, used)
        }
        if scales is not None:
            report["noise-scale"] = scales.tolist()
        with np.errstate(over="ignore", invalid="ignore"):  # `move` refuses what is not finite
            aggregate = self.aggregate_payloads(payloads, weights, scales, used, reported, current)
            self._keep_frozen(aggregate.direction, magnitudes)
            direction = instruction.undo(aggregate.direction, current.layout)
            current.layout.average_tied(direction, _still_tied(instruction, payloads))
            # An optimiser replaces what it remembers: of the old state nothing is lost yet.
            state = dict(self._optimizer_state)
            if settings.optimizer is not None:
                direction = settings.optimizer.step(direction, state)
        rate = require_real("learning_rate", self._schedule(current.number), low=0.0, open_low=True)
        exact = {
            spec.name: spec.combine(
                values, partial(self.centre, weights=weights), current.arrays[spec.name]
            )
            for spec, values in current.layout.stack_exact([one.exact for one in payloads])
        }
        rule = self._rule
        following = None if rule is None else rule.following(self._scales, magnitudes)
        step = ServerStep(direction, rate, exact, following, state)
        return step, {**report, **aggregate.diagnostics}

    def move(self, step: ServerStep) -> Model:
        """Take a step of the current round, and remember what it tells for the next.

        Parameters
        ----------
        step : ServerStep
            The step.

        Returns
        -------
        dict of str to array
            The new model.

        Raises
        ------
        NoStepError
            If entries of it would not be finite that are now, which leaves everything as it was.
        """
        current, decay = self.current, self.settings.average_decay
        with np.errstate(over="ignore", invalid="ignore"):
            model = current.layout.move(current.arrays, step.direction, step.rate, step.exact)
        if (name := first_spoiled(current.arrays, model)) is not None:
            raise NoStepError(f"its step would make array {name!r} NaN or infinite")
        for name, array in step.optimizer_state.items():
            if not np.isfinite(array).all():
                raise NoStepError(f"its step would make {name!r} of the optimizer NaN or infinite")
        self._scales, self._optimizer_state = step.scales, step.optimizer_state
        if decay is not None:
            self.average = _blend(self.average, model, decay)
        return model

    @property
    def tops_up(self) -> bool:
        """Whether noise tops updates up to its scale."""
        return self._rule is not None and self._rule.tops_up

    @property
    def _rule(self) -> ScaleRule | None:
        return None if self.noise is None else self.noise.rule

    def _keep_frozen(self, direction: Float32, magnitudes: NDArray[np.float64]) -> None:
        """Set to zero the step of blocks that at most t clients have moved, in place.

        Noise that is still added to such a block would walk it, and so would t liars.
        """
        if self._rule is not None and self._rule.magnitude is not None:
            parts = self.current.blocks.split(direction)
            for part, size in zip(parts, agreed_size(magnitudes), strict=True):
                if size == 0:
                    part[:] = 0

    def _scales_in_force(self, used: Float32, magnitudes: NDArray[np.float64]) -> Float32 | None:
        if self.noise is None:
            return None
        if self.client_noise is not None:
            return agreed_size(used).astype(np.float32)
        scales = self._scales
        if scales is None:
            scales = self.noise.rule.following(None, magnitudes)
        return np.asarray(scales, dtype=np.float32)

    @property
    def usual_steps(self) -> tuple[ClientStep, ...]:
        """The client steps of a model of one block, as far as they are known before a round."""
        scales = None if self._rule is None else self._rule.first(1, self._kind)
        return (*self._own_steps(1), *self._noise_steps(scales))

    @property
    def _kind(self) -> str:
        return self.encoding.name

    def _own_steps(self, server_round: int) -> tuple[ClientStep, ...]:
        """Return the user's client steps and the rotation."""
        settings = self.settings
        if settings.rotation is None:
            return tuple(settings.client_steps)
        seed = rotation_seed(settings.seed, server_round)
        return (*settings.client_steps, replace(settings.rotation, seed=seed))

    def _noise_steps(self, scales: NDArray[Any] | None) -> tuple[ClientStep, ...]:
        """Return the steps that the noise asks for, and the encoding."""
        steps, rule = list[ClientStep](), self._rule
        if rule is not None and rule.magnitude is not None:
            steps.append(Measure(rule.magnitude))
        if rule is not None and self.client_noise is not None:
            told = scales if self.settings.scale_from == "server" else None
            add = TopUpNoise if rule.tops_up else AddNoise
            steps.append(add(self.client_noise, told, rule.own_factor))
        return (*steps, self.encoding)


def blocks_after(steps: Sequence[ClientStep], blocks: Blocks) -> Blocks:
    """Return the blocks after some steps."""
    for step in steps:
        blocks = step.blocks(blocks)
    return blocks


def is_same(value: Any, other: Any) -> bool:
    """Tell whether two values of an argument are the same one."""
    return value is other or (type(value) is type(other) and bool(value == other))


def _still_tied(instruction: Instruction, payloads: list[Payload]) -> list[tuple[int, ...]]:
    """Return the groups that more than half of the clients report tied, and all but t of them.

    Of two clients both must: a liar that parts a tied group does no harm that clients' own next
    updates do not undo, and one that ties two layers would do so forever.
    """
    found = Counter(group for payload in payloads for group in instruction.still_tied(payload))
    clients = len(payloads)
    enough = max(clients - num_tolerated(clients), clients // 2 + 1)
    return [group for group in found if found[group] >= enough]


def _blend(old: Arrays | None, new: Arrays, decay: float) -> Model:
    """Return decay·old + (1 − decay)·new of floating-point arrays, and the new of others.

    What is infinite in the old average, as ranges are that have seen no data, is the new.
    """
    if old is None:
        return dict(new)
    with np.errstate(invalid="ignore"):
        return {
            name: np.where(
                np.isfinite(old[name]), decay * old[name] + (1 - decay) * array, array
            ).astype(array.dtype)
            if np.issubdtype(array.dtype, np.inexact)
            else array
            for name, array in new.items()
        }
