"""The protocol of a run's rounds: ask clients, hear their replies, move the model.

It does not know Flower: the strategies of both APIs translate Flower's messages for it.
"""

import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fedmedian.aggregators.diagnostics import Report
from fedmedian.kernels.threads import usual_threads
from fedmedian.logs import LOGGER, Once, warn
from fedmedian.model.layout import Arrays, Layout, is_same_model
from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.randomness import seeded_sampling
from fedmedian.rounds.downlink import Content, Held, num_bytes
from fedmedian.rounds.first_look import doubts
from fedmedian.rounds.journal import Journal
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.metrics import with_usual_metrics
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.recipe import Model, NoStepError, Question, Recipe
from fedmedian.rounds.roster import Hearing, Received, Roster
from fedmedian.rounds.screening import (
    Answer,
    CohortRule,
    Node,
    Reply,
    Source,
    one_reply_per_node,
)
from fedmedian.rounds.state import KnownModels, RunState
from fedmedian.rounds.sums import Exchange, SecureSums
from fedmedian.rounds.watch import Heard, RunFailedError, Watch, describe_round
from fedmedian.steps.downlink import NOT_HELD
from fedmedian.steps.sums import VoteCounts
from fedmedian.wire.scalars import POLICY_RULE

_MOST_LOSSES = 2

_NO_PLACE = "has no place in the secure sum, for want of a key"
_LEFT_THE_SUM = "did not help to open the secure sum"


