"""What a round has asked of which nodes, and which of these calls replies answer."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from flwr.app import Message

from fedmedian.logs import LOGGER
from fedmedian.rounds.recipe import Question
from fedmedian.strategies.messages import question_in

About = TypeVar("About")
_FORMER = 10_000
"""The number of earlier messages whose late replies are known as such."""


@dataclass(eq=False)
class Call(Generic[About]):
    """The messages of one call of `configure_train` or `configure_evaluate`.

    Each message that a subclass makes counts as a separate call.

    Parameters
    ----------
    server_round : int
        The round.
    about : Question or ArrayRecord
        The question, or the model to evaluate.
    messages : list of Message
        The messages.
    is_heard : bool
        Whether replies to it have been aggregated.
    """

    server_round: int
    about: About
    messages: list[Message]
    is_heard: bool = False

    @property
    def ids(self) -> set[str]:
        """The ids of the messages that were sent."""
        return {message.metadata.message_id for message in self.messages} - {""}


class Calls(Generic[About]):
    """The calls of the newest round.

    Parameters
    ----------
    former : dict of str to int
        Takes the ids of the messages of earlier rounds, with their rounds.
    """

    def __init__(self, former: dict[str, int]) -> None:
        self._former = former
        self._calls = list[Call[About]]()

    def __iter__(self) -> Iterator[Call[About]]:
        return iter(self._calls)

    def begin(self, server_round: int) -> None:
        """Forget the calls of other rounds: replies to their messages are late from now on."""
        for one in self._calls:
            if one.server_round != server_round:
                self._former |= dict.fromkeys(one.ids, one.server_round)
        for number in [*self._former][:-_FORMER]:
            del self._former[number]
        self._calls = [one for one in self._calls if one.server_round == server_round]

    def add(self, server_round: int, about: About, messages: list[Message]) -> None:
        """Add a call."""
        self._calls.append(Call(server_round, about, messages))

    def unknown(self, messages: Sequence[Message]) -> list[Message]:
        """Return the messages that are not among those of any call.

        A shallow copy shares its metadata with its original, and so the id that it is sent with.
        """
        known = {id(message.metadata) for one in self._calls for message in one.messages}
        return [message for message in messages if id(message.metadata) not in known]

    def in_order(self) -> list[Call[About]]:
        """Return the calls in order, those of which no message was sent last."""
        return sorted(self._calls, key=lambda one: not one.ids)

    def answered_by(
        self: "Calls[Question]", server_round: int, replies: Sequence[Message]
    ) -> list[Call[Question]]:
        """Return a round's calls about the question that most replies answer; none if it has none.

        A reply answers the question of the message that it replies to. If that message is not ours,
        as in a subclass that builds its own, it answers the question that it names, or else the
        first open one. Without replies, that one is answered.
        """
        asked = [one for one in self.in_order() if one.server_round == server_round]
        is_open = [one for one in asked if not one.is_heard]
        first = (is_open or asked[-1:])[:1]
        if not replies or not first:
            return is_open[:1]
        of_message = {number: one for one in asked for number in one.ids}
        named = {one.about.instruction.question: one for one in [*asked, *reversed(is_open)]}
        found = []
        for reply in replies:
            if (answers := reply.metadata.reply_to_message_id) in of_message:
                found.append(of_message[answers])
            elif reply.has_content() and answers not in self._former:
                found.append(named.get(question_in(reply), first[0]))
        found = found or first  # errors to messages that are not ours, or late replies
        usual = Counter(one.about for one in found).most_common(1)[0][0]
        return [one for one in found if one.about is usual]

    def hear(
        self, answered: Sequence[Call[About]], ids: set[str], received: Collection[str] | None
    ) -> list[Message]:
        """Note that calls are heard, and return the messages whose replies are due.

        Other calls about the same, as for groups of nodes, count as heard too if no node answers.

        Parameters
        ----------
        answered : sequence of Call
            Those to which replies belong.
        ids : set of str
            The ids of the messages that the replies answer.
        received : collection of str or None
            The ids of the messages that all replies answer, with those that a subclass leaves out.
            None if another strategy picks the replies: a silent group may have some in a later
            call.
        """
        heard, about = {*answered}, {id(one.about) for one in answered}
        if received is not None:
            came = ids | {*received}
            heard |= {
                one
                for one in self._calls
                if not one.is_heard and id(one.about) in about and one.ids and not one.ids & came
            }
        sent: list[Message] = []
        for one in self._calls:
            if one not in heard:
                continue
            due = _sent(one.messages, ids)
            if one.is_heard:  # nodes that did not reply have been counted
                due = [message for message in due if message.metadata.message_id in ids]
            sent += due
            one.is_heard = True
        return sent


def without_left_out(
    phase: str,
    sent: Sequence[Message],
    replies: Sequence[Message],
    received: Mapping[str, Message],
) -> tuple[list[Message], list[Message]]:
    """Return messages and replies without those that a subclass has left out.

    An error that it has left out is still the reason for a missing reply.

    Parameters
    ----------
    phase : str
        The prefix of log lines.
    sent : sequence of Message
        The messages whose replies are due.
    replies : sequence of Message
        The replies that the subclass passes on.
    received : mapping of str to Message
        All replies, by the ids of the messages that they answer; none without a subclass.
    """
    passed_on = {reply.metadata.reply_to_message_id for reply in replies}
    if "" in passed_on:  # the subclass has made them: nobody can tell which ones it left out
        received = {}
    errors, left = [], set[str]()
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


def _sent(asked: Sequence[Message], answered: Collection[str]) -> list[Message]:
    """Return which of our messages were sent; `answered` are the ids that replies reply to.

    A subclass may drop some, or all. A message gets its id when it is sent. If a caller passes the
    replies in without sending, no message has one.
    """
    sent = [message for message in asked if message.metadata.message_id]
    return [*asked] if "" in answered and not sent else sent
