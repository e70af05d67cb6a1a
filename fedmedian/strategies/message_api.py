"""Strategies for Flower's Message API."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial, wraps
from itertools import chain
from statistics import fmean
from typing import Any, Generic, NoReturn, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedmedian.aggregators.diagnostics import without_lists
from fedmedian.checks import require_integer, require_type
from fedmedian.logs import LOGGER, failure_of
from fedmedian.model.layout import Arrays
from fedmedian.records import sizes_of, to_arrays, to_record
from fedmedian.rounds.downlink import Content, Held
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.metrics import fair_examples, require_examples, try_to_aggregate
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.protocol import RoundProtocol, paused_collector
from fedmedian.rounds.recipe import Question, Recipe
from fedmedian.rounds.roster import LateReplyError
from fedmedian.rounds.screening import Node, Reply, Said
from fedmedian.steps.downlink import HELD
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import MOST_ARRAYS, Payload, as_version
from fedmedian.strategies import numpy_clients as numpy_messages
from fedmedian.strategies.arguments import Argument, ShowsArguments, differing
from fedmedian.strategies.log import concise, log_last_evaluation
from fedmedian.strategies.options import FedAvgOptions, FlowerOptions, require_fedavg_options
from fedmedian.strategies.overrides import noting, wrap_override
from fedmedian.strategies.results import ShownResult
from fedmedian.strategies.wrappers import require_no_unfit_wrapper
from fedmedian.wire.scalars import (
    EVALUATION,
    PREFIX,
    WIRE_VERSION,
    WireError,
    WireScalar,
    require_own_keys,
)

Record = TypeVar("Record")
Aggregated = TypeVar("Aggregated")
About = TypeVar("About", Question, ArrayRecord)
_FORMER = 10_000
"""The number of earlier messages whose late replies are known as such."""

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]
Write = Callable[[Sequence[Message]], None]


@dataclass(eq=False)
class _Asked(Generic[About]):
    """The messages of one call of `configure_train` or `configure_evaluate`.

    They are about a question, or a model to evaluate. Each message that a subclass makes counts as
    a call of its own.
    """

    server_round: int
    about: About
    messages: list[Message]
    is_heard: bool = False

    @property
    def ids(self) -> set[str]:
        """The ids of the messages that were sent."""
        return {message.metadata.message_id for message in self.messages} - {""}


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

    _received: dict[str, Message] | None = None  # also of a subclass that builds no strategy

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the strategy see what a subclass sends, and which replies it leaves out."""
        super().__init_subclass__(**kwargs)
        for name, wrap in (
            ("configure_train", noting(MessageStrategy._note_training)),
            ("configure_evaluate", noting(MessageStrategy._note_evaluation)),
            ("aggregate_train", _seeing_all),
            ("aggregate_evaluate", _seeing_all),
        ):
            wrap_override(cls, MessageStrategy, name, wrap)

    def _build(self, recipe: Recipe, options: RunOptions, flower: FlowerOptions) -> None:
        require_fedavg_options(type(self), flower, FedAvgOptions.__optional_keys__)
        fedavg: dict[str, Any] = dict(flower)
        self._numpy_clients = fedavg.pop("numpy_clients", False)
        if self._numpy_clients:
            for key in numpy_messages.KEYS:
                if key in fedavg:
                    raise ValueError(
                        f"{key} must not be given with numpy_clients=True, got {fedavg[key]!r}"
                    )
            fedavg |= numpy_messages.KEYS
        FedAvg.__init__(self, **fedavg)
        self.recipe, self.options = recipe, options
        ledger = Ledger.of_strategy(recipe, options, self.fraction_train, self.fraction_evaluate)
        self._protocol = RoundProtocol(recipe, options, ledger=ledger)
        self._asked: list[_Asked[Question]] = []
        self._asked_to_evaluate: list[_Asked[ArrayRecord]] = []
        self._former = dict[str, int]()
        self._written: dict[int, tuple[RecordDict, RecordDict, Write]] = {}
        self._written_in = 0
        self._usual_size = 0
        self._grid: Grid | None = None
        self._timeout = 3600.0
        self._other_metrics: dict[int, dict[str, Any]] = {}

    numpy_clients = Argument[bool]()

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments in force, by name; Flower's own are attributes that may be set."""
        return {**super().arguments, "numpy_clients": self._numpy_clients}

    def _unusual_of_flower(self) -> Mapping[str, Any]:
        usual, own = FedAvg(), dict[str, Any]()
        if self._numpy_clients:
            keys: dict[str, Any] = {**numpy_messages.KEYS}
            usual, own = FedAvg(**keys), {"numpy_clients": True}
        names = [name for name in FedAvgOptions.__annotations__ if name != "numpy_clients"]
        return own | differing(self, usual, names)

    @property
    def initialize_parameters(self) -> NoReturn:
        """Not available: it belongs to strategies of Flower's older API."""
        name = type(self).__name__
        raise AttributeError(
            f"{name} is a strategy of the Message API, which is run by {name}(…).start(…); "
            f"ServerAppComponents takes that of fedmedian.strategies.legacy"
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
            If the initial arrays are not an ArrayRecord, `num_rounds` is not an integer, or
            `evaluate_fn` does not return a mapping.
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
                "initial_arrays must be an ArrayRecord, such as ArrayRecord(model.state_dict()), "
                f"got a {type(initial_arrays).__name__}"
            )
        if not initial_arrays:
            raise ValueError("initial_arrays must hold at least one array, got an empty one")
        require_integer("num_rounds", num_rounds, low=0)
        require_own_keys("train_config", train_config or ())
        require_own_keys("evaluate_config", evaluate_config or ())
        self._other_metrics, self._timeout = {}, timeout
        self._forget()
        journal = self._protocol.journal
        self._protocol.open(to_arrays(initial_arrays))
        if evaluate_fn is not None:
            evaluate_fn = partial(self._evaluate, evaluate_fn)
        try:
            if num_rounds < journal.done:
                raise ValueError(
                    f"num_rounds must be >= {journal.done}, the rounds that the checkpoint "
                    f"holds, got {num_rounds}"
                )
            affordable = self._protocol.affordable(num_rounds)
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
            self._protocol.watch.say_totals()
            self._protocol.say_why_it_ends(affordable, num_rounds)
            self._protocol.require_clients(
                f"fraction_train={self.fraction_train} and min_train_nodes={self.min_train_nodes}",
                trains=self.fraction_train > 0,
            )
        finally:
            self._protocol.release()
            self._grid = None  # or the strategy could not be copied
        reports = result.train_metrics_clientapp
        for server_round, others in self._other_metrics.items():
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
        changed = {**self.unusual, **self._unusual_of_flower()}
        own = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        privacy = self._protocol.describe_privacy(self.privacy)
        for line in filter(None, [own or "all defaults", privacy]):
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
        question = self._protocol.ask(server_round, to_arrays(arrays))
        if any(one.server_round > server_round for one in self._asked):
            self._forget()  # another strategy has started a new run
        if question is None:
            return []
        told = _without_our_keys(config)
        told.update(question.instruction.encode())
        with self._protocol.sampling(server_round):
            nodes = _CountingGrid(grid)
            asked = list(super().configure_train(server_round, arrays, told, cast(Grid, nodes)))
        if not all(map(_is_instructed, asked)):
            raise ValueError(
                "messages of training lack the server's instruction: _construct_messages must keep "
                "the keys 'fedmedian.…' of the config that it is given"
            )
        drawn = _nodes(asked)
        self._grid = None if self.recipe.secure is None else grid
        exchange = partial(self._exchange, question, _types(asked))
        seated = self._protocol.seat(question, drawn, exchange)
        if seated is None:
            asked = []
        else:
            question, asked = seated, [one for one in asked if _has_place(one, seated)]
        if not self._protocol.may_ask(
            question, drawn if asked else [], nodes.present, self._sent_before(question)
        ):
            asked = []
        self._usual_size = max(sizes_of(asked[:1]), default=0)
        self._forget_written(server_round)
        self._write(asked, partial(self._write_question, question, arrays))
        self._protocol.log_whole_models(question.state.held, _nodes(asked))
        of_round = self._of_round(server_round, self._asked)
        self._asked = [*of_round, _Asked(server_round, question, asked)]
        return asked

    def _note_training(self, messages: Sequence[Message]) -> None:
        """Remember messages that a subclass has made, by the question in their config.

        The arrays of all messages are put into the order that clients are told of.

        Raises
        ------
        ValueError
            If a message holds other arrays than its question is about.
        """
        questions: dict[Any, Question] = {one.about.key: one.about for one in self._asked}
        abouts = [questions.get(_key_in(message)) for message in messages]
        others = {id(message) for message in _others(messages, self._asked)}
        records: dict[tuple[int, int], ArrayRecord] = {}
        for message, about in zip(messages, abouts, strict=True):
            if about is None:
                continue
            record = message.content.get(self.arrayrecord_key)
            if isinstance(record, ArrayRecord):
                if (key := (id(record), id(about))) not in records:
                    records[key] = _in_order(record, about)
                if records[key] is not record:
                    own = {self.arrayrecord_key: records[key]}
                    message.content = RecordDict({**message.content, **own})
            if id(message) in others:
                self._asked.append(_Asked(about.server_round, about, [message]))

    def _of_round(self, server_round: int, asked: Sequence[_Asked[About]]) -> list[_Asked[About]]:
        """Return the calls of a round; replies to the messages of others are late from now on."""
        for one in asked:
            if one.server_round != server_round:
                self._former |= dict.fromkeys(one.ids, one.server_round)
        self._former = dict([*self._former.items()][-_FORMER:])
        return [one for one in asked if one.server_round == server_round]

    def _sent_before(self, question: Question) -> set[Node]:
        return {
            message.metadata.dst_node_id
            for one in self._asked
            if one.about.key == question.key
            for message in one.messages
            if message.metadata.message_id
        }

    def _construct_messages(
        self, record: RecordDict, node_ids: list[int], message_type: str
    ) -> Iterable[Message]:
        """Construct messages as FedAvg does, each with what depends on its own node."""
        written = self._written.get(id(record))
        if written is None or written[0] is not record:  # ids of a copy are another object's
            return super()._construct_messages(record, node_ids, message_type)
        _, usual, write = written
        messages = list(super()._construct_messages(usual, node_ids, message_type))
        self._write(messages, write)
        return messages

    def _forget_written(self, server_round: int) -> None:
        if self._written_in != server_round:
            self._written, self._written_in = {}, server_round

    def _write(self, messages: Sequence[Message], write: Write) -> None:
        """Write to messages what depends on their nodes, and remember how: for other nodes."""
        before = [message.content for message in messages]
        write(messages)
        for usual, message in zip(before, messages, strict=True):
            if message.content is not usual:
                self._written[id(message.content)] = message.content, usual, write

    def _write_question(
        self, question: Question, arrays: ArrayRecord, messages: Sequence[Message]
    ) -> None:
        self._address(messages, arrays, question.model, question.content_for)
        for message in messages:
            node = message.metadata.dst_node_id
            if not _has_place(message, question):
                raise ValueError(
                    f"node {node} has no place in the secure sum of round {question.server_round}: "
                    "a subclass must choose nodes in _construct_messages, before they get one"
                )
            instruction = question.instruction_for(node)
            if instruction is not question.instruction:
                self._tell(message, instruction.encode())
            if (place := question.places.get(node)) is not None:
                self._tell(message, place.encode())

    def _exchange(
        self,
        question: Question,
        types: Mapping[Node, str],
        requests: Mapping[Node, Mapping[str, WireScalar]],
    ) -> dict[Node, Mapping[str, Any] | str]:
        """Send scalars to nodes, and return those in each reply, or the reason for its error.

        The messages have the types of those that ask nodes to train: an app may have no function
        for others.
        """
        assert self._grid is not None  # `configure_train` has set it
        messages = [
            Message(
                RecordDict({self.configrecord_key: ConfigRecord(dict(scalars))}),
                int(node),
                types[node],
                group_id=str(question.server_round),
            )
            for node, scalars in requests.items()
        ]
        replies = [*self._grid.send_and_receive(messages, timeout=self._timeout)]
        self._protocol.watch.count(sum(sizes_of(replies)), sum(sizes_of(messages)), 0, 0)
        _, replies_of = _by_node(messages, replies, ())
        return {node: _scalars_of(reply) for node, reply in replies_of}

    def _forget(self) -> None:
        """Forget the messages of an earlier run."""
        self._asked, self._asked_to_evaluate, self._former = [], [], {}

    def _address(
        self,
        messages: Sequence[Message],
        record: ArrayRecord,
        model: Arrays,
        content_for: Callable[[Node], Content],
    ) -> None:
        """Replace the model in messages by what their nodes are to be sent to hold it.

        Clients know an array's place from what they are sent, so the order counts, too. Messages
        with other arrays, as a subclass constructs them, stay as they are.
        """

        @cache
        def record_of(content: Content) -> ArrayRecord:
            is_as_sent = content.arrays is model and [*model] == [*record] and not content.scalars
            return record if is_as_sent else to_record(content.arrays)

        made: dict[tuple[int, Content], RecordDict] = {}
        before = [message.content for message in messages]  # kept, so that ids stay their own
        for message, usual in zip(messages, before, strict=True):
            content = content_for(message.metadata.dst_node_id)
            if usual.get(self.arrayrecord_key) is not record:
                continue
            if (own_record := record_of(content)) is record:
                continue
            key = id(usual), content
            if key not in made:  # one object for all nodes, as Flower's strategies send it
                own = {self.arrayrecord_key: own_record}
                message.content = RecordDict({**usual, **own})
                self._tell(message, content.scalars)
                made[key] = message.content
            message.content = made[key]

    def _tell(self, message: Message, scalars: Mapping[str, Any]) -> None:
        """Add scalars to the config of a message, which others may share."""
        config = ConfigRecord(
            {**cast(ConfigRecord, message.content[self.configrecord_key]), **scalars}
        )
        message.content = RecordDict({**message.content, self.configrecord_key: config})

    @paused_collector()
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the usable replies into a new model, and report on the round."""
        journal = self._protocol.journal
        if journal.holds(server_round):
            # In every round, because a run that another strategy drives may end early.
            recalled = journal.recall("train", server_round)
            return _to_record(journal.model), self._without_lists(server_round, recalled)
        replies = list(replies)
        question, sent = self._question_of(server_round, replies)
        sent, replies = self._without_left_out("aggregate_train", sent, replies)
        if question is None or not (replies or sent):
            self._protocol.pass_over()
            return None, None
        asked, replies_of = _by_node(sent, replies, self._former)
        read = partial(self._read, names=[spec.name for spec in question.layout.specs])
        seated = [one.messages for one in self._asked if one.about is question]
        exchange = partial(self._exchange, question, _types(chain.from_iterable(seated)))
        heard = self._protocol.hear(question, asked, replies_of, read, exchange=exchange)
        sizes = self._count(sent, replies, trains=True)
        own = self._aggregate("train_metrics_aggr_fn", heard.usual) if heard.usual else None
        metrics = self._protocol.end(heard, sizes, own or {})
        return _to_record(heard.model), self._without_lists(server_round, metrics)

    def _question_of(
        self, server_round: int, replies: Sequence[Message]
    ) -> tuple[Question | None, list[Message]]:
        """Return the question that most replies answer, and the messages whose replies are due.

        A reply answers the question of the message that it replies to. If that message is not ours,
        as in a subclass that builds its own, it answers the question that it names, or else the
        first open one.
        """
        asked = _sent_first([one for one in self._asked if one.server_round == server_round])
        is_open = [one for one in asked if not one.is_heard]
        own = is_open[:1]
        if replies:
            first = next(iter(is_open or reversed(asked)), None)
            if first is None:
                raise self._protocol.not_asked(server_round, "replies", "configure_train")
            of_message = {number: one for one in asked for number in one.ids}
            named = {one.about.instruction.question: one for one in [*asked, *reversed(is_open)]}
            found = []
            for reply in replies:
                if (answers := reply.metadata.reply_to_message_id) in of_message:
                    found.append(of_message[answers])
                elif reply.has_content() and answers not in self._former:
                    found.append(named.get(_question_in(reply), first))
            found = found or [first]  # errors to messages that are not ours, or late replies
            usual = Counter(one.about for one in found).most_common(1)[0][0]
            own = [one for one in found if one.about is usual]
        ids = {reply.metadata.reply_to_message_id for reply in replies}
        answered = self._answered(asked, own, ids)
        sent: list[Message] = []
        for one in answered:
            due = _sent(one.messages, ids)
            if one.is_heard:  # nodes that did not reply have been counted
                due = [message for message in due if message.metadata.message_id in ids]
            sent += due
            one.is_heard = True
        return (answered[0].about if answered else None), sent

    def _answered(
        self,
        asked: Sequence[_Asked[About]],
        own: Collection[_Asked[About]],
        ids: set[str],
    ) -> list[_Asked[About]]:
        """Return the calls to which replies belong, and others about the same that nobody answers.

        The ids are those of the messages that the replies answer.

        Several calls may be about the same, as for groups of nodes. A group that is silent now has
        no replies in a later call, unless another strategy picks the replies.
        """
        heard, about = {*own}, {id(one.about) for one in own}
        if self._received is None and not self._protocol.is_announced:
            return [one for one in asked if one in heard]
        came = ids | {*(self._received or ())}
        return [
            one
            for one in asked
            if one in heard
            or (not one.is_heard and id(one.about) in about and one.ids and not one.ids & came)
        ]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round of evaluation as FedAvg does."""
        if server_round < self._protocol.journal.done:
            return []
        told = _without_our_keys(config)
        if not self._may_read_arrays():
            told[EVALUATION] = WIRE_VERSION
        with self._protocol.sampling(server_round, evaluates=True):
            messages = super().configure_evaluate(server_round, arrays, told, grid)
        messages = list(messages)
        self._usual_size = max(sizes_of(messages[:1]), default=0)
        held = self._protocol.held_to_evaluate(to_arrays(arrays)) if messages else None
        if held is not None:
            self._protocol.log_whole_models(held, _nodes(messages))
        self._forget_written(server_round)
        self._write(messages, partial(self._write_evaluation, held, arrays))
        of_round = self._of_round(server_round, self._asked_to_evaluate)
        self._asked_to_evaluate = [*of_round, _Asked(server_round, arrays, messages)]
        return messages

    def _note_evaluation(self, messages: Sequence[Message]) -> None:
        """Remember messages that a subclass has made."""
        if self._asked_to_evaluate:
            last = self._asked_to_evaluate[-1]
            for message in _others(messages, self._asked_to_evaluate):
                own = _Asked(last.server_round, last.about, [message])
                self._asked_to_evaluate.append(own)

    def _write_evaluation(
        self, held: Held | None, arrays: ArrayRecord, messages: Sequence[Message]
    ) -> None:
        if held is not None:
            self._address(messages, arrays, {}, partial(self._protocol.content_for, held))
        if self._numpy_clients:
            numpy_messages.as_evaluation(messages)

    def _sent_to_evaluate(self, replies: Sequence[Message]) -> list[Message]:
        """Return the messages whose replies are due: those of a call, as of one cluster's."""
        ids = {reply.metadata.reply_to_message_id for reply in replies}
        asked = _sent_first([one for one in self._asked_to_evaluate if not one.is_heard])
        own = [one for one in asked if one.ids & ids] or asked[:1]
        heard = self._answered(asked, own, ids)
        for one in heard:
            one.is_heard = True
        return [message for one in heard for message in _sent(one.messages, ids)]

    def _without_left_out(
        self, phase: str, sent: Sequence[Message], replies: Sequence[Message]
    ) -> tuple[list[Message], list[Message]]:
        """Return messages and replies without those that a subclass has left out.

        An error that it has left out is still the reason for a missing reply.
        """
        passed_on = {reply.metadata.reply_to_message_id for reply in replies}
        received, left = self._received or {}, set[str]()
        if "" in passed_on:  # the subclass has made them: nobody can tell which ones it left out
            received = {}
        errors = []
        for message in sent:
            reply = received.get(message.metadata.message_id)
            if reply is None or message.metadata.message_id in passed_on:
                continue
            if reply.has_error():
                errors.append(reply)
            else:
                left.add(message.metadata.message_id)
        if left:
            LOGGER.info("%s: the subclass left out %d of %d replies", phase, len(left), len(sent))
        return [one for one in sent if one.metadata.message_id not in left], [*replies, *errors]

    def _may_read_arrays(self) -> bool:
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
        journal = self._protocol.journal
        if server_round < journal.done:
            return _to_metrics(journal.recall("evaluate", server_round))
        replies = list(replies)
        sent, replies = self._without_left_out(
            "aggregate_evaluate", self._sent_to_evaluate(replies), replies
        )
        if not replies and not sent:
            return None
        asked, replies_of = _by_node(sent, replies, self._former)
        sizes = self._count(sent, replies)
        usual, report = self._protocol.hear_evaluation(
            server_round, asked, replies_of, self._read_evaluation, sizes
        )
        metrics = self._aggregate("evaluate_metrics_aggr_fn", usual) if usual else None
        self._protocol.end_evaluation(report, metrics or {})
        if metrics is not None:
            journal.note("evaluate", server_round, metrics)
        return metrics

    def _count(
        self, asked: Sequence[Message], replies: Sequence[Message], *, trains: bool = False
    ) -> dict[str, float]:
        """Count a round's bytes, and return the mean sizes of its messages for the report.

        FedAvg's clients would have been sent the model, and would have answered training with it.
        """
        up, down, model = sizes_of(replies), sizes_of(asked), self._usual_size
        with_fedavg = sum(model if trains else size for size in up if size)
        self._protocol.watch.count(sum(up), sum(down), with_fedavg, model * len(down))
        # Without error replies, which hold nothing: the mean is what a client sends.
        sent = {"uplink-bytes": [*filter(None, up)], "downlink-bytes": [*filter(None, down)]}
        return {name: fmean(sizes) for name, sizes in sent.items() if sizes}

    def _without_lists(
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
            self._other_metrics.setdefault(server_round, dict(metrics))
        else:
            self._other_metrics[server_round] = lists
        return None if is_lost else MetricRecord(numbers)

    def _aggregate(self, name: str, replies: Sequence[Reply[RecordDict]]) -> MetricRecord | None:
        function, key = getattr(self, name), self.weighted_by_key
        examples = fair_examples([reply.metrics[key] for reply in replies])
        contents = [
            _with_metric(reply.source, key, count)
            for reply, count in zip(replies, examples, strict=True)
        ]
        return try_to_aggregate(name, lambda: MetricRecord(dict(function(contents, key) or {})))

    def _evaluate(
        self, evaluate: EvaluateFunction, server_round: int, arrays: ArrayRecord
    ) -> MetricRecord | None:
        journal = self._protocol.journal
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

    def _read(self, reply: Message, names: Sequence[str]) -> Said[RecordDict]:
        content, metrics, num_examples = self._open(reply)
        arrays = to_arrays(_only(ArrayRecord, content), max(len(names), MOST_ARRAYS))
        scalars = next((r for r in _records(ConfigRecord, content) if Payload.is_in(r)), None)
        if self._numpy_clients and scalars is None and len(arrays) == len(names):
            arrays = dict(zip(names, arrays.values(), strict=True))  # theirs are positions
        return Said(arrays, scalars, num_examples, metrics, content)

    def _read_evaluation(self, node: Node, reply: Message) -> Reply[RecordDict]:
        records = _records(ConfigRecord, reply.content) if reply.has_content() else []
        held = next((record[HELD] for record in records if HELD in record), None)
        content, metrics, num_examples = self._open(reply)
        return Reply(node, num_examples, metrics, content, held=as_version(held))

    def _open(self, reply: Message) -> tuple[RecordDict, MetricRecord, float]:
        """Return a reply's content, the metrics in it, and the client's weight."""
        if (earlier := self._former.get(reply.metadata.reply_to_message_id)) is not None:
            raise LateReplyError(f"replies to a message of round {earlier}")
        if reply.has_error():
            raise WireError(f"error {reply.error.code}: {failure_of(reply.error.reason)}")
        content = reply.content
        if self._numpy_clients:
            content = numpy_messages.read_reply(content)
        metrics = _only(MetricRecord, content)
        key = self.weighted_by_key
        return content, metrics, require_examples(key, metrics.get(key))


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


def _seeing_all(aggregate: Callable[..., Aggregated]) -> Callable[..., Aggregated]:
    """Return a subclass's method that lets its strategy see all replies that it is given."""

    @wraps(aggregate)
    def seeing_all(self: MessageStrategy, *given: Any, **named: Any) -> Aggregated:
        # A subclass of that subclass has been given them; one that names arguments its own way may.
        if self._received is not None or len(given) < 2:
            return aggregate(self, *given, **named)
        server_round, replies, *others = given
        replies = list(replies)
        self._received = {one.metadata.reply_to_message_id: one for one in replies}
        try:
            return aggregate(self, server_round, replies, *others, **named)
        finally:
            self._received = None

    return seeing_all


def _without_our_keys(config: ConfigRecord) -> ConfigRecord:
    """Return a copy of a config: callers reuse theirs, or take one from an older message."""
    return ConfigRecord({key: one for key, one in config.items() if not key.startswith(PREFIX)})


def _nodes(messages: Sequence[Message]) -> list[Node]:
    return [message.metadata.dst_node_id for message in messages]


def _types(messages: Iterable[Message]) -> dict[Node, str]:
    return {one.metadata.dst_node_id: one.metadata.message_type for one in messages}


def _has_place(message: Message, question: Question) -> bool:
    return question.cohort is None or message.metadata.dst_node_id in question.places


def _scalars_of(reply: Message) -> Mapping[str, Any] | str:
    """Return the scalars in a reply, or the reason why there are none."""
    if reply.has_error():
        return failure_of(reply.error.reason)
    return {
        key: one for record in _records(ConfigRecord, reply.content) for key, one in record.items()
    }


def _is_instructed(message: Message) -> bool:
    return any(map(Instruction.is_in, _records(ConfigRecord, message.content)))


def _in_order(record: ArrayRecord, question: Question) -> ArrayRecord:
    """Return arrays in the order in which clients are to be sent them.

    Arrays that are none of the question's stay as they are: the clients may have a mod before
    `perturb` that makes the model of them, as where a subclass compresses it.

    Raises
    ------
    ValueError
        If only some of the arrays are the question's: clients cannot answer it with them.
    """
    names = [*question.model]
    if [*record] == names or any(name.startswith(PREFIX) for name in record):  # or coded steps
        return record
    if record.keys() == {*names}:
        return ArrayRecord({name: record[name] for name in names})
    specs = question.layout.specs
    forms = [(name, tuple(array.shape), array.dtype) for name, array in record.items()]
    is_same = [shape for _, shape, _ in forms] == [spec.shape for spec in specs]
    own = {(spec.name, spec.shape, str(spec.dtype)) for spec in specs}
    if not is_same and not own.isdisjoint(forms):
        raise ValueError(
            f"training messages must hold the arrays that configure_train was given, {names}, got "
            f"{[*record]}: to train a part of the model, pass it to super().configure_train"
        )
    return record


def _others(messages: Sequence[Message], asked: Sequence[_Asked[Any]]) -> list[Message]:
    """Return the messages that are not among those of any call.

    A shallow copy shares its metadata with its original, and so the id that it is sent with.
    """
    known = {id(message.metadata) for one in asked for message in one.messages}
    return [message for message in messages if id(message.metadata) not in known]


def _sent_first(asked: list[_Asked[About]]) -> list[_Asked[About]]:
    """Return calls in order, but last those of which no message was sent."""
    return sorted(asked, key=lambda one: not one.ids)


def _key_in(message: Message) -> tuple[Any, Any] | None:
    """Return the key of the question that a message asks; None for another message."""
    configs = filter(Instruction.is_in, _records(ConfigRecord, message.content))
    return next(map(Instruction.key_in, configs), None)


def _question_in(reply: Message) -> Any:
    """Return the number of the question that a reply names; None for plain weights."""
    payloads = filter(Payload.is_in, _records(ConfigRecord, reply.content))
    return next(map(Payload.question_in, payloads), None)


def _sent(asked: Sequence[Message], answered: Collection[str]) -> list[Message]:
    """Return which of our messages were sent; `answered` are the ids that replies reply to.

    A subclass may drop some, or all. A message gets its id when it is sent. If a caller passes the
    replies in without sending, no message has one.
    """
    sent = [message for message in asked if message.metadata.message_id]
    return [*asked] if "" in answered and not sent else sent


def _by_node(
    sent: Sequence[Message], replies: Sequence[Message], former: Collection[str]
) -> tuple[list[Node], list[tuple[Node, Message]]]:
    """Return the nodes that were asked, and each reply with its node.

    If a node fails, the SuperLink replies for it, and only the message that it replies to names
    the node. A subclass asked for a reply whose message is neither ours nor a `former` one.
    """
    node_of = {one.metadata.message_id: one.metadata.dst_node_id for one in sent}
    node_of.pop("", None)
    known = node_of.keys() | former
    asked = _nodes(sent)
    speaking: list[tuple[Node, Message]] = []
    for reply in replies:
        metadata = reply.metadata
        node = node_of.get(metadata.reply_to_message_id, metadata.src_node_id)
        if metadata.reply_to_message_id and metadata.reply_to_message_id not in known:
            asked.append(node)
        speaking.append((node, reply))
    return list(dict.fromkeys(asked)), speaking


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
