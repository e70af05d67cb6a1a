"""Rounds as values: what clients are asked, and the step that their answers make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import nan
from numbers import Real
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedmedian.aggregators.base import Aggregator, Answers, NoiseAt
from fedmedian.aggregators.diagnostics import Report
from fedmedian.aggregators.votes import Counts
from fedmedian.checks import (
    require_choice,
    require_integer,
    require_real,
    require_result,
    require_type,
)
from fedmedian.model.blocks import Blocks, Part
from fedmedian.model.layout import (
    RUNNING_STATISTICS,
    WITHOUT_EXACT,
    Arrays,
    Groups,
    Layout,
    Moving,
    in_order,
)
from fedmedian.privacy.sums import limit_of_entries
from fedmedian.randomness import rotation_seed, seed_of_pass, server_rng
from fedmedian.rounds.direction import Direction
from fedmedian.rounds.downlink import CodedSteps, Content, Held
from fedmedian.rounds.screening import Answer, Node, Said, Source
from fedmedian.rounds.state import RunState
from fedmedian.rules.noise import NOISE_FAMILIES, Gaussian, Noise
from fedmedian.rules.optimizers import Optimizer, State
from fedmedian.rules.scales import Adaptive, ScaleRule, Scales, TopUp, size_by_votes
from fedmedian.rules.schedules import Schedule
from fedmedian.rules.trust import (
    agreed_size,
    count_out_of_proportion,
    num_tolerated,
    voting_weights,
)
from fedmedian.secure.cohort import Place, SecureSum
from fedmedian.secure.opening import SumCohort, require_masked
from fedmedian.steps.base import CLIENT_STEPS, ClientStep
from fedmedian.steps.encodings import Encoding, Signs, Vector
from fedmedian.steps.instruction import LONGEST_SEED, Instruction, perturb_update
from fedmedian.steps.noise import AddNoise, Measure, SizeVotes, TopUpNoise
from fedmedian.steps.payload import Payload
from fedmedian.steps.rotation import Rotation
from fedmedian.steps.sums import VoteCounts, VotesLayout, masked_of
from fedmedian.steps.tied import Tied, average
from fedmedian.steps.updates import Clip, Limit
from fedmedian.wire.scalars import LARGEST, Float32, Float64, WireError, require_positive

Model = dict[str, NDArray[Any]]

DEFAULT_NOISE = Gaussian(TopUp())
DEFAULT_ROTATION = Rotation()
DEFAULT_AGGREGATOR = Counts()
NOTHING_HELD: Mapping[Node, str] = MappingProxyType({})

ScaleFrom = Literal["server", "client"]
"""The side that chooses the noise scale."""


class PlainWeightsError(WireError):
    """Raised when a client sends plain weights instead of a perturbed update."""


class NoStepError(Exception):
    """Raised when a round makes no step; the text is the reason."""


@dataclass(frozen=True, eq=False)
class Question:
    """What a round asks of its clients, and how their answers are read.

    Parameters
    ----------
    server_round : int
        The round.
    model : mapping of str to array
        The model that the step moves.
    layout : Layout
        Its layout.
    instruction : Instruction
        What clients are to send.
    state : RunState
        The run's state before the round.
    sent : mapping of str to array
        The model that clients train from: the same, or with a coded downlink the one they hold.
    versions : mapping of int or str to str
        The versions of the model that nodes hold, as far as the server knows.
    cohort : SumCohort, optional
        The nodes in its secure sum.
    without_place : frozenset of int or str (default: frozenset())
        The nodes that were to be asked, but have no place in it.
    """

    server_round: int
    model: Arrays
    layout: Layout
    instruction: Instruction
    state: RunState
    sent: Arrays
    versions: Mapping[Node, str]
    cohort: SumCohort[Node] | None = None
    without_place: frozenset[Node] = frozenset()

    @cached_property
    def places(self) -> Mapping[Node, Place]:
        """The nodes' places in its secure sum; none without one."""
        return {} if self.cohort is None else self.cohort.places()

    @property
    def key(self) -> tuple[int, int]:
        """The round, and the number of the question in it."""
        return self.server_round, self.instruction.question

    @cached_property
    def votes(self) -> VotesLayout:
        """The order of the votes in a secure sum."""
        return VotesLayout.of(self.instruction, self.layout)

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks of what clients send."""
        return self.instruction.blocks(self.layout)

    def content_for(self, node: Node) -> Content:
        """Return what a node is sent: the whole model, or coded steps to it."""
        held = self.state.held
        return self._whole if held is None else held.content_for(self.versions.get(node))

    @cached_property
    def _whole(self) -> Content:
        return Content(self.model)

    def read(self, node: Node, arrays: Arrays, scalars: Mapping[str, Any] | None) -> Payload:
        """Return the payload of a node's reply.

        Where clients send vectors without noise, plain weights of a client without `perturb` work
        too.

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
        instruction, layout = self.instruction, self.layout
        if scalars is not None:
            payload = Payload.decode(list(arrays.values()), scalars)
            if self.cohort is not None:
                instruction.require_question(payload)
                if node not in self.places:
                    raise WireError(
                        "has no place in this secure sum: one call of configure_train must ask all "
                        "nodes whose votes are summed"
                    )
                require_masked(masked_of(payload), self.places[node], self.votes.dim)
                return payload
        elif isinstance(instruction.encoding, Vector) and instruction.find(AddNoise) is None:
            after = layout.named(arrays)
            update = layout.difference(self.sent, after)
            # Without noise and signs there is nothing to draw.
            payload = perturb_update(instruction, layout, update, after, np.random.default_rng(0))
        else:
            noise = instruction.find(AddNoise)
            raise PlainWeightsError(
                f"sent plain weights, was asked for {instruction.encoding.name!r} with noise "
                f"{None if noise is None else noise.noise!r}: does its ClientApp have "
                "mods=[perturb], and does a subclass keep the keys 'fedmedian.…' of configs?"
            )
        instruction.require_answer(payload, layout, self.sent)
        return payload

    def counts(
        self, payloads: Sequence[Payload], total: VoteCounts | None
    ) -> tuple[VoteCounts | None, dict[str, VoteCounts]]:
        """Return the counts of signs, if only their sum is known, and of votes in steps' reports.

        Parameters
        ----------
        payloads : sequence of Payload
            The answers.
        total : (D,) integers, optional
            The sum of their votes where they are masked, in the order of `votes`.
        """
        if total is not None:
            return self.votes.split(total)
        names = [one.name for one in self.instruction.steps if isinstance(one, Tied | SizeVotes)]
        reports = {name: np.stack([one.reports[name] for one in payloads]) for name in names}
        return None, {name: one.sum(axis=0).astype(np.int64) for name, one in reports.items()}

    def answer(self, node: Node, said: Said[Source]) -> Answer[Source]:
        """Return the answer in a node's reply; see `read`."""
        payload = self.read(node, said.arrays, said.scalars)
        sizes = self.instruction.sizes_of(payload, self.blocks)
        own = node, said.num_examples, said.metrics, said.source
        return Answer(*own, payload, *sizes, held=payload.held)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run's model depends on, except the initial model and clients' answers.

    Its fields are arguments of `fedmedian.strategies.SignSGD` and `MedianSGD`, which describe them.
    A checkpoint compares them when a run resumes.

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
    downlink: CodedSteps | None = None
    secure: SecureSum | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        wanted = "a rule such as Counts(), Majority() or Median()"
        require_type("aggregator", self.aggregator, Aggregator, wanted)
        require_choice("noise_at", self.noise_at, get_args(NoiseAt))
        require_type("weighted", self.weighted, bool, "a bool")
        wanted = "an optimizer such as Momentum()"
        require_type("optimizer", self.optimizer, Optimizer | None, wanted)
        require_type("downlink", self.downlink, CodedSteps | None, "CodedSteps(), or None")
        _require_client_steps(self.client_steps)
        require_type("rotation", self.rotation, Rotation | None, "a Rotation(), or None")
        if self.rotation is not None and self.rotation.seed is not None:
            raise ValueError(
                "rotation must not have a seed, because each round draws one, "
                f"got {self.rotation!r}"
            )
        self._require_sums()
        require_choice("scale_from", self.scale_from, get_args(ScaleFrom))
        for pattern in require_sequence("exact", self.exact, "strings"):
            require_type("exact", pattern, str, "a sequence of strings")
        if self.seed is not None:
            seed = require_integer("seed", self.seed, low=0)
            if seed >= 10**LONGEST_SEED:
                raise ValueError(f"seed must be < 10**{LONGEST_SEED}, got a larger number")
            object.__setattr__(self, "seed", seed)
        self._resolve_noise()
        self._resolve_learning_rate()

    @property
    def client_noise(self) -> Noise | None:
        """The noise that clients add, or None if they add none."""
        return self.noise if self.noise_side == "client" else None

    @property
    def noise_side(self) -> NoiseAt | None:
        """The side that adds the noise, if any; None for neither."""
        return None if self.aggregator.integrates_noise else self.noise_at

    @property
    def rule(self) -> ScaleRule | None:
        """The scale rule of the noise, or None without noise."""
        return None if self.noise is None else self.noise.rule

    def ask(
        self,
        state: RunState,
        server_round: int,
        model: Arrays,
        number: int = 0,
        versions: Mapping[Node, str] = NOTHING_HELD,
        *,
        passes: int = 0,
    ) -> Question:
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
            The number of questions that the round has asked before.
        versions : mapping of int or str to str, optional
            See `Question`.
        passes : int (default: 0)
            How often the round has trained before.

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
        if self.secure is not None and (exact := [spec.name for spec in layout.exact]):
            raise ValueError(
                f"secure must be None with this model, got {self.secure!r}: arrays {exact} would "
                f"be sent exactly, and only votes are summed; {WITHOUT_EXACT}"
            )
        state = self.with_held(state, model, layout)
        sent = model if state.held is None else state.held.model
        # Clients know an array's place from what they are sent.
        model, layout = in_order(model, sent), layout.in_order(sent)
        seed = seed_of_pass(self.seed, server_round, passes)
        basis, tied = rotation_seed(seed, server_round), layout.tied(model)
        steps = self._steps(state, basis, layout, tied)
        instruction = Instruction(steps, server_round, seed, layout.exact_positions, number)
        return Question(server_round, model, layout, instruction, state, sent, versions)

    def with_held(self, state: RunState, model: Arrays, layout: Layout) -> RunState:
        """Return the state in which clients hold a model that follows the server's."""
        if self.downlink is None:
            return state
        held = Held.of(model) if state.held is None else state.held
        return replace(state, held=held.towards(model, layout, self.seed, self.downlink.bits))

    @property
    def usual_steps(self) -> tuple[ClientStep, ...]:
        """The client steps for a model of one block, known before any round."""
        layout = Layout.of_model({"x": np.zeros(1, dtype=np.float32)})
        return self._steps(RunState(), 0, layout, ())

    def in_order(self, answers: Sequence[Answer[Source]]) -> list[Answer[Source]]:
        """Return answers in an order that, with a seed, does not depend on their arrival."""
        # Sums of floats depend on the order.
        return [*answers] if self.seed is None else sorted(answers, key=lambda one: one.key)

    def step(
        self,
        question: Question,
        answers: Sequence[Answer[Any]],
        state: RunState,
        *,
        diagnostics: bool = True,
        total: VoteCounts | None = None,
        threads: int = 1,
    ) -> tuple[Model, RunState, Report]:
        """Return the model after a round.

        Parameters
        ----------
        question : Question
            The question.
        answers : sequence of M Answer
            The accepted answers, M >= 1. With a seed their order does not matter.
        state : RunState
            The run's state.
        diagnostics : bool (default: True)
            Whether the report says how votes agree and how much of the step is noise.
        total : (D,) integers, optional
            The sum of the answers' votes where they are masked, in the order of `Question.votes`.
        threads : int (default: 1)
            The number of threads. Nothing depends on it but the time.

        Returns
        -------
        model : dict of str to array
            The model.
        state : RunState
            The state after the round.
        report : dict
            Measurements of the round.

        Raises
        ------
        NoStepError
            If finite entries of the model or of the optimizer's state would become NaN or infinite.
        """
        answers = self.in_order(answers)
        payloads = [answer.payload for answer in answers]
        used = np.stack([answer.scales for answer in answers])
        sizes = np.stack([answer.magnitudes for answer in answers]).astype(np.float64)
        signs, counts = question.counts(payloads, total)
        voted = self._voted_sizes(question, counts, len(answers))
        if voted is not None:
            used = np.tile(voted[0], (len(answers), 1))
            sizes = np.tile(voted[1], (len(answers), 1))
        claims = np.array([one.num_examples if self.weighted else 1.0 for one in answers])
        read = Answers(
            bodies=[payload.body for payload in payloads] if total is None else (),
            weights=voting_weights(claims),
            blocks=question.blocks,
            noise=self.noise,
            scales=self._scales_in_force(question, state, used, sizes),
            magnitudes=sizes if self.rule and self.rule.magnitude else None,
            noise_at=self.noise_side,
            metrics=[answer.metrics for answer in answers],
            report={} if diagnostics else None,
            counts=signs,
        )
        model, optimizer = self._moved(question, read, payloads, counts, state, threads)
        report: Report = {"replies-out-of-proportion": count_out_of_proportion(claims, sizes, used)}
        scales = None
        if self.rule is not None and read.scales is not None:
            report["noise-scale"] = agreed_size(read.scales).tolist()
            before = self._scales(state, question.blocks, question.layout)
            scales = self._following(before, sizes) if voted is None else voted[2]
        following = state.following(question.blocks, question.layout, scales, optimizer)
        return model, following, {**report, **(read.report or {})}

    def _resolve_noise(self) -> None:
        if self.noise is not None:
            wanted = "a noise family such as Gaussian(0.1), or None"
            require_type("noise", self.noise, Noise, wanted)
            scaled = self.noise.with_scale(in_random_basis=self.rotation is not None)
            if self.secure is not None:
                scaled = replace(scaled, scale=_voted(scaled))
            object.__setattr__(self, "noise", scaled)
        self.aggregator.require_noise(self.noise)
        if self.rule is not None and self.rule.tops_up and self.rotation is None:
            raise ValueError(
                f"rotation must be given with noise={self.noise!r}, got None: this noise is made "
                "for a random basis; without a rotation use Gaussian(Adaptive(3.0))"
            )
        noise = self.client_noise
        if noise is not None:
            NOISE_FAMILIES.require("noise", noise)
            AddNoise(noise).encode()  # raises if a parameter cannot travel
        if self.rule is not None:
            self.rule.first(1, self.aggregator.encoding.name)  # raises if it knows no such encoding
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
                    f"learning_rate must be given with aggregator={self.aggregator!r}, such as "
                    "0.001, got None"
                )
            usual *= 1.0 if self.optimizer is None else self.optimizer.usual_rate
            object.__setattr__(self, "learning_rate", usual)
        if isinstance(self.learning_rate, type) or not callable(self.learning_rate):
            wanted = "a number, or a schedule such as Cosine(1.0, 100)"
            require_type("learning_rate", self.learning_rate, Real, wanted)
            object.__setattr__(
                self, "learning_rate", require_positive("learning_rate", self.learning_rate)
            )

    def _require_sums(self) -> None:
        """Raise if the server needs more than the sum of votes, but learns no more."""
        if self.secure is None:
            return
        require_type("secure", self.secure, SecureSum, "SecureSum(), or None")
        if not self.aggregator.takes_sums or type(self.aggregator.encoding) is not Signs:
            raise ValueError(
                "secure must be None unless the aggregator needs no more than the sum of votes, as "
                f"Counts() and Majority() do, got {self.secure!r} with {self.aggregator!r}"
            )
        for argument, allowed in (("weighted", False), ("scale_from", "server")):
            if (value := getattr(self, argument)) != allowed:
                raise ValueError(
                    f"{argument} must be {allowed!r} with secure={self.secure!r}, got {value!r}: "
                    "in a secure sum all votes have one weight and one noise scale"
                )
        for index, step in enumerate(self.client_steps):
            if step.reveals and type(step).num_votes is ClientStep.num_votes:
                raise ValueError(
                    f"client_steps[{index}] must report votes of 0 or 1 with secure="
                    f"{self.secure!r}, got {step!r}, which reports {step.reveals}"
                )

    def _steps(
        self, state: RunState, basis: int, layout: Layout, tied: Groups
    ) -> tuple[ClientStep, ...]:
        """Return a round's client steps: the user's, then those for noise and encoding."""
        steps: list[ClientStep] = [Tied(tied)] if tied else []
        steps += self.client_steps
        if self.rotation is not None:
            steps.append(replace(self.rotation, seed=basis))
        blocks = layout.blocks
        for step in steps:
            blocks = step.blocks(blocks)
        steps += self._limits(blocks)
        scales = np.zeros(0) if self.rule is None else self._scales(state, blocks, layout)
        steps += self._measures(scales)
        if self.client_noise is not None:
            steps.append(self._noise_step(self.client_noise, scales))
        return (*steps, self.aggregator.encoding)

    def _limits(self, blocks: Blocks) -> list[ClientStep]:
        """Return the limit of coordinates where a sum must hide a clipped update.

        It changes almost no update. Without a rotation, or in a small block, one entry can be all
        of it.
        """
        clip = next((one for one in self.client_steps if type(one) is Clip), None)
        if self.secure is None or clip is None:
            return []
        smallest = min(blocks.sizes, default=0)
        share = 1.0 if self.rotation is None else limit_of_entries(smallest)
        return [Limit(clip.norm * share)]

    def _measures(self, scales: Scales) -> list[ClientStep]:
        rule = self.rule
        if rule is None or rule.magnitude is None:
            return []
        if not rule.voted:
            return [Measure(rule.magnitude)]
        sizes = (scales / rule.own_factor).astype(np.float32)
        return [SizeVotes(rule.magnitude, None if np.isnan(sizes).all() else sizes)]

    def _noise_step(self, noise: Noise, scales: Scales) -> AddNoise:
        is_unknown = scales.size > 0 and bool(np.isnan(scales).all())
        is_own = self.scale_from == "client" or is_unknown
        add = TopUpNoise if noise.rule.tops_up else AddNoise
        told = None if is_own else scales.astype(np.float32)
        return add(noise, told, noise.rule.own_factor, noise.rule.voted)

    def _scales(self, state: RunState, blocks: Blocks, layout: Layout) -> Scales:
        """Return the scales in force; NaN for a block whose scale the answers set."""
        assert self.rule is not None  # only called with noise
        known = state.scales(blocks, layout)
        first = self.rule.first(known.size, self.aggregator.encoding.name)
        return np.where(np.isnan(known), first, known)

    def _following(self, scales: Scales, sizes: Float64) -> Scales:
        rule = self.rule
        assert rule is not None  # only called with noise
        return require_result(rule, rule.following(scales, sizes), scales.size, np.float64)

    def _voted_sizes(
        self, question: Question, counts: Mapping[str, VoteCounts], num_clients: int
    ) -> tuple[Float32, Scales, Scales] | None:
        """Return each block's scale, the size that it stands for, and its next scale.

        None unless clients vote on sizes.
        """
        rule = self.rule
        if rule is None or not rule.voted:
            return None
        step = question.instruction.find(SizeVotes)
        assert step is not None  # a rule that is voted on comes with one
        rungs = step.rungs(question.blocks)
        ends = np.cumsum([len(one) for one in rungs])
        above = np.split(counts[step.name], ends)[:-1]  # none without blocks
        known = np.array([nan if len(one) > 1 else one[0] for one in rungs], dtype=np.float64)
        pairs = zip(known, above, strict=True)
        found = np.array([size_by_votes(*one, num_clients, rule.quantile) for one in pairs])
        sizes = np.where(np.isnan(known), found, known)
        factor = float(rule.own_factor)  # an array times a fraction is no float64
        # Nothing is known of a block that has not moved.
        following = np.where(found == 0, nan, np.minimum(factor * found, LARGEST))
        return np.float32(factor) * sizes.astype(np.float32), sizes, following

    def _scales_in_force(
        self, question: Question, state: RunState, used: Float32, sizes: Float64
    ) -> Float32 | None:
        """Return the noise scales, (M, L): the clients' own, or the server's for all of them."""
        if self.rule is None:
            return None
        if self.noise_side == "client":
            return used
        known = self._scales(state, question.blocks, question.layout)
        found = np.where(np.isnan(known), self._following(known, sizes), known)
        return np.asarray(np.broadcast_to(found.astype(np.float32), used.shape))

    def _moved(
        self,
        question: Question,
        read: Answers,
        payloads: Sequence[Payload],
        counts: Mapping[str, VoteCounts],
        state: RunState,
        threads: int,
    ) -> tuple[Model, dict[str, State]]:
        """Return the model after a round, and the optimizer's state by array."""
        layout, rate = question.layout, self.learning_rate
        if callable(rate):
            now = question.server_round
            rate = require_real(f"learning_rate({now})", rate(now), low=0.0, open_low=True)
        assert rate is not None  # `_resolve_learning_rate` has set it
        moving = Moving(layout, question.model, rate)
        tied = _still_tied(question.instruction, counts, len(read.weights))
        # The others are moved as soon as a part of their direction is known.
        waiting = {index for group in tied for index in group}
        if self.optimizer is not None:
            waiting = {*range(len(layout.flat))}
        directions = {index: np.empty(layout.flat[index].size, np.float32) for index in waiting}

        def use(part: Part, direction: Float32) -> None:
            if part.block in directions:
                part.view(directions[part.block])[:] = direction
            else:
                moving.move(part, direction)

        rng = server_rng(question.instruction.seed, question.server_round)
        Direction(self.aggregator, read, question.instruction, layout, rng).hand_out(use, threads)
        average(directions, tied)
        states: dict[str, State] = {}
        for index in sorted(directions):
            step, spec = directions.pop(index), layout.flat[index]
            if self.optimizer is not None:
                # A copy: a step that fails must not change the state.
                states[spec.name] = own = dict(state.of(spec.name, spec.shape).optimizer)
                step = _optimized(self.optimizer, step, spec.name, own)
            moving.move(Part(index, 0, step.size), step[None])
        center = partial(self.aggregator.center, weights=read.weights)
        packed = [payload.exact for payload in payloads]
        model = moving.finish(layout.combine_exact(packed, center, question.model))
        if (name := moving.first_spoiled(model)) is not None:
            raise NoStepError(f"its step would make array {name!r} NaN or infinite")
        return model, states


