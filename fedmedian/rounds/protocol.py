"""The protocol of a round, free of Flower: ask the clients, hear their replies, move the model.

The strategies of both APIs translate Flower's messages for it; what a round is stands here.
"""

import gc
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from fedmedian.aggregators.diagnostics import Report
from fedmedian.logs import warn
from fedmedian.model.layout import Arrays
from fedmedian.privacy.accounting import Mechanism
from fedmedian.privacy.mechanism import NoMechanism
from fedmedian.randomness import seeded_sampling
from fedmedian.rounds.first_look import doubts
from fedmedian.rounds.journal import Journal, is_same_model
from fedmedian.rounds.ledger import Ledger
from fedmedian.rounds.metrics import with_usual_metrics
from fedmedian.rounds.options import RunOptions
from fedmedian.rounds.recipe import NoStepError, Question, Recipe, ServerStep
from fedmedian.rounds.roster import Hearing, Received, Roster
from fedmedian.rounds.screening import (
    Answer,
    AnyReply,
    CohortRule,
    Node,
    Reply,
    Said,
    Source,
    one_reply_per_node,
)
from fedmedian.rounds.state import KnownModels, RunState
from fedmedian.rounds.watch import Heard, RunFailedError, Watch, describe_round

_LOGGER = logging.getLogger("flwr")