@contextmanager
def paused_collector() -> Iterator[None]:
    """Pause Python's cyclic garbage collector while replies are heard.

    Replies are many small objects without cycles. Scanning them again and again would take a fifth
    of the time of a round of ten thousand clients.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class RoundProtocol:
    """The rounds of a run.

    Parameters
    ----------
    recipe : Recipe
        What the model depends on.
    options : RunOptions
        The other arguments of the strategy.
    *rules : CohortRule
        Rules for all replies of a phase together, in training and in evaluation. They apply after
        `one_reply_per_node`; in training those of the options follow.
    ledger : Ledger, optional
        The account of the privacy budget, if any.

    Attributes
    ----------
    is_announced : bool
        Whether the strategy was told that the run begins; not if another strategy drives it.
    asked_as : dict
        The last round that clients were told of, by the round that a subclass was called for.
    """

    def __init__(
        self, recipe: Recipe, options: RunOptions, *rules: CohortRule, ledger: Ledger | None = None
    ) -> None:
        self.recipe = recipe
        self.options = options
        self.journal = Journal(options.checkpoint)
        self._rules = (one_reply_per_node, *rules)
        self._ledger = ledger
        self._is_open = self.is_announced = self._is_answered = False
        self._passes = Counter[int]()  # how often each round has trained
        self._draws = Counter[tuple[int, bool]]()  # how often each has drawn nodes, by phase
        self._begin({}, RunState())

    def _begin(self, model: Arrays, state: RunState) -> None:
        self._roster = Roster()
        few = self.recipe.aggregator.cost_of_few(self.recipe.noise)
        most, is_resumed = self.options.max_failed_rounds, self.journal.done > 0
        self.watch = Watch(most, few, self._roster, is_resumed=is_resumed)
        self._models = KnownModels(self.journal.model or {}, state)
        self._versions: dict[Node, str] = {}
        self._unclear = set[Node]()
        self._losses = Counter[Node]()
        secure = self.recipe.secure
        self._sums = None if secure is None else SecureSums(secure, self._roster)
        self._questions: list[Question] = []
        self._round: int | None = None
        self._first_round: int | None = None  # a caller may count from any, or begin with others
        self._asking: int | None = None
        self.asked_as = dict[Any, int]()
        self._is_over = self._has_trained = self._has_evaluated = False
        self._once = Once()
        self._silent_rounds = self._asked_before = 0
        self._model = model

    def open(self, initial: Arrays | None) -> None:
        """Start a run, or resume the one in the checkpoint.

        Parameters
        ----------
        initial : mapping of str to array, or None
            The initial model, if known.

        Raises
        ------
        ValueError, RuntimeError, OSError
            As `Journal.open` and `Ledger.open`.
        """
        self._is_open = self.is_announced = True
        # A loop of the user's own may start one round after the other.
        if initial is None or not self._models.have_led_to(initial):
            self._passes.clear()
            self._draws.clear()
        self._begin(initial or {}, self.journal.open(self.recipe, initial))
        if self._ledger is not None:
            try:
                self._ledger.open(self.journal.done)
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """End the run: unlock the checkpoint's folder for other runs."""
        self._is_open = False
        self.journal.release()

    def pass_over(self) -> int:
        """Count a round that asked no client to train, and return how many there were."""
        self._silent_rounds += 1
        return self._silent_rounds

    def require_clients(self, drawn: str, *, trains: bool) -> None:
        """Raise if the run has had rounds, and none of them asked any client.

        Parameters
        ----------
        drawn : str
            The arguments that set how many clients are drawn.
        trains : bool
            Whether clients were to train; otherwise it is enough that they were asked to evaluate.

        Raises
        ------
        RunFailedError
            If no client was asked.
        """
        has_asked = self._has_trained if trains else self._has_trained or self._has_evaluated
        if has_asked or self.journal.done or self._is_over or not self._silent_rounds:
            return
        raise RunFailedError(
            f"no client was asked to {'train' if trains else 'do anything'} in "
            f"{self._silent_rounds} rounds, so the model is still the initial one: {drawn} must "
            "draw at least one of the connected nodes, a subclass's configure_train must return "
            "messages, and a privacy budget must not be spent, nor its sampling be less than the "
            "share that is drawn",
            self._model,
        )

    def affordable(self, num_rounds: int) -> int:
        """Return how many of a run's rounds the privacy budget affords.

        Raises
        ------
        ValueError
            If it affords none, and no round is stored.
        """
        if self._ledger is None:
            return num_rounds
        last = self.journal.done + self._ledger.rounds_left
        if last == 0 < num_rounds:
            raise ValueError(f"the privacy budget is spent: {self._ledger}")
        return min(num_rounds, last)

    def say_why_it_ends(self, last: int, num_rounds: int) -> None:
        """Log a warning if the budget ends the run before its last round."""
        if last < num_rounds:
            warn(
                "the run ends after round %d of %d: another would exceed the privacy budget, %s",
                *(last, num_rounds, self._ledger),
            )

    def describe_privacy(self, mechanism: Mechanism | NoMechanism) -> str | None:
        """Return the line about privacy for the start of a run; None without a mechanism."""
        if isinstance(mechanism, NoMechanism):
            return None
        budget = "" if self._ledger is None else f"; budget {self._ledger}"
        return f"privacy: {mechanism}{budget}"

    @property
    def last_question(self) -> Question | None:
        """The last question, or None before the first."""
        return self._questions[-1] if self._questions else None

    def questions_of(self, server_round: int) -> list[Question]:
        """Return the open questions of a round, one per model."""
        return [one for one in self._questions if one.server_round == server_round]

    def note_calls(self, called_for: Any, questions: Iterable[Question | None]) -> None:
        """Note the questions that a subclass asks in a round.

        It may number rounds differently for its clients, for example to continue an earlier run.

        Parameters
        ----------
        called_for : object
            The round that the subclass is called for, None if unknown.
        questions : iterable of Question or None
            The questions; None for messages without one.
        """
        rounds = {one.server_round for one in questions if one is not None}
        asking = self._asking
        self.asked_as = {called_for: asking} if asking is not None and asking in rounds else {}

    def not_asked(self, server_round: int, replies: str, configure: str) -> RuntimeError:
        """Return the error for replies of a round without an open question.

        Parameters
        ----------
        server_round : int
            The round.
        replies, configure : str
            The API's words for replies, and the method of a strategy that asks for them.
        """
        if self._round is not None and server_round < self._round:
            return RuntimeError(
                f"{replies} of round {server_round} were aggregated after {configure} had been "
                f"called for round {self._round}: aggregate each round before the next one is "
                "configured"
            )
        return RuntimeError(
            f"{replies} of round {server_round} were aggregated before it was configured: a "
            f"subclass's {configure} must call super().{configure} in each round"
        )

    def ask(self, server_round: int, model: Arrays) -> Question | None:
        """Ask a question.

        The same model in the same round is the same question. Another model, as of a second cluster
        of clients, is another question of the round. Rounds that start over are another run: a
        smaller number, or, if another strategy drives the run, round 1 again after it was answered,
        but not from the model that it made.

        Parameters
        ----------
        server_round : int
            The round.
        model : mapping of str to array
            The model.

        Returns
        -------
        Question or None
            The question; None if the checkpoint holds this round, or the privacy budget does not
            afford it.

        Raises
        ------
        ValueError, RuntimeError, OSError
            As `open`, which is called if another strategy drives the run, and as
            `Journal.require_continuation`.
        """
        if not self._is_open or self._is_another_run(server_round, model):
            self.open(model)
            self.is_announced = False
            self.journal.warn_of_unseen_rounds()
        if server_round != self._round:
            self._asked_before = 0
        names = [*{**self._model, **model}]  # the first round may train a part of the model
        self._round, self._model = server_round, model
        if self.journal.holds(server_round):
            return None
        self.journal.require_continuation(model)
        if self._ledger is not None and not self._ledger.rounds_left:
            self._once.warn(
                "over",
                "no client is asked from round %d on: another answer would exceed the privacy "
                "budget, %s",
                *(server_round, self._ledger),
            )
            self._is_over = True
            return None
        self._asking, self._unclear = server_round, set()
        if self._is_answered:
            self.journal.reopen(server_round)
        asked = [] if self._is_answered else self.questions_of(server_round)
        for question in asked:
            if is_same_model(question.model, model):
                return question
        if self._first_round is None:
            self._first_round = server_round
        known = self._models.to_ask(model, server_round)
        question = self.recipe.ask(
            *(known.state, server_round, model, self._asked_before, self._versions),
            passes=self._passes[server_round],
        )
        # Also if nobody answers: clients hold what they were sent.
        self._models.note_question(question.key, known, question.state)
        if server_round == self._first_round:
            for doubt in doubts(question, names, tuple(self.recipe.exact)):
                warn(*doubt)
        self._questions, self._is_answered = [*asked, question], False
        self._asked_before += 1
        return question

    def _is_another_run(self, server_round: int, model: Arrays) -> bool:
        """Return whether rounds start over, as in a second run that another strategy drives."""
        if self._round is None or server_round > self._round:
            return False
        if server_round < self._round:
            return True
        is_again = server_round == 1 and self._is_answered
        return is_again and not self.is_announced and not self._models.have_made(model)

    def may_ask(
        self, question: Question, drawn: Collection[Node], present: int, sent: Collection[Node] = ()
    ) -> bool:
        """Return whether the drawn clients may be asked, and charge the budget if so.

        Parameters
        ----------
        question : Question
            What they would be asked.
        drawn : collection of int or str
            The clients drawn.
        present : int
            The number of connected clients that they were drawn from.
        sent : collection of int or str
            Those that may have been sent this question before.

        Returns
        -------
        bool
            Whether they may be asked.

        Raises
        ------
        ValueError
            As `Ledger.affords`.
        """
        if self._ledger is None:
            return len(drawn) > 0
        is_hidden = len(drawn) > 0 and self._ledger.is_hidden(len(drawn), present)
        if is_hidden and self._ledger.spend(question, drawn, sent):
            return True
        self._ledger.store(question)
        return False

    def seat(
        self, question: Question, nodes: Sequence[Node], exchange: Exchange
    ) -> Question | None:
        """Return the question with the nodes' places in its secure sum, if there is to be one.

        Parameters
        ----------
        question : Question
            The question. It may have a sum of other nodes, as those that a subclass does not ask.
        nodes : sequence of int or str
            The nodes to be asked.
        exchange : callable
            Sends scalars to nodes and returns their replies.

        Returns
        -------
        Question or None
            The question; None if too few clients can take part in the sum, or the privacy budget
            does not afford it.

        Raises
        ------
        ValueError
            As `Ledger.affords`.
        RunFailedError
            If that is so for too many rounds in a row.
        """
        if self._sums is None or not nodes:
            return question
        if self._ledger is not None:
            affords = self._ledger.affords if question.cohort is None else self._ledger.recharge
            if not affords(question, nodes):
                return None  # and nobody is asked for a key
        try:
            return self._sums.seat(question, nodes, exchange)
        except NoStepError as error:
            self._has_trained = True
            self._keep_model(question, error)
            self.watch.fail(question, str(error))
            return None

    def sampling(
        self, server_round: int, *, evaluates: bool = False
    ) -> AbstractContextManager[None]:
        """Return a context in which Flower samples nodes by the seed, anew in each call."""
        before = self._draws[server_round, evaluates]
        self._draws[server_round, evaluates] += 1
        return seeded_sampling(self.recipe.seed, server_round, evaluates=evaluates, before=before)

    def hear(
        self,
        question: Question,
        asked: Collection[Node],
        replies: Collection[tuple[Node, Received]],
        read: Callable[[Node, Received], Answer[Source]],
        failures: Sequence[str] = (),
        exchange: Exchange | None = None,
    ) -> Heard[Source]:
        """Make a step from the usable replies to training.

        Parameters
        ----------
        question : Question
            The question.
        asked : collection of int or str
            The nodes that were asked.
        replies : collection of (int or str, object)
            Each node that replied, with its reply as Flower's API has it.
        read : callable
            Reads a node's reply, or raises; see `Question.answer`.
        failures : sequence of str
            Known reasons for missing replies.
        exchange : callable, optional
            As for `seat`, where there is a secure sum.

        Returns
        -------
        Heard
            The outcome, for `end`.
        """
        if self._ledger is not None:
            self.journal.require_lock()  # its count must not replace that of a later run
        self._has_trained, self._asking = True, None
        hearing = Hearing("aggregate_train", asked, self._roster, failures)
        answers = hearing.readable(replies, read)
        self._roster.learn([(answer.node, answer.payload.partition) for answer in answers])
        self._acknowledge(hearing, replies, answers)
        rules = (*self._rules, *self.options.cohort_rules)
        kept = hearing.judge(question.server_round, answers, rules)
        report: Report = {}
        model, state, reason = None, question.state, ""
        try:
            total = None
            if self._sums is not None:
                assert exchange is not None  # only the Message API has secure sums
                self._sums.forget({*asked} - {answer.node for answer in kept})
                voted, kept = kept, []  # nobody counts unless the sum is opened
                kept, total = self._open_sum(question, voted, exchange, hearing)
                if self._ledger is not None:
                    self._ledger.settle(question, len(kept))
            model, state, report = self._step(question, kept, total)
        except NoStepError as error:
            reason = str(error)
            self._keep_model(question, error)
        after = question.model if model is None else model
        heard_of = {node for node, _ in replies}
        self._models.note_answer(question.key, question.model, after, state, heard_of)
        report |= hearing.counts
        if self._ledger is not None:
            self._ledger.correct_charge(question, [answer.node for answer in answers])
            report |= self._ledger.report
            self._ledger.warn_of_metrics(answers, "training")
        kept = self.recipe.in_order(kept)  # averages of metrics depend on it, too
        usual = with_usual_metrics(kept, self._roster.name)
        return Heard(
            question, model, state, report, usual, len(asked), hearing.reasons, reason, kept
        )

    def _open_sum(
        self, question: Question, answers: list[Answer[Any]], exchange: Exchange, hearing: Hearing
    ) -> tuple[list[Answer[Any]], VoteCounts]:
        """Return the answers whose votes are in a secure sum, and the sum.

        The nodes that are not in it join the reasons and the counts.

        Raises
        ------
        NoStepError
            If it cannot be opened. Then no vote counts.
        """
        assert self._sums is not None  # only called with secure sums
        hearing.counts["replies-missing"] += len(question.without_place)
        hearing.reasons += [_NO_PLACE] * len(question.without_place)
        kept, reason = list[Answer[Any]](), _LEFT_THE_SUM
        try:
            kept, total = self._sums.open(question, answers, exchange, hearing.reasons)
            return kept, total
        except NoStepError as error:
            reason = str(error)
            raise
        finally:
            left = len(answers) - len(kept)
            hearing.counts["replies-accepted"] = len(kept)
            hearing.counts["replies-rejected"] += left
            hearing.reasons += [reason] * left

    def _keep_model(self, question: Question, reason: NoStepError) -> None:
        warn("round %d keeps the model as it is: %s", question.server_round, reason)

    def _step(
        self, question: Question, answers: list[Answer[Any]], total: VoteCounts | None
    ) -> tuple[Model, RunState, Report]:
        least = self.options.min_replies
        if len(answers) < least:
            raise NoStepError(f"{len(answers)} usable replies, min_replies is {least}")
        return self.recipe.step(
            *(question, answers, question.state),
            diagnostics=self.options.diagnostics,
            total=total,
            threads=self.options.threads or usual_threads(),
        )

    def end(
        self, heard: Heard[Any], sizes: Mapping[str, float], own: Mapping[str, Any]
    ) -> dict[str, Any]:
        """End a round of training: store it if a checkpoint is due, log it, and check the run.

        Parameters
        ----------
        heard : Heard
            The outcome of the round.
        sizes : mapping of str to float
            ``uplink-bytes`` and ``downlink-bytes``.
        own : mapping
            The clients' own metrics, aggregated. They do not replace measurements of the same name.

        Returns
        -------
        dict
            All metrics of the round.

        Raises
        ------
        RunFailedError
            If the run is lost; see `fedmedian.rounds.watch.Watch`.
        """
        self._is_answered = True
        question, report = heard.question, {**heard.report, **sizes}
        self._passes[question.server_round] += 1
        metrics = {**own, **report}
        self.journal.note("train", question.server_round, metrics)
        model = question.model if heard.model is None else heard.model
        self.journal.end_round(
            *(question.server_round, self.recipe, model, heard.state), has_step=not heard.no_step
        )
        # The clients' metrics apart: they may have the names of ours, and hold anything.
        self.watch.see(heard, report, own)
        return metrics

    def held_to_evaluate(self, model: Arrays) -> Held | None:
        """Return what clients that evaluate a model hold, or None without a coded downlink.

        A round of training that begins with this model then sends no other step.
        """
        if self.recipe.downlink is None:
            return None
        self._unclear = set()
        layout = Layout.of_model(model, self.recipe.exact)
        known = self._models.of(model)
        known.state = self.recipe.with_held(known.state, model, layout)
        return known.state.held

    def held(self, version: str | None) -> Held | None:
        """Return what clients hold once they are sent a version of a model; None if unknown."""
        return self._models.held(version)

    def content_for(self, held: Held, node: Node) -> Content:
        """Return what a node is sent to follow what clients hold."""
        return held.content_for(self._versions.get(node))

    def contents_for(self, asked: Sequence[tuple[Node, Held | None]]) -> list[Content | None]:
        """Return what nodes are sent to follow what clients hold, if all are asked at once.

        A node that is asked about several models is sent each as a whole: steps would have to
        begin from the one that it then holds, and the server cannot know which one that is.

        Parameters
        ----------
        asked : sequence of (int or str, Held or None)
            Each node that is asked, with what clients hold of the model; None if nothing.
        """
        models: dict[Node, set[int]] = {}
        for node, held in asked:
            if held is not None:
                models.setdefault(node, set()).add(id(held))
        self._unclear = {node for node, own in models.items() if len(own) > 1}
        for node in self._unclear:  # also if nobody hears its replies
            self._versions.pop(node, None)
        return [self.content_for(held, node) if held else None for node, held in asked]

    def log_whole_models(self, held: Held | None, nodes: Collection[Node]) -> None:
        """Log how many nodes are sent the whole model, and why.

        If all are because arrays have changed, this is logged once per run.
        """
        if held is not None and held.reason and nodes and self._once.is_first("reason"):
            LOGGER.info(
                "all clients are sent the whole model, %s bytes each, because its arrays differ "
                "from those of the last one: %s; coded steps are sent while the arrays stay the "
                "same",
                *(f"{num_bytes(held.model):,}", held.reason),
            )
        if held is None or not held.steps:
            return
        known = [self._versions[node] for node in nodes if node in self._versions]
        unknown, behind = len(nodes) - len(known), sum(one not in held.versions for one in known)
        if unknown or behind:
            LOGGER.info(
                "%d of %d clients are sent the whole model, %s bytes each: %d are new, have "
                "failed, lack the mod, or keep no state between rounds; %d hold one that is too "
                "old",
                *(unknown + behind, len(nodes), f"{num_bytes(held.model):,}", unknown, behind),
            )

    def _acknowledge(
        self, hearing: Hearing, replies: Iterable[tuple[Node, Any]], answers: Iterable[Reply[Any]]
    ) -> None:
        """Remember what nodes say they hold; a node whose reply is not valid may hold nothing.

        A node whose policy refuses to answer has applied the steps all the same. A node that was
        sent steps and did not hold the model `_MOST_LOSSES` times in a row is sent no more of them:
        its client keeps no state between rounds. A whole model in between proves nothing.
        Flower's older API does not say whose failure it is: unless all failures have one reason, a
        liar's could be held against an honest node.
        """
        valid = {answer.node: answer.held for answer in answers}
        silent = {node for node in hearing.asked if node not in valid and hearing.failures}

        def unusable_for(words: str) -> set[Node]:
            is_of_all = all(words in reason for reason in hearing.failures)
            return hearing.nodes_rejected(words) | (silent if is_of_all else set())

        lost, follows = unusable_for(NOT_HELD), unusable_for(POLICY_RULE)
        for node in {*(node for node, _ in replies), *silent} - (follows - valid.keys()):
            if self._versions.pop(node, None) is not None:
                self._losses[node] = (node not in valid) * (self._losses[node] + (node in lost))
        for node, version in valid.items():
            is_kept = self._losses[node] < _MOST_LOSSES and node not in self._unclear
            if version is not None and is_kept:
                self._versions[node] = version

    def hear_evaluation(
        self,
        server_round: int,
        asked: Collection[Node],
        replies: Collection[tuple[Node, Received]],
        read: Callable[[Node, Received], Reply[Source]],
        sizes: Mapping[str, float],
        failures: Sequence[str] = (),
    ) -> tuple[list[Reply[Source]], list[Reply[Source]], Report]:
        """Return the usable replies to evaluation, and a report.

        Parameters
        ----------
        server_round : int
            The round.
        asked, replies, read
            As for `hear`.
        sizes : mapping of str to float
            ``uplink-bytes`` and ``downlink-bytes``, for the log.
        failures : sequence of str
            As for `hear`.

        Returns
        -------
        list of Reply
            The usable replies.
        list of Reply
            Those of them whose metrics can be aggregated.
        dict
            What to report, for `end_evaluation`.
        """
        self._has_evaluated = True
        hearing = Hearing("aggregate_evaluate", asked, self._roster, failures)
        answers = hearing.readable(replies, read)
        if self._ledger is not None:
            self._ledger.warn_of_metrics(answers, "evaluation")
        following = {node for node in asked if node in self._versions}
        if following and not following & {answer.node for answer in answers}:
            self.watch.see_steps_in_vain()
        self._acknowledge(hearing, replies, answers)
        kept = hearing.judge(server_round, answers, self._rules)
        self.watch.see_evaluation(server_round, hearing.reasons, len(kept))
        usual = with_usual_metrics(kept, self._roster.name)
        return kept, usual, {**hearing.counts, **sizes}

    def end_evaluation(self, report: Report, own: Mapping[str, Any]) -> None:
        """Log the line of an evaluation, with the clients' aggregated metrics."""
        LOGGER.info("aggregate_evaluate: %s", describe_round(report, own))
