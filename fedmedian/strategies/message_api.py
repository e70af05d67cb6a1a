"""Strategies for Flower's Message API."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any, NoReturn, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedmedian.aggregators.diagnostics import without_lists
from fedmedian.checks import require_integer, require_type
from fedmedian.logs import LOGGER
from fedmedian.records import sizes_of, to_arrays, to_record
from fedmedian.rounds.downlink import Held
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.metrics import fair_examples, try_to_aggregate
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol, paused_collector
from fedmedian.rounds.recipe import Question, Recipe
from fedmedian.rounds.screening import Node, Reply
from fedmedian.strategies import numpy_clients as numpy_messages
from fedmedian.strategies.arguments import Argument, ShowsArguments, described, usual_of
from fedmedian.strategies.calls import Call, Calls, without_left_out
from fedmedian.strategies.contents import (
    Contents,
    add_to_config,
    address,
    as_asked,
    correct_config,
    readdress,
    targets_in,
    without_our_keys,
)
from fedmedian.strategies.log import concise, log_last_evaluation
from fedmedian.strategies.messages import (
    ReplyReader,
    by_node,
    key_in,
    nodes_of,
    scalars_of,
    types_of,
    with_weights,
    without_unsent,
)
from fedmedian.strategies.options import FedAvgOptions, FlowerOptions, require_fedavg_options
from fedmedian.strategies.overrides import noting, seeing_all, wrap_override
from fedmedian.strategies.results import ShownResult
from fedmedian.strategies.wrappers import require_no_unfit_wrapper
from fedmedian.wire.scalars import EVALUATION, WIRE_VERSION, WireScalar, refuse_our_keys

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]


class MessageStrategy(ShowsArguments, FedAvg):
    """A Flower strategy whose clients perturb their updates as the server instructs them.

    It samples nodes, builds messages and aggregates metrics as FedAvg does. Each reply is screened
    on its own. A reply that cannot be used is counted, logged with the reason, and dropped.

    Parameters
    ----------
    recipe : Recipe
        What a run's model depends on.
    options : RunOptions
        The arguments that may change when a run resumes.
    fedavg : dict
        The arguments of `flwr.serverapp.strategy.FedAvg`, and `numpy_clients`.

    Attributes
    ----------
    recipe : Recipe
        See above.
    options : RunOptions
        See above.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.
    """

    __received: dict[str, Message] | None = None  # also of a subclass that builds no strategy

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the strategy see what a subclass sends, and which replies it leaves out."""
        super().__init_subclass__(**kwargs)
        for name, around in (
            ("configure_train", noting(MessageStrategy.__note_training)),
            ("configure_evaluate", noting(MessageStrategy.__note_evaluation)),
            ("aggregate_train", seeing_all(MessageStrategy.__receiving)),
            ("aggregate_evaluate", seeing_all(MessageStrategy.__receiving)),
        ):
            wrap_override(cls, MessageStrategy, name, around)

    def _fedmedian_build(self, recipe: Recipe, options: RunOptions, flower: FlowerOptions) -> None:
        require_fedavg_options(type(self), flower, FedAvgOptions.__optional_keys__)
        fedavg: dict[str, Any] = dict(flower)
        self.__numpy_clients = fedavg.pop("numpy_clients", False)
        keys: dict[str, Any] = {**numpy_messages.KEYS} if self.__numpy_clients else {}
        for key in keys.keys() & fedavg:
            raise ValueError(
                f"{key} must not be given with numpy_clients=True, got {fedavg[key]!r}"
            )
        FedAvg.__init__(self, **fedavg, **keys)
        self._fedmedian_usual = usual_of(FedAvg(**keys), FedAvgOptions)
        vars(self).update(recipe=recipe, options=options)  # also if it is built again
        ledger = Ledger.of_strategy(recipe, options, self.fraction_train, self.fraction_evaluate)
        self.__protocol = RoundProtocol(recipe, options, ledger=ledger)
        self.__forget()
        self.__usual_size = 0
        self.__kept = _KeptGrid()
        self.__timeout = 3600.0
        self.__other_metrics: dict[int, dict[str, Any]] = {}

    numpy_clients = Argument[bool]()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments in force, by name; Flower's own are attributes that may be set."""
        return {**super().arguments, "numpy_clients": self.__numpy_clients}

    @property
    def _fedmedian_question(self) -> Question | None:
        return self.__protocol.last_question

    @property
    def initialize_parameters(self) -> NoReturn:
        """Not available: it belongs to strategies of Flower's older API."""
        name = type(self).__name__
        raise AttributeError(
            f"{name} is a strategy of the Message API, which is run by {name}(…).start(…); "
            "for ServerAppComponents use a strategy of fedmedian.strategies.legacy"
        )

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
    ) -> Result:
        """Run federated learning; see `flwr.serverapp.strategy.Strategy.start`.

        Rounds that the `checkpoint` holds are not trained again: their results come from there, and
        the last of them is evaluated again. With a `privacy_budget` the run ends before the first
        round that would exceed it. The Result, but not the log, also has each round's noise scales
        and signal to noise per block.

        Parameters
        ----------
        grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As for Flower's strategies.
        **newer
            Arguments that newer versions of Flower have.

        Returns
        -------
        Result
            Flower's Result.

        Raises
        ------
        TypeError
            If the initial arrays are not an ArrayRecord, `num_rounds` is not an integer, a config
            is no mapping, or `evaluate_fn` is not callable or does not return a mapping.
        ValueError
            If the initial arrays are empty or `num_rounds` is negative; if a config has a key that
            begins with ``fedmedian.``; if the checkpoint is not one of this run, is damaged, or
            holds more rounds than the run is to have; if the privacy budget does not afford a
            round, or the model rules out a mechanism.
        RunFailedError
            If `max_failed_rounds` rounds in a row made no new model, or all clients sent plain
            weights before there was one, with the most common reason; if no client was ever asked.
        RuntimeError
            If another run uses the checkpoint's folder, or a subclass changes the stored model
            before the run resumes from it.
        OSError
            If checkpoints cannot be written. After the first round has begun, each failure is a
            warning, and the last one an error in the log at the end.
        """
        if not isinstance(initial_arrays, ArrayRecord):
            raise TypeError(
                "initial_arrays must be an ArrayRecord, such as ArrayRecord(model.state_dict()) or "
                f"ArrayRecord(list_of_arrays), got a {type(initial_arrays).__name__}"
            )
        if not initial_arrays:
            raise ValueError("initial_arrays must hold at least one array, got an empty one")
        require_integer("num_rounds", num_rounds, low=0)
        configs = {"train_config": train_config, "evaluate_config": evaluate_config}
        for name, config in configs.items():
            require_type(name, config, Mapping | None, "a ConfigRecord, or None")
            refuse_our_keys(name, config or ())
        if evaluate_fn is not None and not callable(evaluate_fn):
            raise TypeError(f"evaluate_fn must be a callable or None, got {evaluate_fn!r}")
        self.__other_metrics, self.__timeout = {}, timeout
        self.__forget()
        journal = self.__protocol.journal
        self.__protocol.open(to_arrays(initial_arrays))
        if evaluate_fn is not None:
            evaluate_fn = partial(self.__evaluate, evaluate_fn)
        try:
            self.__kept.grid = grid
            if num_rounds < journal.done:
                raise ValueError(
                    f"num_rounds must be >= {journal.done}, the rounds that the checkpoint "
                    f"holds, got {num_rounds}; to start over, use another folder"
                )
            if num_rounds == journal.done != 0:
                LOGGER.info(
                    "The checkpoint holds all %d rounds, so none is trained: to train on, set "
                    "num_rounds to more; to start over, use another folder",
                    num_rounds,
                )
            affordable = self.__protocol.affordable(num_rounds)
            with concise(journal.done):
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
            journal.close()
            for who, evaluations in (
                ("clients", result.evaluate_metrics_clientapp),
                ("the server", result.evaluate_metrics_serverapp),
            ):
                for last in sorted(evaluations)[-1:]:
                    log_last_evaluation(who, last, evaluations[last])
            self.__protocol.watch.say_totals()
            self.__protocol.say_why_it_ends(affordable, num_rounds)
            self.__protocol.require_clients(
                f"fraction_train={self.fraction_train} and min_train_nodes={self.min_train_nodes}",
                trains=self.fraction_train > 0,
            )
        finally:
            self.__protocol.release()
            self.__kept.grid = None  # no client is asked after the run
        reports = result.train_metrics_clientapp
        for server_round, others in self.__other_metrics.items():
            own = reports.get(server_round) or MetricRecord()  # a subclass may report nothing
            reports[server_round] = MetricRecord({**own, **others})
        result.train_metrics_clientapp = dict(sorted(reports.items()))
        return ShownResult(**vars(result))

    def summary(self) -> None:
        """Log the arguments of the strategy that are not defaults, and what its rounds reveal.

        Raises
        ------
        ValueError
            If one of Flower's wrappers that it does not work with wraps it.
        """
        require_no_unfit_wrapper(self)
        own = described(self.unusual) or "all defaults"
        for line in filter(None, [own, self.__protocol.describe_privacy(self.privacy)]):
            LOGGER.info("\t├──> %s", line)

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
        question = self.__protocol.ask(server_round, to_arrays(arrays))
        if any(one.server_round > server_round for one in self.__asked):
            self.__forget()  # another strategy has started a new run
        if question is None:
            return []
        told = without_our_keys(config)
        told.update(question.instruction.encode())
        with self.__protocol.sampling(server_round):
            nodes = _CountingGrid(grid)
            asked = list(super().configure_train(server_round, arrays, told, cast(Grid, nodes)))
        if None in map(key_in, asked):
            raise ValueError(
                "messages of training lack the server's instruction: _construct_messages must keep "
                "the keys 'fedmedian.…' of the config that it is given"
            )
        drawn = nodes_of(asked)
        # In a run of ours that of `start`: a subclass may pass one that can only be drawn from.
        is_known = self.__protocol.is_announced and self.__kept.grid is not None
        if self.recipe.secure is not None and not is_known:
            self.__kept.grid = grid
        question, asked = self.__seated(question, asked)
        if not self.__protocol.may_ask(
            question, drawn if asked else [], nodes.present, self.__sent_before(question)
        ):
            asked = []
        self.__usual_size = max(sizes_of(asked[:1]), default=0)
        self.__contents.begin(server_round)
        self.__contents.write(asked, partial(self._fedmedian_write_question, question, arrays))
        self.__protocol.log_whole_models(question.state.held, nodes_of(asked))
        self.__asked.begin(server_round)
        self.__asked.add(server_round, question, asked)
        return asked

    def __seated(
        self, question: Question, messages: list[Message]
    ) -> tuple[Question, list[Message]]:
        """Return the question and the messages to the nodes that have a place in its sum, if any.

        Without enough of them there are no messages.
        """
        exchange = partial(self.__exchange, question, types_of(messages))
        nodes = [*dict.fromkeys(nodes_of(messages))]
        if (seated := self.__protocol.seat(question, nodes, exchange)) is None:
            return question, []
        return seated, [one for one in messages if _has_place(one, seated)]

    def __seat_anew(self, messages: list[Message]) -> None:
        """Give places in secure sums to the nodes that a subclass asks, and to no others.

        Messages to nodes without a place are taken out. Calls about one question have one sum if
        they share nodes, as two draws of a group do, but not where clusters begin with one model.
        """
        unknown = {*map(id, self.__asked.unknown(messages))}
        calls: dict[Any, list[Call[Question]]] = {}
        for call in self.__asked:
            if call.about.cohort is not None:
                calls.setdefault(call.about.key, []).append(call)
        for key, alike in calls.items():
            asked = [one for one in messages if key_in(one) == key]
            seats = [node for call in alike for node in call.about.places]
            is_one = len({*seats}) < len(seats) or any(id(one) in unknown for one in asked)
            for group in [alike] if is_one else [[call] for call in alike]:
                known = {id(one.metadata) for call in group for one in call.messages}
                own = [one for one in asked if id(one.metadata) in known or id(one) in unknown]
                about = group[-1].about
                if own and {*nodes_of(own)} != about.places.keys():
                    without = about.without_place.union(*(one.about.without_place for one in group))
                    seated, kept = self.__seated(replace(about, without_place=without), own)
                    left_out = {*map(id, own)} - {*map(id, kept)}
                    messages[:] = [one for one in messages if id(one) not in left_out]
                    for call in group:
                        call.about = seated

    def __note_training(self, called_for: Any, messages: list[Message]) -> None:
        """Remember messages that a subclass has made, by the question in their config.

        The arrays of all messages are made such that clients can answer.

        Raises
        ------
        ValueError
            If a message holds other arrays than its question is about.
        """
        self.__seat_anew(messages)
        questions: dict[Any, Question] = {one.about.key: one.about for one in self.__asked}
        known = {id(one.metadata): call.about for call in self.__asked for one in call.messages}
        abouts = list[Question | None]()
        for message in messages:
            usual = questions.get(key_in(message))  # none if a subclass has replaced the content
            abouts.append(usual and known.get(id(message.metadata), usual))
        self.__protocol.note_calls(called_for, abouts)
        own = {id(message) for message in self.__asked.unknown(messages)}
        records: dict[tuple[int, int], ArrayRecord] = {}
        for message, about in zip(messages, abouts, strict=True):
            if about is None:
                continue
            record = message.content.get(self.arrayrecord_key)
            if isinstance(record, ArrayRecord):
                if (key := (id(record), id(about))) not in records:
                    records[key] = as_asked(record, about)
                if records[key] is not record:
                    asked = {self.arrayrecord_key: records[key]}
                    message.content = RecordDict({**message.content, **asked})
            if id(message) in own:
                self.__asked.add(about.server_round, about, [message])
            if (place := about.places.get(message.metadata.dst_node_id)) is not None:
                correct_config(message, place.encode())
        self.__readdress(messages, [one.state.held if one else None for one in abouts])

    def __readdress(self, messages: Sequence[Message], helds: Sequence[Held | None]) -> None:
        asked = zip(nodes_of(messages), helds, strict=True)
        readdress(messages, helds, self.__protocol.contents_for([*asked]))

    def __sent_before(self, question: Question) -> set[Node]:
        return {
            message.metadata.dst_node_id
            for one in self.__asked
            if one.about.key == question.key
            for message in one.messages
            if message.metadata.message_id
        }

    def _construct_messages(
        self, record: RecordDict, node_ids: list[int], message_type: str
    ) -> Iterable[Message]:
        """Construct messages as FedAvg does, each with what depends on its own node."""
        if (origin := self.__contents.origin_of(record)) is None:
            return super()._construct_messages(record, node_ids, message_type)
        usual, write = origin
        messages = list(super()._construct_messages(usual, node_ids, message_type))
        self.__contents.write(messages, write)
        return messages

    def _fedmedian_write_question(
        self, question: Question, arrays: ArrayRecord, messages: Sequence[Message]
    ) -> None:
        keys = self.arrayrecord_key, self.configrecord_key
        address(messages, arrays, question.model, question.content_for, *keys)
        for message in messages:
            node = message.metadata.dst_node_id
            if not _has_place(message, question):
                raise ValueError(
                    f"node {node} has no place in the secure sum of round {question.server_round}: "
                    "a subclass must choose nodes in _construct_messages, before they get one"
                )
            if (place := question.places.get(node)) is not None:
                add_to_config(message, place.encode(), self.configrecord_key)

    def __exchange(
        self,
        question: Question,
        types: Mapping[Node, str],
        requests: Mapping[Node, Mapping[str, WireScalar]],
    ) -> dict[Node, Mapping[str, Any] | str]:
        """Send scalars to nodes, and return those in each reply, or the reason for its error.

        The messages have the types of those that ask nodes to train: an app may have no function
        for others.
        """
        grid = self.__kept.grid
        if grid is None:
            raise RuntimeError(
                "a copy of a strategy, made in mid-round, cannot ask the clients of that round to "
                "open their secure sum: copy strategies between rounds"
            )
        messages = [
            Message(
                RecordDict({self.configrecord_key: ConfigRecord(dict(scalars))}),
                int(node),
                types[node],
                group_id=str(question.server_round),
            )
            for node, scalars in requests.items()
        ]
        replies = [*grid.send_and_receive(messages, timeout=self.__timeout)]
        self.__protocol.watch.count(sum(sizes_of(replies)), sum(sizes_of(messages)), 0, 0)
        _, replies_of = by_node(messages, replies, ())
        return {node: scalars_of(reply) for node, reply in replies_of}

    def __forget(self) -> None:
        """Forget the messages of an earlier run."""
        self.__contents = Contents()
        self.__former = dict[str, int]()
        self.__asked: Calls[Question] = Calls(self.__former)
        self.__asked_to_evaluate = Calls[ArrayRecord](self.__former)

    @paused_collector()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the usable replies into a new model, and report on the round.

        Raises
        ------
        RunFailedError
            As for `start`.
        RuntimeError
            If this round was not configured, or a later one already was.
        """
        journal = self.__protocol.journal
        if journal.holds(server_round):
            # In every round, because a run that another strategy drives may end early.
            recalled = journal.recall("train", server_round)
            return _to_record(journal.model), self.__without_lists(server_round, recalled)
        replies, unsent = without_unsent("aggregate_train", replies)
        question, sent = self.__question_of(server_round, replies)
        received = self.__received or {}
        sent, replies = without_left_out("aggregate_train", sent, replies, received)
        if question is None or not (replies or sent):
            self.__protocol.pass_over()
            return None, None
        asked, replies_of = by_node(sent, replies, self.__former)
        read = partial(self.__reader().answer, question)

        def exchange(requests: Mapping[Node, Mapping[str, WireScalar]]) -> Mapping[Node, Any]:
            seated = [one.messages for one in self.__asked if one.about is question]
            return self.__exchange(question, types_of(chain.from_iterable(seated)), requests)

        heard = self.__protocol.hear(question, asked, replies_of, read, unsent, exchange)
        sizes = self.__count(sent, replies, trains=True)
        own = self.__aggregate("train_metrics_aggr_fn", heard.usual) if heard.usual else None
        metrics = self.__protocol.end(heard, sizes, own or {})
        return _to_record(heard.model), self.__without_lists(server_round, metrics)

    def __question_of(
        self, server_round: int, replies: Sequence[Message]
    ) -> tuple[Question | None, list[Message]]:
        """Return the question that most replies answer, and the messages whose replies are due."""
        told = self.__protocol.asked_as.get(server_round, server_round)
        own = self.__asked.answered_by(told, replies)
        if replies and not own:
            raise self.__protocol.not_asked(server_round, "replies", "configure_train")
        sent = self.__asked.hear(own, _ids_in(replies), self.__all_received())
        return (own[0].about if own else None), sent

    @contextmanager
    def __receiving(self, replies: Sequence[Message]) -> Iterator[None]:
        """Let a subclass's method, and that of a subclass of it, aggregate these replies."""
        outer = self.__received
        if outer is None:
            self.__received = {one.metadata.reply_to_message_id: one for one in replies}
        try:
            yield
        finally:
            self.__received = outer

    def __all_received(self) -> Collection[str] | None:
        """Return the ids of the messages that all replies answer; None if it does not have all."""
        if self.__received is None and not self.__protocol.is_announced:
            return None  # another strategy may hold back some
        return {*(self.__received or ())}

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of evaluation as FedAvg does."""
        if server_round < self.__protocol.journal.done:
            return []
        told = without_our_keys(config)
        if not self.__may_read_arrays():
            told[EVALUATION] = WIRE_VERSION
        with self.__protocol.sampling(server_round, evaluates=True):
            messages = super().configure_evaluate(server_round, arrays, told, grid)
        messages = list(messages)
        self.__usual_size = max(sizes_of(messages[:1]), default=0)
        held = self.__protocol.held_to_evaluate(to_arrays(arrays)) if messages else None
        if held is not None:
            self.__protocol.log_whole_models(held, nodes_of(messages))
        self.__contents.begin(server_round)
        self.__contents.write(messages, partial(self._fedmedian_write_evaluation, held, arrays))
        self.__asked_to_evaluate.begin(server_round)
        self.__asked_to_evaluate.add(server_round, arrays, messages)
        return messages

    def __note_evaluation(self, called_for: Any, messages: Sequence[Message]) -> None:
        """Remember messages that a subclass has made."""
        for last in [*self.__asked_to_evaluate][-1:]:
            for message in self.__asked_to_evaluate.unknown(messages):
                self.__asked_to_evaluate.add(last.server_round, last.about, [message])
        self.__readdress(messages, [*map(self.__protocol.held, targets_in(messages))])

    def _fedmedian_write_evaluation(
        self, held: Held | None, arrays: ArrayRecord, messages: Sequence[Message]
    ) -> None:
        if held is not None:
            keys = self.arrayrecord_key, self.configrecord_key
            address(messages, arrays, {}, partial(self.__protocol.content_for, held), *keys)
        if self.__numpy_clients:
            numpy_messages.as_evaluation(messages)

    def __sent_to_evaluate(self, replies: Sequence[Message]) -> list[Message]:
        """Return the messages whose replies are due: those of a call, as of one cluster's."""
        ids = _ids_in(replies)
        asked = [one for one in self.__asked_to_evaluate.in_order() if not one.is_heard]
        own = [one for one in asked if one.ids & ids] or asked[:1]
        return self.__asked_to_evaluate.hear(own, ids, self.__all_received())

    def __may_read_arrays(self) -> bool:
        """Return whether user code gets the replies to evaluation, and may read their arrays."""
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
        journal = self.__protocol.journal
        if server_round < journal.done:
            return _to_metrics(journal.recall("evaluate", server_round))
        replies, unsent = without_unsent("aggregate_evaluate", replies)
        sent, received = self.__sent_to_evaluate(replies), self.__received or {}
        sent, replies = without_left_out("aggregate_evaluate", sent, replies, received)
        if not replies and not sent:
            return None
        asked, replies_of = by_node(sent, replies, self.__former)
        sizes = self.__count(sent, replies)
        _, usual, report = self.__protocol.hear_evaluation(
            server_round, asked, replies_of, self.__reader().evaluation, sizes, unsent
        )
        metrics = self.__aggregate("evaluate_metrics_aggr_fn", usual) if usual else None
        self.__protocol.end_evaluation(report, metrics or {})
        if metrics is not None:
            journal.note("evaluate", server_round, metrics)
        return metrics

    def __count(
        self, asked: Sequence[Message], replies: Sequence[Message], *, trains: bool = False
    ) -> dict[str, float]:
        """Count a round's bytes, and return the mean sizes of its messages for the report.

        FedAvg's clients would have been sent the model, and would have answered training with it.
        """
        both, model = sizes_of([*replies, *asked]), self.__usual_size
        up, down = both[: len(replies)], both[len(replies) :]
        with_fedavg = sum(model if trains else size for size in up if size)
        self.__protocol.watch.count(sum(up), sum(down), with_fedavg, model * len(down))
        # Without error replies, which hold nothing: the mean is what a client sends.
        sent = {"uplink-bytes": [*filter(None, up)], "downlink-bytes": [*filter(None, down)]}
        return {name: fmean(sizes) for name, sizes in sent.items() if sizes}

    def __without_lists(
        self, server_round: int, metrics: Mapping[str, Any] | None
    ) -> MetricRecord | None:
        """Return a round's metrics for Flower's log, and keep the others for the Result.

        As with FedAvg, there are none without a usable reply: a subclass that has found some will
        look for the clients' own among them.
        """
        if metrics is None:
            return None
        numbers, lists = without_lists(metrics)
        is_lost = not metrics["replies-accepted"]
        if is_lost:  # another model of the round may have had usable replies
            self.__other_metrics.setdefault(server_round, dict(metrics))
        else:
            self.__other_metrics[server_round] = lists
        return None if is_lost else MetricRecord(numbers)

    def __aggregate(self, name: str, replies: Sequence[Reply[RecordDict]]) -> MetricRecord | None:
        function, key = getattr(self, name), self.weighted_by_key
        examples = fair_examples([reply.metrics[key] for reply in replies])
        contents = with_weights([reply.source for reply in replies], key, examples)
        return try_to_aggregate(name, lambda: MetricRecord(dict(function(contents, key) or {})))

    def __evaluate(
        self, evaluate: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        journal = self.__protocol.journal
        if server_round < journal.done:
            stored = journal.recall("evaluate-server", server_round)
            try:
                return _to_metrics(stored)
            except TypeError:  # `evaluate` has returned another mapping, of values of other types
                return cast(MetricRecord, stored)
        metrics = evaluate(server_round, arrays)
        if metrics is not None:
            wanted = "a mapping such as a MetricRecord, or None"
            require_type("what evaluate_fn returns", metrics, Mapping, wanted)
            journal.note("evaluate-server", server_round, metrics)
        return metrics

    def __reader(self) -> ReplyReader:
        return ReplyReader(self.weighted_by_key, self.__numpy_clients, self.__former)


class _CountingGrid:
    """A grid that remembers how many nodes it last returned."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.present = 0

    def get_node_ids(self) -> list[int]:
        nodes = [*self._grid.get_node_ids()]
        self.present = len(nodes)
        return nodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


class _KeptGrid:
    """A run's grid, which copies are without: it may hold a connection.

    The strategy could not leave it out by itself where a subclass says what is copied.
    """

    grid: Grid | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _ids_in(replies: Sequence[Message]) -> set[str]:
    """Return the ids of the messages that replies answer."""
    return {reply.metadata.reply_to_message_id for reply in replies}


def _has_place(message: Message, question: Question) -> bool:
    return question.cohort is None or message.metadata.dst_node_id in question.places


def _to_record(model: Mapping[str, Any] | None) -> ArrayRecord | None:
    return None if model is None else to_record(model)


def _to_metrics(stored: Mapping[str, Any] | None) -> MetricRecord | None:
    return None if stored is None else MetricRecord(dict(stored))
