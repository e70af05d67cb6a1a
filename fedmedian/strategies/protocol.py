"""The protocol of a round, free of Flower: ask the clients, hear their replies, move the model.

The strategies of both APIs translate Flower's messages for it; what a round is stands here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fedmedian.diagnostics import Report
from fedmedian.instructions import Instruction
from fedmedian.layout import Arrays
from fedmedian.randomness import seeded_sampling
from fedmedian.strategies.cohort import (
    Answer,
    AnyReply,
    CohortRule,
    Node,
    Reply,
    Source,
    one_reply_per_node,
)
from fedmedian.strategies.core import Core, Model
from fedmedian.strategies.journal import Journal
from fedmedian.strategies.metrics import with_usual_metrics
from fedmedian.strategies.roster import Hearing, Roster

Received = TypeVar("Received")


@dataclass(frozen=True)
class Said(Generic[Source]):
    """The content of a reply to training, not yet judged.

    Parameters
    ----------
    arrays : mapping of str to array
        Its arrays.
    scalars : mapping or None
        The scalars of the payload in it; None for plain weights.
    num_examples : float
        The client's weight, > 0.
    metrics : mapping
        The client's own metrics.
    source : object
        The reply as Flower's API has it.
    """

    arrays: Arrays
    scalars: Mapping[str, Any] | None
    num_examples: float
    metrics: Mapping[str, Any]
    source: Source


@dataclass(frozen=True)
class Heard(Generic[Source]):
    """The outcome of a round.

    Parameters
    ----------
    model : dict of str to array or None
        The new model; None if it is the one from before the round.
    report : dict
        What to report about the round.
    usual : list of Answer
        The accepted answers whose metrics can be aggregated.
    """

    model: Model | None
    report: Report
    usual: list[Answer[Source]]


class RoundProtocol:
    """The rounds of a run.

    Parameters
    ----------
    core : Core
        The strategy's own work.
    rules : CohortRule
        The rules by which replies are judged together, in training and in evaluation, after
        "one reply per node that was asked". Those of the settings follow, in training alone.
    """

    def __init__(self, core: Core, *rules: CohortRule) -> None:
        self.core = core
        self.journal = Journal(core.settings.checkpoint)
        self._roster = Roster()
        self._rules = (one_reply_per_node, *rules)

    def ask(self, server_round: int, model: Arrays) -> Instruction | None:
        """Begin a round of training.

        Parameters
        ----------
        server_round : int
            The round; 1 starts a run afresh.
        model : mapping of str to array
            The model.

        Returns
        -------
        Instruction or None
            What to ask of the clients; None if the checkpoint holds this round already.
        """
        if server_round <= self.journal.done:
            return None
        if server_round == 1:
            self._roster = Roster()
        return self.core.begin(server_round, model)

    def sampling(self, server_round: int) -> AbstractContextManager[None]:
        """Return a context in which Flower samples nodes as the seed says."""
        return seeded_sampling(self.core.settings.seed, server_round)

    def hear(
        self,
        asked: Collection[Node],
        replies: Iterable[tuple[Node, Received]],
        read: Callable[[Received], Said[Source]],
    ) -> Heard[Source]:
        """Make a step of the replies to training that can be used.

        Parameters
        ----------
        asked : collection of int or str
            The nodes that were asked.
        replies : iterable of (int or str, object)
            The nodes that have replied, each with its reply as Flower's API has it.
        read : callable
            Reads such a reply, or raises.

        Returns
        -------
        Heard
            The new model, and what to report. `end` is to be told how it was reported.

        Raises
        ------
        RuntimeError
            If no round has begun.
        """
        core = self.core
        hearing = Hearing("aggregate_train", asked, self._roster)
        answers = []
        for node, reply in replies:
            with hearing.reply_of(node):
                said = read(reply)
                payload = core.read(said.arrays, said.scalars)
                self._roster.learn(node, payload.partition)
                answer = Answer(node, said.num_examples, said.metrics, said.source, payload)
                answers.append(answer)
        rules = (*self._rules, *core.settings.cohort_rules)
        kept, counts = hearing.judge(core.current.number, answers, rules)
        step, report = core.finish(kept)
        model = None if step is None else core.move(step)
        return Heard(model, {**counts, **report}, self._with_usual_metrics(kept))

    def end(self, heard: Heard[Any], metrics: Mapping[str, Any]) -> None:
        """End a round of training: store it, and what was reported of it, if it is time to."""
        self.journal.note("train", self.core.current.number, metrics)
        self.journal.end_round(self.core, heard.model)

    def hear_evaluation(
        self,
        server_round: int,
        asked: Collection[Node],
        replies: Iterable[tuple[Node, Received]],
        read: Callable[[Node, Received], Reply[Source]],
    ) -> list[Reply[Source]]:
        """Return the replies to evaluation whose metrics can be aggregated.

        Parameters
        ----------
        server_round : int
            The round.
        asked, replies, read
            As for `hear`.

        Returns
        -------
        list of Reply
            The replies.
        """
        hearing = Hearing("aggregate_evaluate", asked, self._roster)
        read_ones = []
        for node, reply in replies:
            with hearing.reply_of(node):
                read_ones.append(read(node, reply))
        kept, _ = hearing.judge(server_round, read_ones, self._rules)
        return self._with_usual_metrics(kept)

    def _with_usual_metrics(self, replies: list[AnyReply]) -> list[AnyReply]:
        return with_usual_metrics(replies, self._roster.name)
