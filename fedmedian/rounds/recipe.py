"""Rounds as values: what to ask of clients, and the step that their answers make."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregators.base import Aggregator, Answers, NoiseAt
from fedmedian.aggregators.diagnostics import Report
from fedmedian.aggregators.votes import Counts
from fedmedian.checks import require_choice, require_integer, require_real, require_type
from fedmedian.model.blocks import Blocks
from fedmedian.model.layout import RUNNING_STATISTICS, Arrays, Layout, first_spoiled
from fedmedian.randomness import rotation_seed, server_rng
from fedmedian.rounds.screening import Answer, Node, Source
from fedmedian.rounds.state import RunState
from fedmedian.rules.noise import NOISE_FAMILIES, Gaussian, Noise
from fedmedian.rules.optimizers import Optimizer, State
from fedmedian.rules.scales import ScaleRule, Scales, TopUp
from fedmedian.rules.schedules import Schedule, as_schedule
from fedmedian.rules.trust import (
    agreed_size,
    count_out_of_proportion,
    num_tolerated,
    voting_weights,
)
from fedmedian.steps.base import CLIENT_STEPS, ClientStep
from fedmedian.steps.encodings import Encoding, Vector
from fedmedian.steps.instruction import Instruction, perturb_update
from fedmedian.steps.noise import AddNoise, Measure, TopUpNoise
from fedmedian.steps.payload import Payload
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.tied import Tied
from fedmedian.wire.scalars import Float32, WireError

Model = dict[str, NDArray[Any]]

DEFAULT_NOISE = Gaussian(TopUp())
DEFAULT_ROTATION = Rotation()
DEFAULT_AGGREGATOR = Counts()

ScaleFrom = Literal["server", "client"]
"""The side that chooses the noise scale of a round."""


class PlainWeightsError(WireError):
    """A reply of plain weights, where clients were to perturb their updates."""


class NoStepError(Exception):
    """Raised when a round keeps the model as it is; its text is the reason."""


@dataclass(frozen=True)
class ServerStep:
    """A round's step x ← x − δ·direction.

    Parameters
    ----------
    direction : (d,) float32
        The direction, pointing uphill.
    rate : float
        The learning rate δ.
    exact : mapping of str to array
        The new values of the exact arrays.
    """

    direction: Float32
    rate: float
    exact: Arrays


@dataclass(frozen=True, eq=False)
class Question:
    """What one round asks of the clients, and how an answer to it is read.

    Parameters
    ----------
    server_round : int
        The round.
    model : mapping of str to array
        The model that the answers are about.
    layout : Layout
        Its layout.
    instruction : Instruction
        What clients are to send.
    state : RunState
        The run's state before the round.
    """

    server_round: int
    model: Arrays
    layout: Layout
    instruction: Instruction
    state: RunState

    @property
    def blocks(self) -> Blocks:
        """The blocks of what clients send."""
        return self.instruction.blocks(self.layout)

    def instruction_for(self, node: Node) -> Instruction:
        """Return what is asked of a node."""
        return self.instruction

    def sizes_of(self, payload: Payload) -> tuple[Float32, Float32]:
        """Return the noise scales and magnitudes of an accepted payload, (L,) each."""
        blocks = self.blocks
        return (
            self.instruction.scales_of(payload, blocks),
            self.instruction.magnitudes_of(payload, blocks),
        )

    def content_for(self, node: Node) -> Arrays:
        """Return the arrays that a node is sent: the whole model."""
        return self.model

    def read(self, node: Node, arrays: Arrays, scalars: Mapping[str, Any] | None) -> Payload:
        """Return a node's answer, judged alone.

        Plain weights, of a client without `perturb`, are as good as a vector without noise.

        Parameters
        ----------
        node : int or str
            The node.
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
        instruction, layout = self.instruction_for(node), self.layout
        noise = instruction.find(AddNoise)
        if scalars is not None:
            payload = Payload.decode(list(arrays.values()), scalars)
        elif isinstance(instruction.encoding, Vector) and noise is None:
            after = layout.named(arrays)
            update = layout.difference(self.model, after)
            # Without noise and signs there is nothing to draw.
            payload = perturb_update(instruction, layout, update, after, np.random.default_rng(0))
        else:
            raise PlainWeightsError(
                f"sent plain weights, was asked for {instruction.encoding.name!r} with noise "
                f"{None if noise is None else noise.noise!r}: does its ClientApp have "
                "mods=[perturb]?"
            )
        instruction.require_answer(payload, layout, self.model)
        return payload

    def move(self, step: ServerStep) -> Model:
        """Return the model after a step.

        Raises
        ------
        NoStepError
            If entries of it would not be finite that are now.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            model = self.layout.move(self.model, step.direction, step.rate, step.exact)
        if (name := first_spoiled(self.model, model)) is not None:
            raise NoStepError(f"its step would make array {name!r} NaN or infinite")
        return model


@dataclass(frozen=True)
class Recipe:
    """All that a run's model depends on, beside its initial model and the clients' answers.

    The fields are the arguments of `fedmedian.strategies.SignSGD` and `MedianSGD`, which describe
    them. They are what a checkpoint compares when a run resumes.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range, or arguments do not fit each other.
    """

    aggregator: Aggregator = DEFAULT_AGGREGATOR
    noise: Noise | None = DEFAULT_NOISE
    learning_rate: float | Schedule | None = None
    noise_at: NoiseAt = "client"
    weighted: bool = False
    optimizer: Optimizer | None = None
    client_steps: Sequence[ClientStep] = ()
    rotation: Rotation | None = DEFAULT_ROTATION
    scale_from: ScaleFrom = "server"
    exact: Sequence[str] = RUNNING_STATISTICS
    seed: int | None = None

    def __post_init__(self) -> None:
        wanted = "a rule such as Counts(), Majority() or Median()"
        require_type("aggregator", self.aggregator, Aggregator, wanted)
        require_choice("noise_at", self.noise_at, ("client", "server"))
        require_type("weighted", self.weighted, bool, "a bool")
        if self.optimizer is not None:
            require_type("optimizer", self.optimizer, Optimizer, "an optimizer such as Momentum()")
        _require_client_steps(self.client_steps)
        self._require_rotation()
        require_choice("scale_from", self.scale_from, ("server", "client"))
        for pattern in require_sequence("exact", self.exact, "strings"):
            require_type("exact", pattern, str, "a sequence of strings")
        if self.seed is not None:
            require_integer("seed", self.seed, low=0)
        self._resolve_noise()
        self._resolve_learning_rate()

    @property
    def client_noise(self) -> Noise | None:
        """The noise that clients add, or None if they add none."""
        at_client = self.noise_at == "client" and not self.aggregator.integrates_noise
        return self.noise if at_client else None

    @property
    def rule(self) -> ScaleRule | None:
        """The scale rule of the noise, or None without noise."""
        return None if self.noise is None else self.noise.rule

    def ask(self, state: RunState, server_round: int, model: Arrays, number: int = 0) -> Question:
        """Return a round's question.

        Parameters
        ----------
        state : RunState
            The run's state.
        server_round : int
            The round, >= 1.
        model : mapping of str to array
            The model that the clients are sent.
        number : int (default: 0)
            How many questions the round has asked before.

        Returns
        -------
        Question
            The question.

        Raises
        ------
        ValueError
            If an array of the model cannot be trained.
        """
        layout = Layout.of_model(model, self.exact)
        steps = self._steps(state, server_round, layout, layout.tied(model))
        instruction = Instruction(steps, server_round, self.seed, layout.exact_positions, number)
        return Question(server_round, model, layout, instruction, state)

    @property
    def usual_steps(self) -> tuple[ClientStep, ...]:
        """The client steps for a model of one block, as far as they are known before a round."""
        layout = Layout.of_model({"x": np.zeros(1, dtype=np.float32)})
        return self._steps(RunState(), 1, layout, ())

    def in_order(
        self, question: Question, answers: Sequence[Answer[Source]]
    ) -> list[Answer[Source]]:
        """Return answers in an order that does not depend on their arrival, if there is a seed."""
        if self.seed is None:
            return [*answers]
        # Sums of floats depend on the order.
        return sorted(answers, key=lambda one: one.key(*question.sizes_of(one.payload)))

    def step(
        self,
        question: Question,
        answers: Sequence[Answer[Any]],
        state: RunState,
        *,
        diagnostics: bool = True,
    ) -> tuple[ServerStep, RunState, Report]:
        """Return the step that a round's answers make.

        Parameters
        ----------
        question : Question
            The question that they answer.
        answers : sequence of M Answer
            The accepted answers, M >= 1. With a seed their order plays no part.
        state : RunState
            The run's state.
        diagnostics : bool (default: True)
            Whether the report says how votes agree and how much of the step is noise.

        Returns
        -------
        step : ServerStep
            The step.
        state : RunState
            The state after the round.
        report : dict
            Measurements of the round.

        Raises
        ------
        NoStepError
            If the optimizer's state would not be finite.
        """
        answers = self.in_order(question, answers)
        payloads = [answer.payload for answer in answers]
        used, reported = map(np.stack, zip(*map(question.sizes_of, payloads), strict=True))
        sizes = reported.astype(np.float64)
        claims = np.array([one.num_examples if self.weighted else 1.0 for one in answers])
        read = Answers(
            bodies=[payload.body for payload in payloads],
            weights=voting_weights(claims),
            blocks=question.blocks,
            noise=self.noise,
            scales=self._scales_in_force(question, state, used, sizes),
            magnitudes=sizes if self._is_measured else None,
            noise_at=None if self.aggregator.integrates_noise else self.noise_at,
            metrics=[answer.metrics for answer in answers],
            report={} if diagnostics else None,
        )
        direction, optimizer = self._direction(question, read, payloads, state)
        report: Report = {"replies-out-of-proportion": count_out_of_proportion(claims, sizes, used)}
        scales = None
        if self.rule is not None and read.scales is not None:
            report["noise-scale"] = self._reported_scales(read).tolist()
            before = self._scales(state, question.blocks, question.layout)
            scales = self.rule.following(before, sizes)
        rate = as_schedule(self.learning_rate)(question.server_round)
        require_real("learning_rate", rate, low=0.0, open_low=True)
        step = ServerStep(direction, rate, self._exact(question, payloads, read))
        following = state.following(question.blocks, question.layout, scales, optimizer)
        return step, following, {**report, **(read.report or {})}

    def _resolve_noise(self) -> None:
        if self.noise is not None:
            wanted = "a noise family such as Gaussian(0.1), or None"
            require_type("noise", self.noise, Noise, wanted)
            scaled = self.noise.with_scale(in_random_basis=self.rotation is not None)
            object.__setattr__(self, "noise", scaled)
        self.aggregator.require_noise(self.noise)
        if self.rule is not None and self.rule.tops_up and self.rotation is None:
            raise ValueError(
                f"rotation must be given with noise={self.noise!r}, got None: only in a random "
                "basis do noise and coordinates add up to normal ones; Gaussian(Adaptive(3.0)) "
                "is for the parameters' own"
            )
        noise = self.client_noise
        if noise is not None:
            NOISE_FAMILIES.require("noise", noise)
            AddNoise(noise).encode()  # raises if a parameter cannot travel
        chooses = noise is not None and noise.rule.magnitude is not None
        if self.scale_from == "client" and not chooses:
            raise ValueError(
                "scale_from must be 'server' unless clients add noise in proportion to what they "
                f"measure, got {self.scale_from!r} with client noise {noise!r}"
            )

    def _resolve_learning_rate(self) -> None:
        if self.learning_rate is None:
            usual = self.aggregator.usual_rate(self.noise)
            if usual is None:
                raise ValueError(
                    f"learning_rate must be given with aggregator={self.aggregator!r}, got None"
                )
            usual *= 1.0 if self.optimizer is None else self.optimizer.usual_rate
            object.__setattr__(self, "learning_rate", usual)
        as_schedule(self.learning_rate)  # raises if it is neither a number nor callable

    def _require_rotation(self) -> None:
        if self.rotation is None:
            return
        require_type("rotation", self.rotation, Rotation, "a Rotation(), or None")
        if self.rotation.seed is not None:
            raise ValueError(
                "rotation must be without a seed, one is drawn for each round, "
                f"got {self.rotation!r}"
            )

    def _steps(
        self,
        state: RunState,
        server_round: int,
        layout: Layout,
        tied: tuple[tuple[int, ...], ...],
    ) -> tuple[ClientStep, ...]:
        """Return the round's client steps: the user's, then those that noise and encoding need."""
        steps: list[ClientStep] = [Tied(tied)] if tied else []
        steps += self.client_steps
        if self.rotation is not None:
            steps.append(replace(self.rotation, seed=rotation_seed(self.seed, server_round)))
        if self.rule is not None and self.rule.magnitude is not None:
            steps.append(Measure(self.rule.magnitude))
        if self.client_noise is not None:
            blocks = layout.blocks
            for step in steps:
                blocks = step.blocks(blocks)
            steps.append(self._noise_step(self.client_noise, state, blocks, layout))
        return (*steps, self.aggregator.encoding)

    def _noise_step(
        self, noise: Noise, state: RunState, blocks: Blocks, layout: Layout
    ) -> AddNoise:
        scales = self._scales(state, blocks, layout)
        is_unknown = scales.size > 0 and bool(np.isnan(scales).all())
        is_own = self.scale_from == "client" or is_unknown
        add = TopUpNoise if noise.rule.tops_up else AddNoise
        told = None if is_own else scales.astype(np.float32)
        return add(noise, told, noise.rule.own_factor)

    def _scales(self, state: RunState, blocks: Blocks, layout: Layout) -> Scales:
        """Return the scales in force; NaN for a block whose scale follows from the answers."""
        assert self.rule is not None  # asked with noise alone
        known = state.scales(blocks, layout)
        first = self.rule.first(len(blocks), self.aggregator.encoding.name)
        return np.where(np.isnan(known), first, known)

    @property
    def _is_measured(self) -> bool:
        return self.rule is not None and self.rule.magnitude is not None

    def _scales_in_force(
        self, question: Question, state: RunState, used: Float32, sizes: NDArray[np.float64]
    ) -> Float32 | None:
        """Return each client's noise scales, or those that the server uses for all, (M, L)."""
        if self.rule is None:
            return None
        if self.client_noise is not None:
            return used
        known = self._scales(state, question.blocks, question.layout)
        found = np.where(np.isnan(known), self.rule.following(known, sizes), known)
        return np.asarray(np.broadcast_to(found.astype(np.float32), used.shape))

    def _direction(
        self,
        question: Question,
        read: Answers,
        payloads: Sequence[Payload],
        state: RunState,
    ) -> tuple[Float32, dict[str, State]]:
        """Return the optimizer's step in the parameters' own basis, and its state by array."""
        rng = server_rng(self.seed, question.server_round)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
            direction = self.aggregator.direction(read, rng)
            if read.magnitudes is not None:
                _keep_frozen(direction, read.blocks, read.magnitudes)
            direction = question.instruction.undo(direction, question.layout)
            question.layout.average_tied(direction, _still_tied(question.instruction, payloads))
            if self.optimizer is None:
                return direction, {}
            return _optimized(self.optimizer, direction, question.layout, state)

    def _reported_scales(self, read: Answers) -> Float32:
        assert read.scales is not None
        if self.client_noise is None:
            return np.asarray(read.scales[0])
        return np.asarray(agreed_size(read.scales), dtype=np.float32)

    def _exact(
        self, question: Question, payloads: Sequence[Payload], read: Answers
    ) -> dict[str, NDArray[Any]]:
        center = partial(self.aggregator.center, weights=read.weights)
        stacked = question.layout.stack_exact([payload.exact for payload in payloads])
        return {
            spec.name: spec.combine(values, center, question.model[spec.name])
            for spec, values in stacked
        }