@contextmanager
def paused_collector() -> Iterator[None]:
    """Keep Python's cyclic garbage collector away from a round's replies while they are heard.

    They are many small objects in no cycles, which it would look at again and again: a fifth of
    the time of a round of ten thousand clients.
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
    rules : CohortRule
        The rules by which replies are judged together, in training and in evaluation, after
        "one reply per node that was asked". Those of the options follow, in training alone.
    ledger : Ledger, optional
        The account of the privacy budget, if there is one.
    """

    def __init__(
        self,
        recipe: Recipe,
        options: RunOptions,
        *rules: CohortRule,
        ledger: Ledger | None = None,
    ) -> None:
        self.recipe = recipe
        self.options = options
        self.journal = Journal(options.checkpoint)
        self._roster = Roster()
        self._rules = (one_reply_per_node, *rules)
        self._watch = Watch(options.max_failed_rounds, self._roster)
        self._ledger = ledger
        self._models = KnownModels({}, RunState())
        self._questions: list[Question] = []
        self._is_answered = False
        self._round: int | None = None
        self._is_over = False
        self._is_open = False
        self._has_trained = self._has_evaluated = False
        self._silent_rounds = 0
        self._model: Arrays = {}

    def open(self, initial: Arrays | None) -> None:
        """Begin a run, or resume the one that the checkpoint holds.

        Parameters
        ----------
        initial : mapping of str to array, or None
            The model that the run would begin with, if it is known.

        Raises
        ------
        ValueError, RuntimeError, OSError
            As `Journal.open` and `Ledger.open`.
        """
        self._is_open = True
        self._is_over = self._has_trained = self._has_evaluated = False
        self._silent_rounds, self._model = 0, initial or {}
        self._questions, self._round = [], None
        state = self.journal.open(self.recipe, initial)
        self._models = KnownModels(self.journal.model or {}, state)
        self._roster = Roster()
        self._watch = Watch(self.options.max_failed_rounds, self._roster)
        if self._ledger is not None:
            try:
                self._ledger.open(self.journal.done)
            except BaseException:
                self.release()
                raise

    def release(self) -> None:
        """Leave the checkpoint's folder to other runs: this one has ended."""
        self._is_open = False
        self.journal.release()

    def pass_over(self) -> int:
        """Take note of a round that has asked nobody to train, and return how many there were."""
        self._silent_rounds += 1
        return self._silent_rounds

    def require_somebody(self, drawn: str, *, trains: bool) -> None:
        """Raise if rounds have asked nobody, and none of the run has asked anybody.

        Parameters
        ----------
        drawn : str
            The arguments that decide how many clients are drawn.
        trains : bool
            Whether clients were to be trained; else it is enough that they were asked to evaluate.

        Raises
        ------
        RunFailedError
            If nobody was asked.
        """
        has_asked = self._has_trained if trains else self._has_trained or self._has_evaluated
        if has_asked or self.journal.done or self._is_over or not self._silent_rounds:
            return
        raise RunFailedError(
            f"no client was asked to {'train' if trains else 'do anything'} in "
            f"{self._silent_rounds} rounds, so that the model is the initial one: {drawn} must "
            "draw at least one of the connected nodes, a subclass's configure_train must return "
            "messages, and a privacy budget's sampling must not be less than the share that is "
            "drawn",
            self._model,
        )

    def affordable(self, num_rounds: int) -> int:
        """Return the number of a run's rounds that its privacy budget affords.

        Raises
        ------
        ValueError
            If it affords none, and none is stored.
        """
        if self._ledger is None:
            return num_rounds
        last = self.journal.done + self._ledger.rounds_left
        if last == 0 < num_rounds:
            raise ValueError(f"the privacy budget is spent: {self._ledger}")
        return min(num_rounds, last)

    def say_why_it_ends(self, last: int, num_rounds: int) -> None:
        """Log that a run has ended before its last round, if it has."""
        if last < num_rounds:
            warn(
                "the run ends after round %d of %d: another would exceed the privacy budget, %s",
                *(last, num_rounds, self._ledger),
            )

    def describe_privacy(self, mechanism: Mechanism | NoMechanism) -> str | None:
        """Return what to say at a run's start about privacy; None if there is none."""
        if isinstance(mechanism, NoMechanism):
            return None
        budget = "" if self._ledger is None else f"; budget {self._ledger}"
        return f"privacy: {mechanism}{budget}"

    @property
    def last_question(self) -> Question | None:
        """The question that was asked last, or None if none was."""
        return self._questions[-1] if self._questions else None

    def questions_of(self, server_round: int) -> list[Question]:
        """Return the open questions of a round, one per model."""
        return [one for one in self._questions if one.server_round == server_round]

    def ask(self, server_round: int, model: Arrays) -> Question | None:
        """Ask a question.

        Asked again about the same model in one round, it is the same question. About another
        model, as of a second cluster of clients, it is another one. A round ends when the
        first of its questions has been answered: what is asked then belongs to the next one.

        Parameters
        ----------
        server_round : int
            The round; 1 starts a run afresh.
        model : mapping of str to array
            The model.

        Returns
        -------
        Question or None
            The question; None if the checkpoint holds this round already, or the privacy budget
            does not afford it.

        Raises
        ------
        ValueError, RuntimeError, OSError
            As `open`, which a run that another strategy drives has not called, and as
            `Journal.require_continuation`.
        """
        if not self._is_open or self._is_another_run(server_round):
            self.open(model)
            self.journal.warn_of_unseen_rounds()
        self._round, self._model = server_round, model
        if self.journal.holds(server_round):
            return None
        self.journal.require_continuation(model)
        if self._ledger is not None and not self._ledger.rounds_left:
            if not self._is_over:
                warn(
                    "no client is asked from round %d on: another answer would exceed the privacy "
                    "budget, %s",
                    *(server_round, self._ledger),
                )
            self._is_over = True
            return None
        asked = [] if self._is_answered else self.questions_of(server_round)
        for question in asked:
            if is_same_model(question.model, model):
                return question
        state = self._models.state_of(model)
        question = self.recipe.ask(state, server_round, model, len(asked))
        if server_round == self.journal.done + 1:
            for doubt in doubts(question, tuple(self.recipe.exact)):
                warn("%s", doubt)
        self._questions, self._is_answered = [*asked, question], False
        return question

    def _is_another_run(self, server_round: int) -> bool:
        """Return whether rounds start over, as in a second run that another strategy drives."""
        if self._round is None or server_round > self._round:
            return False
        return server_round < self._round or (server_round == 1 and self._is_answered)

    def may_ask(self, question: Question, drawn: int, present: int) -> bool:
        """Decide whether the clients that were drawn are asked, and charge the budget if so.

        Parameters
        ----------
        question : Question
            What they are to be asked.
        drawn : int
            The number of clients that were drawn.
        present : int
            The number of connected clients that they were drawn from.

        Returns
        -------
        bool
            Whether they may be asked.

        Raises
        ------
        ValueError
            As `Ledger.spend`.
        """
        if self._ledger is None or not drawn:
            return drawn > 0
        if not self._ledger.is_hidden(drawn, present):
            return False
        self._ledger.spend(question)
        return True

    def sampling(self, server_round: int) -> AbstractContextManager[None]:
        """Return a context in which Flower samples nodes as the seed says."""
        return seeded_sampling(self.recipe.seed, server_round)

    def hear(
        self,
        question: Question,
        asked: Collection[Node],
        replies: Iterable[tuple[Node, Received]],
        read: Callable[[Received], Said[Source]],
        failures: Sequence[str] = (),
    ) -> Heard[Source]:
        """Make a step of the replies to training that can be used.

        Parameters
        ----------
        question : Question
            The question.
        asked : collection of int or str
            The nodes that were asked.
        replies : iterable of (int or str, object)
            The nodes that have replied, each with its reply as Flower's API has it.
        read : callable
            Reads such a reply, or raises.
        failures : sequence of str
            Why clients have not replied, as far as that is known.

        Returns
        -------
        Heard
            The new model, and what to report. `end` is to be called with how it was reported.
        """
        self._has_trained = True
        hearing = Hearing("aggregate_train", asked, self._roster, failures)
        answers = hearing.readable(replies, lambda node, one: question.answer(node, read(one)))
        self._roster.learn([(answer.node, answer.payload.partition) for answer in answers])
        rules = (*self._rules, *self.options.cohort_rules)
        kept, counts = hearing.judge(question.server_round, answers, rules)
        report: Report = {**counts}
        if self._ledger is not None:
            report |= self._ledger.report
            self._ledger.look_at(answers)
        model, state, reason = None, question.state, ""
        try:
            step, state, measured = self._step(question, kept)
            report |= measured
            model = question.move(step)
            self._models.replace(question.model, model, state)
        except NoStepError as error:
            reason = str(error)
            warn("round %d keeps the model as it is: %s", question.server_round, reason)
        kept = self.recipe.in_order(kept)  # averages of metrics depend on it, too
        usual = self._with_usual_metrics(kept)
        return Heard(
            question, model, state, report, usual, len(asked), hearing.reasons, reason, kept
        )

    def _step(
        self, question: Question, answers: list[Answer[Any]]
    ) -> tuple[ServerStep, RunState, Report]:
        least, diagnostics = self.options.min_replies, self.options.diagnostics
        if len(answers) < least:
            raise NoStepError(f"{len(answers)} usable replies, min_replies is {least}")
        return self.recipe.step(question, answers, question.state, diagnostics=diagnostics)

    def end(
        self, heard: Heard[Any], sizes: Mapping[str, float], own: Mapping[str, Any]
    ) -> dict[str, Any]:
        """End a round of training: store it, and what was reported of it, if it is time to.

        Parameters
        ----------
        heard : Heard
            The outcome of the round.
        sizes : mapping of str to float
            ``uplink-bytes`` and ``downlink-bytes``.
        own : mapping
            The clients' own metrics, aggregated. None of them takes the place of a measurement.

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
        metrics = {**own, **report}
        self.journal.note("train", question.server_round, metrics)
        model = question.model if heard.model is None else heard.model
        self.journal.end_round(question.server_round, self.recipe, model, heard.state)
        few = self.recipe.aggregator.cost_of_few(self.recipe.noise)
        # Not the clients' metrics: they may have the names of ours, and hold anything.
        self._watch.see(heard, report, few)
        return metrics

    def count(self, up: float, with_fedavg: float, down: float) -> None:
        """Count the bytes of a round of training or evaluation; see `Watch.count`."""
        self._watch.count(up, with_fedavg, down)

    def say_totals(self) -> None:
        """Log what the run has sent, once it has ended."""
        self._watch.say_totals()

    def hear_evaluation(
        self,
        server_round: int,
        asked: Collection[Node],
        replies: Iterable[tuple[Node, Received]],
        read: Callable[[Node, Received], Reply[Source]],
        sizes: Mapping[str, float] | None = None,
        failures: Sequence[str] = (),
    ) -> list[Reply[Source]]:
        """Return the replies to evaluation whose metrics can be aggregated.

        Parameters
        ----------
        server_round : int
            The round.
        asked, replies, read
            As for `hear`.
        sizes : mapping of str to float, optional
            ``uplink-bytes`` and ``downlink-bytes``, as far as they are known, for the log.
        failures : sequence of str
            As for `hear`.

        Returns
        -------
        list of Reply
            The replies.
        """
        self._has_evaluated = True
        hearing = Hearing("aggregate_evaluate", asked, self._roster, failures)
        kept, counts = hearing.judge(server_round, hearing.readable(replies, read), self._rules)
        _LOGGER.info("aggregate_evaluate: %s", describe_round({**counts, **(sizes or {})}))
        return self._with_usual_metrics(kept)

    def _with_usual_metrics(self, replies: list[AnyReply]) -> list[AnyReply]:
        return with_usual_metrics(replies, self._roster.name)
