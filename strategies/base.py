"""What the strategies share: a round from its instruction to the new model."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from logging import INFO, WARNING
from typing import Any, ClassVar, Unpack

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from numpy.typing import NDArray

from fedmedian.aggregation import Aggregate
from fedmedian.checks import require_real, require_type
from fedmedian.layout import Arrays, Layout
from fedmedian.noise import Noise
from fedmedian.optimizers import State
from fedmedian.scales import PayloadKind, Scales, Theory, quantile_of_positive
from fedmedian.schedules import Schedule, as_schedule
from fedmedian.strategies.options import StrategyOptions, split_options
from fedmedian.strategies.screening import (
    Answer,
    read_answer,
    read_num_examples,
    screen,
    with_usual_metrics,
)
from fedmedian.wire import Instruction, Payload, read_npy, serialized_size

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """What the server must remember between asking the clients and hearing from them."""

    number: int
    arrays: Arrays
    layout: Layout
    instruction: Instruction
    messages: Sequence[Message]


@dataclass
class AveragedResult(Result):
    """Flower's Result of a run, with the average of the model over the rounds beside the last.

    Parameters
    ----------
    averaged_arrays : ArrayRecord or None
        The exponential average, or None if the strategy keeps none.
    """

    averaged_arrays: ArrayRecord | None = None


class PerturbedStrategy(FedAvg):
    """A Flower strategy whose clients perturb their updates as the server tells them.

    It samples nodes, builds messages and aggregates metrics as FedAvg does. Each reply is
    screened on its own: one that cannot be used is counted, logged with the reason and dropped.

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
    **options
        See `SignSGD`.

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
        **options: Unpack[StrategyOptions],
    ) -> None:
        if noise is not None:
            require_type("noise", noise, Noise, "a noise family such as Gaussian(0.1), or None")
        require_type("weighted", weighted, bool, "a bool")
        self.settings, fedavg = split_options(options)
        super().__init__(**fedavg)
        self.noise = noise
        self.client_noise = client_noise
        self.learning_rate = learning_rate
        self.weighted = weighted
        self._schedule = as_schedule(learning_rate)
        self._scales: Scales = None
        self._optimizer_state: State = {}
        self._average: dict[str, NDArray[Any]] | None = None
        self._round: Round | None = None
        self._evaluation: Sequence[Message] = ()

    @property
    def averaged_arrays(self) -> ArrayRecord | None:
        """The exponential average of the model so far; None without `average` or a round."""
        return None if self._average is None else _to_record(self._average)

    @abstractmethod
    def aggregate_payloads(
        self, payloads: list[Payload], weights: Weights, current: Round
    ) -> Aggregate:
        """Return the direction that the accepted payloads add up to.

        Parameters
        ----------
        payloads : list of M Payload
            The accepted answers, M >= 1.
        weights : (M,) float64
            The clients' weights, which add up to 1.
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

    def start(self, *args: Any, **kwargs: Any) -> AveragedResult:
        """Run federated learning; see `flwr.serverapp.strategy.Strategy.start`.

        Returns
        -------
        AveragedResult
            Flower's Result, with ``averaged_arrays``.
        """
        result = super().start(*args, **kwargs)
        return AveragedResult(**vars(result), averaged_arrays=self.averaged_arrays)

    def summary(self) -> None:
        """Log the configuration of the strategy."""
        log(INFO, "\t├──> Noise: %s", self.noise)
        log(INFO, "\t├──> Learning rate: %s", self.learning_rate)
        log(INFO, "\t├──> %s", self.settings)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of training: FedAvg's messages with an instruction in each config."""
        model = {name: read_npy(array.data) for name, array in arrays.items()}
        layout = Layout.of(model, self.settings.dense)
        if server_round == 1:
            self._forget(layout)
        instruction = self._instruction(server_round, layout)
        # The caller's config serves every round: it must not pick up our keys.
        told = ConfigRecord({**config, **instruction.encode()})
        messages = list(super().configure_train(server_round, arrays, told, grid))
        self._round = Round(server_round, model, layout, instruction, messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the usable replies into a new model, and report on the round."""
        if self._round is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        current, replies = self._round, list(replies)
        if not replies:
            return None, None
        answers = self._screen(current, replies)
        report: dict[str, int | float | list[int] | list[float]] = {
            "replies-accepted": len(answers),
            "replies-rejected": len(replies) - len(answers),
            "uplink-bytes": _mean_size(replies),
        }
        if not answers:
            log(WARNING, "aggregate_train: no usable reply, the model stays as it is")
            return None, MetricRecord(report)
        payloads = [answer.payload for answer in answers]
        weights = self._weights(answers)
        magnitudes = np.stack([payload.magnitudes for payload in payloads]).astype(np.float64)
        if self.noise is not None:
            report["noise-scale"] = self._scales_in_force(payloads, magnitudes).tolist()
        aggregate = self.aggregate_payloads(payloads, weights, current)
        model = self._step(current, payloads, weights, aggregate.direction)
        if self.noise is not None:
            self._scales = self.noise.rule.following(self._scales, magnitudes)
        if self.settings.average is not None:
            self._average = _blend(self._average, model, self.settings.average)
        contents = with_usual_metrics([answer.content for answer in answers])
        metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return _to_record(model), MetricRecord({**metrics, **report, **aggregate.diagnostics})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of evaluation as FedAvg does."""
        messages = super().configure_evaluate(server_round, arrays, config, grid)
        self._evaluation = list(messages)
        return self._evaluation

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the usable replies' metrics as FedAvg does."""

        def read(content: RecordDict) -> RecordDict:
            read_num_examples(content, self.weighted_by_key)
            return content

        replies = list(replies)
        if not replies:
            return None
        contents = screen(replies, read, _nodes(self._evaluation), "aggregate_evaluate")
        if not contents:
            return None
        return self.evaluate_metrics_aggr_fn(with_usual_metrics(contents), self.weighted_by_key)

    def _forget(self, layout: Layout) -> None:
        """Start afresh: the first round of a run knows of no other."""
        rule = self.noise.rule if self.noise is not None else None
        self._scales = rule.first(len(layout.voted), self.kind) if rule is not None else None
        self._optimizer_state = {}
        self._average = None

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

    def _scales_in_force(
        self, payloads: Sequence[Payload], magnitudes: NDArray[np.float64]
    ) -> NDArray[np.float32]:
        """Return the noise scale of each array, (L,): the median client's where they differ."""
        if self.client_noise is not None:
            used = np.stack([payload.scales for payload in payloads])
            return quantile_of_positive(used, 0.5).astype(np.float32)
        assert self.noise is not None
        scales = self._scales
        if scales is None:
            scales = self.noise.rule.following(None, magnitudes)
        return np.asarray(scales, dtype=np.float32)

    def _step(
        self,
        current: Round,
        payloads: Sequence[Payload],
        weights: Weights,
        direction: NDArray[np.float32],
    ) -> dict[str, NDArray[Any]]:
        if self.settings.optimizer is not None:
            direction = self.settings.optimizer.step(direction, self._optimizer_state)
        rate = require_real("learning_rate", self._schedule(current.number), low=0.0, open_low=True)
        dense = current.layout.combine_dense(
            [payload.dense for payload in payloads],
            lambda stacked: self.combine_dense(stacked, weights),
        )
        direction *= np.float32(rate)  # in place: a copy may be as large as the model
        return current.layout.move(current.arrays, direction, dense)

    def _screen(self, current: Round, replies: Sequence[Message]) -> list[Answer]:
        def read(content: RecordDict) -> Answer:
            return read_answer(
                content, current.instruction, current.layout, current.arrays, self.weighted_by_key
            )

        answers = screen(replies, read, _nodes(current.messages), "aggregate_train")
        if self.settings.seed is not None:
            # Replies arrive in any order, and sums of floats depend on it.
            answers.sort(key=_content_key)
        return answers

    def _weights(self, answers: Sequence[Answer]) -> Weights:
        examples = np.array([answer.num_examples if self.weighted else 1.0 for answer in answers])
        examples /= examples.max()  # the sum of what clients claim may overflow
        return np.asarray(examples / examples.sum())


def theory_rate(noise: Noise | None, kind: PayloadKind) -> float | None:
    """Return the learning rate that goes with a noise scale by `Theory`; None for other rules."""
    rule = noise.rule if isinstance(noise, Noise) else None
    return rule.learning_rate(kind) if isinstance(rule, Theory) else None


def _to_record(model: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in model.items()})