def _voted(noise: Noise) -> ScaleRule:
    """Return the noise's scale rule, changed so that clients report no magnitudes."""
    rule = noise.rule
    if rule.magnitude is None or rule.voted:
        return rule
    if not isinstance(rule, Adaptive | TopUp):
        raise ValueError(
            f"noise must have a scale rule without magnitudes with secure sums, got {noise!r}"
        )
    return replace(rule, voted=True)


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
        if isinstance(step, Tied | Rotation | Limit | Measure | AddNoise | Encoding):
            raise ValueError(f"{argument} must not be one that strategies add, got {step!r}")
        if step.name in names:
            raise ValueError(f"{argument} must not be the second of its kind, got {step!r}")
        names.add(step.name)
        step.encode()  # raises if a parameter cannot travel


def _still_tied(
    instruction: Instruction, counts: Mapping[str, VoteCounts], num_clients: int
) -> list[tuple[int, ...]]:
    """Return the groups that more than half of the clients, and all but t, report as tied.

    Of two clients both must. A liar that separates a tied group does harm that the clients' next
    updates undo. One that ties two layers would do so forever.
    """
    step = instruction.find(Tied)
    if step is None:
        return []
    enough = max(num_clients - num_tolerated(num_clients), num_clients // 2 + 1)
    pairs = zip(step.groups, counts[step.name], strict=True)
    return [group for group, count in pairs if count >= enough]


def _optimized(optimizer: Optimizer, direction: Float32, name: str, state: State) -> Float32:
    """Return the optimizer's step of an array, and update its state."""
    with np.errstate(over="ignore", invalid="ignore"):
        step: Float32 = require_result(optimizer, optimizer.step(direction, state), direction.size)
    for key, value in state.items():
        if not np.isfinite(value).all():
            raise NoStepError(
                f"its step would make {key!r} of the optimizer NaN or infinite in array {name!r}"
            )
    return step