def is_same(value: Any, other: Any) -> bool:
    """Return whether two values of an argument are the same."""
    return value is other or (type(value) is type(other) and bool(value == other))


def unusual(value: Any, usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass whose values are not the usual ones, by name."""
    own = {one.name: getattr(value, one.name) for one in fields(value)}
    return {name: it for name, it in own.items() if not is_same(it, usual[name])}


def require_sequence(name: str, value: Any, of: str) -> Sequence[Any]:
    """Return `value` if it is a sequence and no string, else raise TypeError."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence of {of}, got {value!r}")
    return value


def _require_client_steps(steps: Sequence[ClientStep]) -> None:
    names: set[str] = set()
    for index, step in enumerate(require_sequence("client_steps", steps, "client steps")):
        argument = f"client_steps[{index}]"
        CLIENT_STEPS.require(argument, step)
        if isinstance(step, Tied | Rotation | Measure | AddNoise | Encoding):
            raise ValueError(f"{argument} must not be one that strategies add, got {step!r}")
        if step.name in names:
            raise ValueError(f"{argument} must not be the second of its kind, got {step!r}")
        names.add(step.name)
        step.encode()  # raises if a parameter cannot travel


def _keep_frozen(direction: Float32, blocks: Blocks, magnitudes: NDArray[np.float64]) -> None:
    """Set to zero, in place, the step of blocks that at most t clients have moved.

    Noise that is still added to such a block would walk it, and so would t liars.
    """
    for part, size in zip(blocks.split(direction), agreed_size(magnitudes), strict=True):
        if size == 0:
            part[:] = 0


