"""The part of the strategies that speaks Flower's Message API."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from logging import INFO
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedmedian.aggregators.diagnostics import without_lists
from fedmedian.checks import require_type
from fedmedian.logs import text_of
from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.records import to_arrays, to_record
from fedmedian.rounds.core import Core
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.mechanism import mechanism_of_strategy
from fedmedian.rounds.metrics import fair_examples, require_examples, try_to_aggregate
from fedmedian.rounds.protocol import RoundProtocol, Said, paused_collector
from fedmedian.rounds.screening import Node, Reply
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import Payload
from fedmedian.strategies import numpy_clients as numpy_messages
from fedmedian.strategies.arguments import Argument, ShowsArguments, differing
from fedmedian.strategies.options import FedAvgOptions, require_fedavg_options
from fedmedian.strategies.sizes import mean_size, mean_sizes_of_training
from fedmedian.strategies.wrappers import require_no_unfit_wrapper
from fedmedian.wire.scalars import EVALUATION, WIRE_VERSION, WireError

Record = TypeVar("Record")
EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(repr=False)
class AveragedResult(Result):
    """Flower's Result of a run, with the average of the model over the rounds beside the last.

    Parameters
    ----------
    averaged_arrays : ArrayRecord or None
        The exponential average, or None if the strategy keeps none.
    """

    averaged_arrays: ArrayRecord | None = None

    def __repr__(self) -> str:
        reports = self.train_metrics_clientapp
        short = Result(
            self.arrays,
            {number: MetricRecord(without_lists(report)[0]) for number, report in reports.items()},
            self.evaluate_metrics_clientapp,
            self.evaluate_metrics_serverapp,
        )
        if self.averaged_arrays is None:
            return repr(short)
        megabytes = sum(len(array.data) for array in self.averaged_arrays.values()) / 1024**2
        return f"{short!r}\nAveraged Arrays:\n\tArrayRecord ({megabytes:.3f} MB)\n"


class MessageStrategy(ShowsArguments, FedAvg):
    """A Flower strategy whose clients perturb their updates as the server tells them.

    It samples nodes, builds messages and aggregates metrics as FedAvg does. Each reply is
    screened on its own: one that cannot be used is counted, logged with the reason and dropped.

    Parameters
    ----------
    core : Core
        The way from the clients' answers to a model.
    numpy_clients : bool
        Whether the clients are NumPyClients.
    fedavg : dict
        The arguments of `flwr.serverapp.strategy.FedAvg`.

    Attributes
    ----------
    core : Core
        See above.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    def __init__(self, core: Core, numpy_clients: bool, fedavg: FedAvgOptions) -> None:
        require_type("numpy_clients", numpy_clients, bool, "a bool")
        require_fedavg_options(type(self), fedavg, FedAvgOptions.__optional_keys__)
        if numpy_clients:
            for key in numpy_messages.KEYS:
                if key in fedavg:
                    raise ValueError(f"{key} must not be given with numpy_clients=True")
            fedavg = {**fedavg, **numpy_messages.KEYS}
        super().__init__(**fedavg)
        self.core = core
        self._numpy_clients = numpy_clients
        ledger = Ledger.of_strategy(core, self.fraction_train, self.fraction_evaluate)
        self._protocol = RoundProtocol(core, ledger=ledger)
        self._asked: Sequence[Message] = ()
        self._asked_to_evaluate: Sequence[Message] = ()
        self._model: ArrayRecord | None = None
        self._per_block: dict[int, dict[str, Any]] = {}

    numpy_clients = Argument[bool]()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments in force, by name; Flower's own are attributes that may be set."""
        return {**super().arguments, "numpy_clients": self._numpy_clients}

    def _unusual_of_flower(self) -> Mapping[str, Any]:
        usual, own = FedAvg(), {}
        if self._numpy_clients:
            usual, own = FedAvg(**numpy_messages.KEYS), {"numpy_clients": True}
        return own | differing(self, usual, [*FedAvgOptions.__annotations__])

    @property
    def averaged_arrays(self) -> ArrayRecord | None:
        """The exponential average of the model so far; None without a decay or a round."""
        return None if self.core.average is None else to_record(self.core.average)

    @property
    def privacy(self) -> Mechanism | NoMechanism:
        """What clients release in a round, or the reasons why it has no bound.

        It holds for clients that do as they are told; a `fedmedian.clients.Policy` of their own
        sees to that, and to the metrics that their apps send. What may be in the way in the model
        is known once a round has begun.
        """
        return mechanism_of_strategy(self.core, self.fraction_evaluate, self.core.begun)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFunction | None = None,
        **newer: Any,
    ) -> AveragedResult:
        """Run federated learning; see `flwr.serverapp.strategy.Strategy.start`.

        With a `checkpoint` that has been written, the rounds until then are not run again: what
        is returned and logged of them is what was stored. With a `privacy_budget` the run ends
        before a round that would exceed it, and the Result is that of the rounds before. What a
        round reports of each block, a list for the noise scales and one for signal to noise, is in
        the Result alone and not in the log.

        Parameters
        ----------
        grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As for Flower's strategies.
        **newer
            Arguments that newer versions of Flower have.

        Returns
        -------
        AveragedResult
            Flower's Result, with ``averaged_arrays``.

        Raises
        ------
        TypeError
            If the initial arrays are not an ArrayRecord.
        ValueError
            If the checkpoint is not one of this run, is damaged, or holds more rounds than the
            run is to have; if the privacy budget is spent before the first round, or something in
            the model is in the way of a mechanism.
        RunFailedError
            If `max_failed_rounds` rounds in a row have made no new model, or all clients of the
            first have sent plain weights, with the commonest reason; if no client was ever asked.
        RuntimeError
            If another run has the checkpoint's folder, or a subclass changes the model that the
            checkpoint holds before the run resumes from it.
        OSError
            If checkpoints cannot be written there. Once the first round has begun, that is a
            warning each time, and an error in the log at the end.
        """
        if not isinstance(initial_arrays, ArrayRecord):
            raise TypeError(
                "initial_arrays must be an ArrayRecord, such as ArrayRecord(model.state_dict()), "
                f"got a {type(initial_arrays).__name__}"
            )
        self._per_block = {}
        journal = self._protocol.journal
        self._protocol.open(to_arrays(initial_arrays))
        if self.core.settings.checkpoint is not None and evaluate_fn is not None:
            evaluate_fn = partial(self._evaluate, evaluate_fn)
        try:
            if num_rounds < journal.done:
                raise ValueError(
                    f"num_rounds must be >= {journal.done}, the rounds that the checkpoint "
                    f"holds, got {num_rounds}"
                )
            affordable = self._protocol.affordable(num_rounds)
            result = super().start(
                grid,
                initial_arrays,
                affordable,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
                **newer,
            )
            journal.close(self.core)
            self._protocol.say_totals()
            self._protocol.say_why_it_ends(affordable, num_rounds)
            self._protocol.require_somebody(
                f"fraction_train={self.fraction_train} and min_train_nodes={self.min_train_nodes}",
                trains=self.fraction_train > 0,
            )
        finally:
            self._protocol.release()
        reports = result.train_metrics_clientapp
        for server_round, lists in self._per_block.items():
            reports[server_round] = MetricRecord({**reports[server_round], **lists})
        return AveragedResult(**vars(result), averaged_arrays=self.averaged_arrays)

    def summary(self) -> None:
        """Log the configuration of the strategy: what is not as usual, then FedAvg's.

        Raises
        ------
        ValueError
            If one of Flower's wrappers that it does not work with wraps it.
        """
        require_no_unfit_wrapper(self)
        own = ", ".join(f"{name}={value!r}" for name, value in self.core.unusual.items())
        log(INFO, "\t├──> %s", own or "all defaults")
        if (line := self._protocol.describe_privacy(self.privacy)) is not None:
            log(INFO, "\t├──> %s", line)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of training: FedAvg's messages with an instruction in each config.

        Raises
        ------
        ValueError
            If one of Flower's wrappers that it does not work with wraps it, or a subclass's
            messages lack the instruction.
        """
        require_no_unfit_wrapper(self)
        instruction = self._protocol.ask(server_round, to_arrays(arrays))
        self._model, self._asked = arrays, ()
        if instruction is None:
            return []
        # The caller's config serves every round: it must not pick up our keys.
        mu = self.core.settings.proximal_mu
        proximal = {} if mu is None else {"proximal-mu": mu}
        told = ConfigRecord({**config, **proximal, **instruction.encode()})
        with self._protocol.sampling(server_round):
            nodes = _CountingGrid(grid)
            asked = list(super().configure_train(server_round, arrays, told, cast(Grid, nodes)))
        if not all(map(_is_instructed, asked)):
            raise ValueError(
                "messages of training lack the server's instruction: _construct_messages must keep "
                "the keys 'fedmedian.…' of the config that it is given"
            )
        self._asked = asked if self._protocol.may_ask(len(asked), nodes.present) else []
        return self._asked

    @paused_collector()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the usable replies into a new model, and report on the round."""
        journal = self._protocol.journal
        if server_round <= journal.done:
            # In every round, so that a run that somebody else drives and that ends early has it.
            recalled = journal.recall("train", server_round)
            return _to_record(journal.model), self._without_lists(server_round, recalled)
        replies = list(replies)
        sent, self._asked = _sent(self._asked, replies), ()
        if not replies and not sent:
            self._protocol.pass_over()
            return None, None
        asked, replies_of = _by_node(sent, replies)
        heard = self._protocol.hear(asked, replies_of, self._read)
        sizes = self._count(sent, replies, self._model)
        own = self._aggregate("train_metrics_aggr_fn", heard.usual) if heard.usual else None
        metrics = self._protocol.end(heard, sizes, own or {})
        return _to_record(heard.model), self._without_lists(server_round, metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of evaluation as FedAvg does."""
        if server_round < self._protocol.journal.done:
            return []
        told = ConfigRecord(dict(config))
        if not self._may_read_arrays():
            told[EVALUATION] = WIRE_VERSION
        with self._protocol.sampling(server_round):
            messages = super().configure_evaluate(server_round, arrays, told, grid)
        if self.numpy_clients:
            messages = numpy_messages.as_evaluation(messages)
        self._asked_to_evaluate = list(messages)
        return self._asked_to_evaluate

    def _may_read_arrays(self) -> bool:
        """Tell whether code of the user's, which may read all of them, gets evaluation replies."""
        ours = getattr(self.aggregate_evaluate, "__func__", None)
        usual = FedAvg().evaluate_metrics_aggr_fn
        return (
            ours is not MessageStrategy.aggregate_evaluate
            or self.evaluate_metrics_aggr_fn is not usual
        )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the usable replies' metrics as FedAvg does."""
        journal = self._protocol.journal
        if server_round < journal.done:
            return _to_metrics(journal.recall("evaluate", server_round))
        replies = list(replies)
        sent, self._asked_to_evaluate = _sent(self._asked_to_evaluate, replies), ()
        if not replies and not sent:
            return None
        asked, replies_of = _by_node(sent, replies)
        sizes = self._count(sent, replies)
        usual = self._protocol.hear_evaluation(
            server_round, asked, replies_of, self._read_evaluation, sizes
        )
        if not usual:
            return None
        metrics = self._aggregate("evaluate_metrics_aggr_fn", usual)
        if metrics is not None:
            journal.note("evaluate", server_round, metrics)
        return metrics

    def _count(
        self, asked: Sequence[Message], replies: Sequence[Message], model: ArrayRecord | None = None
    ) -> dict[str, float]:
        """Count a round's bytes, and return the mean sizes of its messages for the report.

        FedAvg's clients would have answered with the model where there is one.
        """
        down = mean_size(asked) if asked else 0.0
        if replies and model is not None:
            up, with_fedavg = mean_sizes_of_training(replies, model)
        else:
            up = with_fedavg = mean_size(replies) if replies else 0.0
        self._protocol.count(len(replies) * up, len(replies) * with_fedavg, len(asked) * down)
        sizes = {"uplink-bytes": up, "downlink-bytes": down}
        return {name: size for name, size in sizes.items() if size}

    def _without_lists(
        self, server_round: int, metrics: Mapping[str, Any] | None
    ) -> MetricRecord | None:
        """Return a round's metrics for Flower's log, and keep what is too long for it."""
        if metrics is None:
            return None
        numbers, self._per_block[server_round] = without_lists(metrics)
        return MetricRecord(numbers)

    def _aggregate(self, name: str, replies: Sequence[Reply[RecordDict]]) -> MetricRecord | None:
        function, key = getattr(self, name), self.weighted_by_key
        examples = fair_examples([reply.metrics[key] for reply in replies])
        contents = [
            _with_metric(reply.source, key, count)
            for reply, count in zip(replies, examples, strict=True)
        ]
        return try_to_aggregate(name, lambda: MetricRecord(dict(function(contents, key))))

    def _evaluate(
        self, evaluate: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        journal = self._protocol.journal
        if server_round < journal.done:
            return _to_metrics(journal.recall("evaluate-server", server_round))
        metrics = evaluate(server_round, arrays)
        if metrics is not None:
            journal.note("evaluate-server", server_round, metrics)
        return metrics

    def _read(self, reply: Message) -> Said[RecordDict]:
        content, metrics, num_examples = self._open(reply)
        arrays = to_arrays(_only(ArrayRecord, content), self._protocol.most_arrays)
        scalars = next((r for r in _records(ConfigRecord, content) if Payload.is_in(r)), None)
        return Said(arrays, scalars, num_examples, metrics, content)

    def _read_evaluation(self, node: Node, reply: Message) -> Reply[RecordDict]:
        content, metrics, num_examples = self._open(reply)
        return Reply(node, num_examples, metrics, content)

    def _open(self, reply: Message) -> tuple[RecordDict, MetricRecord, float]:
        """Return a reply's content, the metrics in it, and the client's weight."""
        if reply.has_error():
            raise WireError(f"error {reply.error.code}: {text_of(reply.error.reason)}")
        content = reply.content
        if self.numpy_clients:
            content = numpy_messages.read_reply(content)
        metrics = _only(MetricRecord, content)
        key = self.weighted_by_key
        return content, metrics, require_examples(key, metrics.get(key))


class _CountingGrid:
    """A grid that remembers how many nodes there were when somebody last asked."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.present = 0

    def get_node_ids(self) -> list[int]:
        nodes = [*self._grid.get_node_ids()]
        self.present = len(nodes)
        return nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


def _is_instructed(message: Message) -> bool:
    return any(map(Instruction.is_in, _records(ConfigRecord, message.content)))


def _sent(asked: Sequence[Message], replies: Sequence[Message]) -> Sequence[Message]:
    """Return the messages that were sent of those that we have made.

    A subclass may leave some out, or all of them. A message gets its id when it is sent. Where
    somebody brings the replies to them by hand no message has one.
    """
    sent = [message for message in asked if message.metadata.message_id]
    return sent if sent or not replies else asked


def _by_node(
    asked: Sequence[Message], replies: Sequence[Message]
) -> tuple[list[Node], list[tuple[Node, Message]]]:
    """Return the nodes that were asked, and the replies with the nodes that they speak for.

    The reply of a node that failed comes from the SuperLink, and only the id of the message, which
    it gets when it is sent, tells whom it was sent to.
    """
    sent = [message.metadata for message in asked]
    node_of = {metadata.message_id: metadata.dst_node_id for metadata in sent}
    node_of.pop("", None)
    received = [(reply, reply.metadata) for reply in replies]
    return [metadata.dst_node_id for metadata in sent], [
        (node_of.get(metadata.reply_to_message_id, metadata.src_node_id), reply)
        for reply, metadata in received
    ]


def _records(kind: type[Record], content: RecordDict) -> list[Record]:
    # Flower's own views of a content check and copy it, which takes longer than reading a reply.
    return [record for record in content.values() if isinstance(record, kind)]


def _only(kind: type[Record], content: RecordDict) -> Record:
    records = _records(kind, content)
    if len(records) != 1:
        raise WireError(f"expected one {kind.__name__}, got {len(records)}")
    return records[0]


def _with_metric(content: RecordDict, key: str, value: float) -> RecordDict:
    """Return a reply's content with another value of a metric, as a copy if it differs."""
    name, metrics = next((n, r) for n, r in content.items() if isinstance(r, MetricRecord))
    if metrics[key] == value:
        return content
    return RecordDict({**content, name: MetricRecord({**metrics, key: value})})


def _to_record(model: Mapping[str, Any] | None) -> ArrayRecord | None:
    return None if model is None else to_record(model)


def _to_metrics(stored: Mapping[str, Any] | None) -> MetricRecord | None:
    return None if stored is None else MetricRecord(dict(stored))
