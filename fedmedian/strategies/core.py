"""What a strategy does in a round, whichever of Flower's APIs carries its messages."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from logging import WARNING
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from flwr.common.logger import log
from numpy.typing import NDArray

from fedmedian.aggregation import Aggregate
from fedmedian.checks import require_real, require_type
from fedmedian.diagnostics import Report
from fedmedian.layout import Arrays, Layout
from fedmedian.noise import Noise
from fedmedian.optimizers import State
from fedmedian.perturbation import perturb_update
from fedmedian.scales import PayloadKind, Scales, Theory, quantile_of_positive
from fedmedian.schedules import Schedule, as_schedule
from fedmedian.strategies.options import Settings
from fedmedian.wire import Instruction, Payload, WireError

Weights = NDArray[np.float64]
Model = dict[str, NDArray[Any]]
Source = TypeVar("Source")


@dataclass(frozen=True)
class Round:
    """What the server must remember between asking the clients and hearing from them."""

    number: int
    arrays: Arrays
    layout: Layout
    instruction: Instruction


@dataclass(frozen=True)
class Answer(Generic[Source]):
    """A training reply that passed the screening.

    Parameters
    ----------
    payload : Payload
        What it says.
    num_examples : float
        The client's weight, > 0.
    metrics : mapping
        The client's own metrics.
    source : object
        The reply as Flower's API has it.
    """

    payload: Payload
    num_examples: float
    metrics: Mapping[str, Any]
    source: Source

    @property
    def key(self) -> tuple[float, bytes, str]:
        """What to sort by: metrics, which may hold times, only where all else is equal."""
        digest = blake2b()
        payload = self.payload
        for part in (payload.body, payload.dense, payload.scales, payload.magnitudes):
            digest.update(np.ascontiguousarray(part).data)
        return self.num_examples, digest.digest(), repr(self.metrics)


class Core(ABC):
    """The state of a run, and what becomes of a round's answers.

    Parameters
    ----------
    noise : Noise or None
        The noise family and scale rule.
    client_noise : Noise or None
        The same if the clients are to add the noise, else None.
    learning_rate : float or callable
        The server's step size δ, > 0, in x ← x − δ·step, or a schedule of it.
    weighted : bool
        Whether clients count in proportion to their examples.
    settings : Settings
        What all strategies can be told.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    kind: ClassVar[PayloadKind]
    """What the clients are asked to send."""

    def __init__(
        self,
        *,
        noise: Noise | None,
        client_noise: Noise | None,
        learning_rate: float | Schedule,
        weighted: bool,
        settings: Settings,
    ) -> None:
        if noise is not None:
            require_type("noise", noise, Noise, "a noise family such as Gaussian(0.1), or None")
        require_type("weighted", weighted, bool, "a bool")
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
        scales: NDArray[np.float32] | None,
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
            The noise scale of each array, the median client's where they differ; None without
            noise.
        current : Round
            The round they belong to.

        Returns
        -------
        Aggregate
            The direction and what to report about it.
        """

    @abstractmethod
    def combine_dense(self, stacked: NDArray[np.float64], weights: Weights) -> NDArray[np.float64]:
        """Combine the clients' values of one dense array, (M, *shape), into one, (*shape)."""

    @property
    def current(self) -> Round:
        """The round that has begun.

        Raises
        ------
        RuntimeError
            If none has.
        """
        if self._round is None:
            raise RuntimeError("replies were aggregated before a round was configured")
        return self._round

    @property
    def identity(self) -> dict[str, Any]:
        """What two halves of one run have in common, by name."""
        optimizer = self.settings.optimizer
        return {
            "kind": self.kind,
            "optimizer": None if optimizer is None else repr(optimizer),
            "seed": self.settings.seed,
        }

    @property
    def state(self) -> dict[str, Arrays]:
        """What the next round depends on beside the model, in groups."""
        scales = {} if self._scales is None else {"scales": self._scales}
        average = {} if self.average is None else {"average": self.average}
        return {"optimizer": self._optimizer_state, "scales": scales, **average}

    def restore(self, state: Mapping[str, Arrays]) -> None:
        """Take over what `state` was in another process, or earlier in this one."""
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
        layout = Layout.of(model, self.settings.dense)
        if server_round == 1:
            self._forget(layout)
        instruction = self._instruction(server_round, layout)
        self._round = Round(server_round, model, layout, instruction)
        return instruction

    def read(self, arrays: Arrays, scalars: Mapping[str, Any] | None) -> Payload:
        """Read a reply, and make sure that it answers the instruction.

        Plain weights, from a client that is not perturbed, are as good as a vector without noise.

        Parameters
        ----------
        arrays : mapping of str to array
            The reply's arrays.
        scalars : mapping or None
            Where the reply's payload says what it is; None for plain weights.

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
        elif instruction.kind == "vector" and instruction.noise is None:
            after = layout.named(arrays)
            update = layout.difference(current.arrays, after)
            # Without noise and signs there is nothing to draw.
            payload = perturb_update(instruction, layout, update, after, np.random.default_rng(0))
        else:
            raise WireError(
                f"sent plain weights, was asked for {instruction.kind!r} with noise "
                f"{instruction.noise!r}: does its ClientApp have mods=[perturb]?"
            )
        payload.require_answer(instruction, layout)
        return payload

    def finish(self, answers: list[Answer[Source]]) -> tuple[Model | None, Report]:
        """Turn the accepted answers into the next model.

        Parameters
        ----------
        answers : list of Answer
            The accepted answers; with a seed they are put into an order of their own.

        Returns
        -------
        model : dict of str to array or None
            The new model; None if there are too few answers, and the model stays as it is.
        report : dict
            What to report about the round.
        """
        current, settings = self.current, self.settings
        if len(answers) < settings.min_replies:
            log(
                WARNING,
                "round %d keeps the model as it is: %d usable replies, min_replies is %d",
                current.number,
                len(answers),
                settings.min_replies,
            )
            return None, {}
        if settings.seed is not None:
            # Replies arrive in any order, and sums of floats depend on it.
            answers.sort(key=lambda answer: answer.key)
        payloads = [answer.payload for answer in answers]
        weights = self._weights(answers)
        magnitudes = np.stack([payload.magnitudes for payload in payloads]).astype(np.float64)
        scales = self._scales_in_force(payloads, magnitudes)
        report: Report = {} if scales is None else {"noise-scale": scales.tolist()}
        aggregate = self.aggregate_payloads(payloads, weights, scales, current)
        model = self._step(current, payloads, weights, aggregate.direction)
        if self.noise is not None:
            self._scales = self.noise.rule.following(self._scales, magnitudes)
        if settings.average is not None:
            self.average = _blend(self.average, model, settings.average)
        return model, {**report, **aggregate.diagnostics}

    def _scales_in_force(
        self, payloads: Sequence[Payload], magnitudes: NDArray[np.float64]
    ) -> NDArray[np.float32] | None:
        if self.noise is None:
            return None
        if self.client_noise is not None:
            used = np.stack([payload.scales for payload in payloads])
            return quantile_of_positive(used, 0.5).astype(np.float32)
        scales = self._scales
        if scales is None:
            scales = self.noise.rule.following(None, magnitudes)
        return np.asarray(scales, dtype=np.float32)

    def _forget(self, layout: Layout) -> None:
        """Start afresh: the first round of a run knows of no other."""
        rule = self.noise.rule if self.noise is not None else None
        self._scales = rule.first(len(layout.voted), self.kind) if rule is not None else None
        self._optimizer_state = {}
        self.average = None

    def _instruction(self, server_round: int, layout: Layout) -> Instruction:
        noise, settings = self.client_noise, self.settings
        rule = self.noise.rule if self.noise is not None else None
        told = noise is not None and self._scales is not None and settings.noise_from == "server"
        return Instruction(
            kind=self.kind,
            noise=noise.name if noise is not None else None,
            scales=np.asarray(self._scales, dtype=np.float32) if told else None,
            factor=rule.factor if rule is not None else 1.0,
            of=rule.of if rule is not None else None,
            clip=settings.clip,
            server_round=server_round,
            seed=settings.seed,
            dense=layout.dense_positions,
            divisor=settings.client_learning_rate,
            momentum=settings.client_momentum,
        )

    def _step(
        self,
        current: Round,
        payloads: Sequence[Payload],
        weights: Weights,
        direction: NDArray[np.float32],
    ) -> Model:
        if self.settings.optimizer is not None:
            direction = self.settings.optimizer.step(direction, self._optimizer_state)
        rate = require_real("learning_rate", self._schedule(current.number), low=0.0, open_low=True)
        dense = current.layout.combine_dense(
            [payload.dense for payload in payloads],
            lambda stacked: self.combine_dense(stacked, weights),
        )
        direction *= np.float32(rate)  # in place: a copy may be as large as the model
        return current.layout.move(current.arrays, direction, dense)

    def _weights(self, answers: Sequence[Answer[Any]]) -> Weights:
        examples = np.array([answer.num_examples if self.weighted else 1.0 for answer in answers])
        examples /= examples.max()  # the sum of what clients claim may overflow
        return np.asarray(examples / examples.sum())


def theory_rate(noise: Noise | None, kind: PayloadKind) -> float | None:
    """Return the learning rate that goes with a noise scale by `Theory`; None for other rules."""
    rule = noise.rule if isinstance(noise, Noise) else None
    return rule.learning_rate(kind) if isinstance(rule, Theory) else None


def _blend(old: Arrays | None, new: Arrays, decay: float) -> Model:
    """Return decay·old + (1 − decay)·new of floating-point arrays, and the new of others."""
    if old is None:
        return dict(new)
    return {
        name: np.asarray(decay * old[name] + (1 - decay) * array).astype(array.dtype)
        if np.issubdtype(array.dtype, np.inexact)
        else array
        for name, array in new.items()
    }
