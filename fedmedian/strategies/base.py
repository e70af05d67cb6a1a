"""What the strategies of the Message API share: Flower's messages around a `Core`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import BoundArguments, signature
from logging import INFO
from typing import Any, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedmedian.checks import require_type
from fedmedian.layout import Arrays
from fedmedian.randomness import seeded_sampling
from fedmedian.strategies import numpy_clients
from fedmedian.strategies.core import Answer, Core
from fedmedian.strategies.journal import Journal
from fedmedian.strategies.options import FedAvgOptions, Settings, StrategyOptions, split_options
from fedmedian.strategies.screening import (
    Roster,
    Screened,
    Usable,
    require_examples,
    with_usual_metrics,
)
from fedmedian.strategies.uplink import mean_reply_size
from fedmedian.wire import Payload, WireError, is_refusal, read_npy, write_npy

Record = TypeVar("Record")
EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]


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
    make_core : callable
        Returns what turns the clients' answers into a model, given the settings.
    options : dict
        See `SignSGD`.

    Attributes
    ----------
    core : Core
        What `make_core` returned.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    def __init__(self, make_core: Callable[[Settings], Core], options: StrategyOptions) -> None:
        self.numpy_clients = options.pop("numpy_clients", False)
        require_type("numpy_clients", self.numpy_clients, bool, "a bool")
        settings, fedavg = split_options(options, FedAvgOptions.__optional_keys__)
        if self.numpy_clients:
            for key in numpy_clients.KEYS:
                if key in fedavg:
                    raise ValueError(f"{key} must not be given with numpy_clients=True")
            fedavg |= numpy_clients.KEYS
        super().__init__(**fedavg)
        self.core = make_core(settings)
        self._roster = Roster()
        self._journal = Journal(settings.checkpoint)
        self._asked: Sequence[Message] = ()
        self._asked_to_evaluate: Sequence[Message] = ()

    @property
    def averaged_arrays(self) -> ArrayRecord | None:
        """The exponential average of the model so far; None without `average` or a round."""
        return None if self.core.average is None else _to_record(self.core.average)

    def start(self, *args: Any, **kwargs: Any) -> AveragedResult:
        """Run federated learning; see `flwr.serverapp.strategy.Strategy.start`.

        With a `checkpoint` that has been written, the rounds until then are not run again: what
        is returned and logged of them is what was stored.

        Returns
        -------
        AveragedResult
            Flower's Result, with ``averaged_arrays``.

        Raises
        ------
        ValueError
            If the checkpoint is not one of this run, or holds more rounds than it is to have.
        """
        if self.core.settings.checkpoint is not None:
            args, kwargs = self._go_on(signature(super().start).bind(*args, **kwargs))
        result = super().start(*args, **kwargs)
        self._journal.close(self.core)
        return AveragedResult(**vars(result), averaged_arrays=self.averaged_arrays)

    def summary(self) -> None:
        """Log the configuration of the strategy."""
        log(INFO, "\t├──> Noise: %s", self.core.noise)
        log(INFO, "\t├──> Learning rate: %s", self.core.learning_rate)
        log(INFO, "\t├──> %s", self.core.settings)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of training: FedAvg's messages with an instruction in each config."""
        if server_round <= self._journal.done:
            return []
        instruction = self.core.begin(server_round, _to_model(arrays))
        # The caller's config serves every round: it must not pick up our keys.
        told = ConfigRecord({**config, **instruction.encode()})
        with seeded_sampling(self.core.settings.seed, server_round):
            self._asked = list(super().configure_train(server_round, arrays, told, grid))
        return self._asked

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the usable replies into a new model, and report on the round."""
        journal = self._journal
        if server_round <= journal.done:
            model = journal.model if server_round == journal.done else None
            return _to_record(model), _to_metrics(journal.recall("train", server_round))
        number, replies = self.core.current.number, list(replies)
        if not replies and not self._asked:
            return None, None
        screened = self._screen("aggregate_train", self._asked, replies, self._read_answer)
        answers = screened.usable
        model, report = self.core.finish(answers)
        metrics: dict[str, Any] = {**screened.counts}
        if replies:
            metrics["uplink-bytes"] = mean_reply_size(replies)
        if answers:
            usual = with_usual_metrics(answers, lambda answer: answer.metrics)
            contents = [answer.source for answer in usual]
            own = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
            metrics = {**own, **metrics}
        metrics |= report
        journal.note("train", number, metrics)
        journal.end_round(self.core, model)
        return _to_record(model), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of evaluation as FedAvg does."""
        if server_round < self._journal.done:
            return []
        with seeded_sampling(self.core.settings.seed, server_round):
            messages = super().configure_evaluate(server_round, arrays, config, grid)
        if self.numpy_clients:
            messages = numpy_clients.as_evaluation(messages)
        self._asked_to_evaluate = list(messages)
        return self._asked_to_evaluate

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the usable replies' metrics as FedAvg does."""
        if server_round < self._journal.done:
            return _to_metrics(self._journal.recall("evaluate", server_round))
        asked, replies = self._asked_to_evaluate, list(replies)
        if not replies and not asked:
            return None
        screened = self._screen("aggregate_evaluate", asked, replies, self._read_evaluation)
        if not screened.usable:
            return None
        usual = with_usual_metrics(screened.usable, _only_metrics)
        metrics = self.evaluate_metrics_aggr_fn(usual, self.weighted_by_key)
        self._journal.note("evaluate", server_round, metrics)
        return metrics

    def _go_on(self, call: BoundArguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Open the checkpoint, and return how to call Flower's start so that the run goes on."""
        call.apply_defaults()
        self._journal.open(self.core, _to_model(call.arguments["initial_arrays"]))
        if (num_rounds := call.arguments["num_rounds"]) < self._journal.done:
            raise ValueError(
                f"num_rounds must be >= {self._journal.done}, the rounds that the checkpoint "
                f"holds, got {num_rounds}"
            )
        if (evaluate := call.arguments.get("evaluate_fn")) is not None:
            call.arguments["evaluate_fn"] = partial(self._evaluate, evaluate)
        return call.args, call.kwargs

    def _evaluate(
        self, evaluate: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        if server_round < self._journal.done:
            return _to_metrics(self._journal.recall("evaluate-server", server_round))
        metrics = evaluate(server_round, arrays)
        if metrics is not None:
            self._journal.note("evaluate-server", server_round, metrics)
        return metrics

    def _screen(
        self,
        phase: str,
        asked: Sequence[Message],
        replies: Sequence[Message],
        read: Callable[[int, RecordDict], Usable],
    ) -> Screened[Usable]:
        # Messages get their ids when they are sent. The reply of a node that failed comes from
        # the SuperLink, and only the id tells which one it speaks for.
        node_of = {m.metadata.message_id: m.metadata.dst_node_id for m in asked}
        readers = []
        for reply in replies:
            metadata = reply.metadata
            node = node_of.get(metadata.reply_to_message_id, metadata.src_node_id)
            readers.append((node, partial(self._read, reply, partial(read, node))))
        return self._roster.screen(phase, list(node_of.values()), readers)

    def _read(self, reply: Message, read: Callable[[RecordDict], Usable]) -> Usable:
        if reply.has_error():
            raise WireError(_describe(reply.error))
        content = reply.content
        return read(numpy_clients.read_reply(content) if self.numpy_clients else content)

    def _read_answer(self, node: int, content: RecordDict) -> Answer[RecordDict]:
        metrics = _only_metrics(content)
        num_examples = self._num_examples(metrics)
        scalars = next((r for r in content.config_records.values() if Payload.is_in(r)), None)
        payload = self.core.read(_to_model(_only("ArrayRecord", content.array_records)), scalars)
        self._roster.learn(node, payload.partition)
        return Answer(payload, num_examples, metrics, content)

    def _read_evaluation(self, node: int, content: RecordDict) -> RecordDict:
        self._num_examples(_only_metrics(content))
        return content

    def _num_examples(self, metrics: MetricRecord) -> float:
        return require_examples(self.weighted_by_key, metrics.get(self.weighted_by_key))


def _only(kind: str, records: Mapping[str, Record]) -> Record:
    if len(records) != 1:
        raise WireError(f"expected one {kind}, got {len(records)}")
    (record,) = records.values()
    return record


def _only_metrics(content: RecordDict) -> MetricRecord:
    return _only("MetricRecord", content.metric_records)


def _to_model(record: ArrayRecord) -> Arrays:
    return {name: read_npy(array.data) for name, array in record.items()}


def _describe(error: Error) -> str:
    description = f"error {error.code}: {error.reason}"
    if error.code == ErrorCode.MOD_FAILED_PRECONDITION and not is_refusal(error.reason or ""):
        description += " (perturb must be the first of a ClientApp's mods)"
    return description


def _to_record(model: Arrays | None) -> ArrayRecord | None:
    if model is None:
        return None
    return ArrayRecord(
        {
            name: Array(str(array.dtype), array.shape, "numpy.ndarray", write_npy(array))
            for name, array in model.items()
        }
    )


def _to_metrics(stored: Mapping[str, Any] | None) -> MetricRecord | None:
    return None if stored is None else MetricRecord(dict(stored))
