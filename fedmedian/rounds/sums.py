"""The secure sums of a run: who has which key, and how sums are opened."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fedmedian.logs import as_line, text_of, warn
from fedmedian.rounds.recipe import NoStepError, Question
from fedmedian.rounds.roster import NO_REPLY, Roster
from fedmedian.rounds.screening import Answer, Node
from fedmedian.secure.cohort import MOST_CLIENTS, SecureSum
from fedmedian.secure.masking import Masked
from fedmedian.secure.opening import SumCohort, SumError, TooFewError, Wanted
from fedmedian.secure.requests import ask_for_key, ask_to_reveal, read_public, read_secrets
from fedmedian.steps.sums import VoteCounts, masked_of
from fedmedian.wire.scalars import WireScalar

Found = TypeVar("Found")

Exchange = Callable[[Mapping[Node, Mapping[str, WireScalar]]], Mapping[Node, Any]]
"""Sends scalars to nodes, and returns the scalars of each reply, or an exception or a reason."""


class SecureSums:
    """The secure sums of a run.

    Parameters
    ----------
    rule : SecureSum
        How many clients a sum needs, and which are neighbors.
    roster : Roster
        The nodes' names.
    """

    def __init__(self, rule: SecureSum, roster: Roster) -> None:
        self._rule, self._roster = rule, roster
        self._keys: dict[Node, bytes] = {}
        self._seated: tuple[Question, set[Node], Question] | None = None
        self._last: dict[Node, tuple[int, int]] = {}  # the last question each node was seated for
        self._opened: dict[Question, set[Node]] = {}  # this round's, with the nodes that had voted

    def seat(self, question: Question, nodes: Sequence[Node], exchange: Exchange) -> Question:
        """Return the question with a place in its sum for each node that has a key.

        Nodes without are asked for one. If the question is asked again, as for a second group of
        the same nodes, their places stay.

        Raises
        ------
        NoStepError
            If too few have one.
        """
        last = self._seated
        if last is not None and last[0] is question and {*nodes} == last[1]:
            return last[2]
        new = [node for node in nodes if node not in self._keys]
        found, lost = self._heard(
            "gave no key for the secure sum",
            lambda node, reply: read_public(reply),
            exchange,
            {node: ask_for_key(question.server_round) for node in new},
        )
        for node, public in found.items():
            if public in self._keys.values():
                warn("%s has the key of another node", self._roster.name(node))
            else:
                self._keys[node] = public
        members = [node for node in nodes if node in self._keys][:MOST_CLIENTS]
        least = self._rule.least(len(nodes))
        if len(members) < least:
            remedy = "do their ClientApps have mods=[perturb], with perturb first?"
            remedy += _usual_of(lost)
            if len(nodes) < least:
                remedy = "ask more clients in a round"
            raise NoStepError(
                f"the secure sum needs {least} clients, and {len(members)} of {len(nodes)} gave a "
                f"key: {remedy}"
            )
        circle = replace(self._rule.circle(members), least=least)
        cohort = SumCohort(circle, {one: self._keys[one] for one in members})
        without = question.without_place.union(nodes).difference(members)
        seated = replace(question, cohort=cohort, without_place=without)
        self._seated = question, {*nodes}, seated
        self._last |= dict.fromkeys(members, seated.key)
        now = question.server_round
        self._opened = {one: own for one, own in self._opened.items() if one.server_round == now}
        return seated

    def forget(self, nodes: Collection[Node]) -> None:
        """Forget the keys of nodes, which may have lost them."""
        for node in nodes:
            self._keys.pop(node, None)

    def open(
        self,
        question: Question,
        answers: Sequence[Answer[Any]],
        exchange: Exchange,
        others: Sequence[str | Exception] = (),
    ) -> tuple[list[Answer[Any]], VoteCounts]:
        """Return the answers whose votes are in the sum, and the sum.

        Parameters
        ----------
        question : Question
            The question.
        answers : sequence of Answer
            The usable answers.
        exchange : callable
            Sends scalars to nodes.
        others : sequence of str or Exception
            Why the other nodes have not voted, for the error.

        Raises
        ------
        NoStepError
            If the sum cannot be opened.
        """
        cohort = question.cohort
        if cohort is None:
            raise NoStepError("no client was asked for a secure sum")

        votes = self._about_one_thing(
            {answer.node: masked_of(answer.payload) for answer in answers}
        )
        self._require_help(question, cohort.circle.least, votes.keys())
        reasons = Counter(map(text_of, others))

        def ask(wanted: Mapping[Node, Wanted]) -> Mapping[Node, list[bytes]]:
            self._opened[question] = {*votes}
            found, lost = self._heard(
                "did not help to open the sum",
                lambda node, reply: read_secrets(reply, wanted[node]),
                exchange,
                {node: ask_to_reveal(question.key, one) for node, one in wanted.items()},
            )
            self.forget(wanted.keys() - found.keys())
            reasons.update(lost)
            return found

        try:
            total = cohort.open(votes, question.votes.dim, ask)
        except SumError as error:
            self.forget(votes)  # a client may hold another key than it gave
            why = f".{_usual_of(reasons)}" if reasons and isinstance(error, TooFewError) else ""
            raise NoStepError(f"the secure sum cannot be opened: {error}{why}") from error
        if total.wrong:
            warn(
                "%s revealed wrong shares of the mask of %s, or was sent wrong ones by it: the "
                "secure sum is opened with other shares, which takes longer; if this repeats, "
                "disconnect a node that is named beside different ones: of two that are always "
                "named together, either may lie",
                *(self._names([*total.wrong]), self._names([*{*total.wrong.values()}])),
            )
        return [one for one in answers if one.node in total.members], total.counts

    def _about_one_thing(self, votes: Mapping[Node, Masked]) -> dict[Node, Masked]:
        """Return the votes of clients that were asked the same as most: only their masks cancel."""
        about = Counter(one.about for one in votes.values()).most_common(1)
        kept = {node: one for node, one in votes.items() if one.about == about[0][0]}
        if others := [node for node in votes if node not in kept]:
            warn(
                "%s trained from another model than most clients, or by another instruction, and "
                "cannot be in the secure sum, where all must be asked the same: has a subclass "
                "changed some messages, or does a mod before perturb change the model?",
                self._names(others),
            )
        return kept

    def _require_help(self, question: Question, least: int, nodes: Collection[Node]) -> None:
        """Raise `NoStepError` if clients will not help to open a sum, as a subclass may cause."""
        before = self._opened.get(question)
        if before is not None and before != {*nodes}:
            raise NoStepError(
                f"clients have helped to open the secure sum of {len(before)} replies, and will "
                f"not help with these {len(nodes)}, because that could expose single votes: pass "
                "all replies of a round to aggregate_train at once"
            )
        moved = sum(self._last.get(node) != question.key for node in nodes)
        if moved and len(nodes) - moved < least:
            raise NoStepError(
                f"the secure sum cannot be opened: {moved} of its {len(nodes)} clients have been "
                "asked for votes in another since, and help only with that one: call "
                "aggregate_train for a model before configure_train asks its clients about another"
            )

    def _heard(
        self,
        words: str,
        read: Callable[[Node, Mapping[str, Any]], Found],
        exchange: Exchange,
        requests: Mapping[Node, Mapping[str, WireScalar]],
    ) -> tuple[dict[Node, Found], dict[str, int]]:
        """Return what nodes answer, and how many do not for each reason, which is logged."""
        found: dict[Node, Found] = {}
        lost: dict[str, list[Node]] = {}
        replies = exchange(requests) if requests else {}
        for node in requests:
            try:
                reply = replies.get(node, NO_REPLY)
                if not isinstance(reply, Mapping):
                    raise ValueError(text_of(reply))
                found[node] = read(node, reply)
            except ValueError as error:
                lost.setdefault(text_of(error), []).append(node)
        for reason, nodes in lost.items():
            warn("%s %s: %s", self._names(nodes), words, reason)
        return found, {reason: len(nodes) for reason, nodes in lost.items()}

    def _names(self, nodes: Sequence[Node]) -> str:
        names = ", ".join(map(self._roster.name, nodes[:_MOST_NAMES]))
        more = len(nodes) - _MOST_NAMES
        return names if more <= 0 else f"{names} and {more} more"


def _usual_of(reasons: Mapping[str, int]) -> str:
    """Return the most common reason of the clients that are not in a sum, if any is known."""
    if not reasons:
        return ""
    return f" The others' most common reason: {as_line(max(reasons, key=reasons.__getitem__))}"


_MOST_NAMES = 5