def _blend(old: Arrays | None, new: Arrays, decay: float) -> dict[str, NDArray[Any]]:
    """Return decay·old + (1 − decay)·new of floating-point arrays, and the new of others."""
    if old is None:
        return dict(new)
    return {
        name: np.asarray(decay * old[name] + (1 - decay) * array).astype(array.dtype)
        if np.issubdtype(array.dtype, np.inexact)
        else array
        for name, array in new.items()
    }


def _mean_size(messages: Sequence[Message]) -> float:
    with no_object_id_recompute():
        return sum(_size(message) for message in messages) / len(messages)


def _size(message: Message) -> int:
    """Return a reply's size as sent, to within some bytes of its headers.

    Flower hashes whatever it serialises; hashing the arrays' data would take longer than the rest
    of the round, so that markers stand in for it.
    """
    if not message.has_content():
        return serialized_size(message)
    content = RecordDict(dict(message.content))
    num_bytes = 0
    for key, record in message.content.array_records.items():
        light = ArrayRecord()
        for position, (name, array) in enumerate(record.items()):
            marker = str(position).encode()  # equal objects would be sent once
            light[name] = Array(array.dtype, array.shape, array.stype, marker)
            num_bytes += len(array.data) - len(marker)
        content[key] = light
    return num_bytes + serialized_size(Message(content=content, metadata=message.metadata))  # type: ignore[call-overload]


def _nodes(messages: Sequence[Message]) -> dict[str, int]:
    """Return which node each message went to; messages get their ids when they are sent."""
    return {m.metadata.message_id: m.metadata.dst_node_id for m in messages}


def _content_key(answer: Answer) -> tuple[float, bytes, str]:
    """Return what to sort by: metrics, which may hold times, only where all else is equal."""
    payload = answer.payload
    digest = blake2b()
    for part in (payload.body, payload.dense, payload.scales, payload.magnitudes):
        digest.update(np.ascontiguousarray(part).data)
    return answer.num_examples, digest.digest(), repr(answer.content.metric_records)