def _still_tied(instruction: Instruction, payloads: Sequence[Payload]) -> list[tuple[int, ...]]:
    """Return the groups that more than half of the clients report tied, and all but t of them.

    Of two clients both must: a liar that parts a tied group does no harm that clients' own next
    updates do not undo, and one that ties two layers would do so forever.
    """
    found = Counter(group for payload in payloads for group in instruction.still_tied(payload))
    enough = max(len(payloads) - num_tolerated(len(payloads)), len(payloads) // 2 + 1)
    return [group for group, count in found.items() if count >= enough]


def _optimized(
    optimizer: Optimizer, direction: Float32, layout: Layout, state: RunState
) -> tuple[Float32, dict[str, State]]:
    """Return the optimizer's step and its new state, array by array."""
    step, states = np.empty_like(direction), {}
    parts = zip(layout.flat, layout.blocks.split(direction), layout.blocks.split(step), strict=True)
    for spec, part, out in parts:
        # An optimizer replaces what it remembers: of the old state nothing is lost yet.
        states[spec.name] = own = dict(state.of(spec.name, spec.shape).optimizer)
        out[:] = optimizer.step(part, own)
        for key, value in own.items():
            if not np.isfinite(value).all():
                raise NoStepError(
                    f"its step would make {key!r} of the optimizer NaN or infinite in array "
                    f"{spec.name!r}"
                )
    return step, states
