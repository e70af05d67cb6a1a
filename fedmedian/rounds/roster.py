"""The nodes of a run, and the fate of their replies: no client can end a run."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from fedmedian.logs import text_of, warn, without_addresses
from fedmedian.rounds.screening import AnyReply, Cohort, CohortRule, Node
from fedmedian.wire.scalars import WireError

Received = TypeVar("Received")

NO_REPLY = "no reply"
"""The reason for a node without a reply, if none is known."""


class LateReplyError(WireError):
    """Raised for a reply to a message of an earlier round."""


class Roster:
    """Names of nodes in the log, with their partitions once replies have reported them.

    Partitions are claims without proof. The first claim of each node and for each partition
    stands, so no node can take the name of another.
    """

    def __init__(self) -> None:
        self._partition_of: dict[Node, int | None] = {}
        self._node_of: dict[int, Node] = {}

    def learn(self, partitions: Iterable[tuple[Node, int | None]]) -> None:
        """Remember nodes' partitions, unless other nodes have claimed them."""
        for node, partition in partitions:
            if partition is None or node in self._partition_of:
                continue
            owner = self._node_of.setdefault(partition, node)
            self._partition_of[node] = partition if owner == node else None
            if owner != node:
                words = (
                    "node %s claims partition %d, which node %s claimed before: give each client "
                    "its own partition-id, unless it is the same client under a new node id"
                )
                warn(words, node, partition, owner)

    def name(self, node: Node) -> str:
        """Return a node's name for the log."""
        partition = self._partition_of.get(node)
        return f"node {node}" if partition is None else f"node {node} (partition {partition})"


class Hearing:
    """The replies of one round and phase: which are usable, and why the others are not.

    Parameters
    ----------
    phase : str
        The prefix of log lines.
    asked : collection of int or str
        The nodes that were asked.
    roster : Roster
        Their names.
    failures : sequence of str
        Known reasons for missing replies.

    Attributes
    ----------
    reasons : list of str or Exception
        Why replies are rejected or missing, one for each; complete after `judge`.
    counts : dict of str to int
        The numbers of replies accepted, rejected and missing, which `judge` sets.
    """

    def __init__(
        self, phase: str, asked: Collection[Node], roster: Roster, failures: Sequence[str] = ()
    ) -> None:
        self._phase = phase
        self.asked = asked
        self._roster = roster
        self.failures = failures
        self._heard: set[Node] = set()
        self._rejected: dict[str, list[Node]] = {}
        self.reasons: list[str | Exception] = []
        self.counts: dict[str, int] = {}

    def readable(
        self, replies: Iterable[tuple[Node, Received]], read: Callable[[Node, Received], AnyReply]
    ) -> list[AnyReply]:
        """Return the replies that `read` returns; those for which it raises are rejected."""
        found = []
        for node, reply in replies:
            try:
                found.append(read(node, reply))
            # Nothing that a client sends may end the run.
            except Exception as error:
                self._reject(node, error)
                if isinstance(error, LateReplyError):  # the reply to this round is still due
                    continue
            self._heard.add(node)
        return found

    def nodes_rejected(self, words: str) -> set[Node]:
        """Return the nodes whose replies are rejected for a reason with these words."""
        rejected = self._rejected.items()
        return {node for reason, nodes in rejected if words in reason for node in nodes}

    def judge(
        self, server_round: int, replies: Sequence[AnyReply], rules: Sequence[CohortRule]
    ) -> list[AnyReply]:
        """Return the readable replies that no rule rejects, and set `counts`.

        Each rule sees the replies that the rules before it have kept.

        Parameters
        ----------
        server_round : int
            The round.
        replies : sequence of Reply
            The readable replies.
        rules : sequence of CohortRule
            The rules.

        Returns
        -------
        list of Reply
            The replies that are kept.
        """
        missing = [node for node in self.asked if node not in self._heard]
        kept = list(replies)
        for rule in rules:
            cohort = Cohort(server_round, self.asked, kept, len(self.reasons), len(missing))
            refused = _checked(rule, rule(cohort), len(kept))
            for index, reason in refused.items():
                self._reject(kept[index].node, reason)
            kept = [reply for index, reply in enumerate(kept) if index not in refused]
        self.counts = {
            "replies-accepted": len(kept),
            "replies-rejected": len(self.reasons),
            "replies-missing": len(missing),
        }
        self._say_who_is_out(missing)
        unknown = [NO_REPLY] * (len(missing) - len(self.failures))
        self.reasons += [*self.failures, *unknown]
        return kept

    def _reject(self, node: Node, reason: str | Exception) -> None:
        if isinstance(reason, Exception):
            # Or the frames that it was raised in hold all replies until cycles are collected.
            for held in ("__traceback__", "__cause__", "__context__"):
                # A custom class, such as a frozen dataclass, may refuse to be changed.
                BaseException.__setattr__(reason, held, None)
        self._rejected.setdefault(without_addresses(text_of(reason)), []).append(node)
        self.reasons.append(reason)

    def _say_who_is_out(self, missing: list[Node]) -> None:
        """Log the nodes without a usable reply, one line per reason."""
        if missing:
            # Some of them may have replied with a failure.
            what = "no usable reply" if self.failures else NO_REPLY
            self._say(f"{what} from {{}}", f"{what} from %d nodes: {{}}", missing)
        for reason, nodes in self._rejected.items():
            self._say("dropped the reply of {}: %s", "dropped %d replies, of {}: %s", nodes, reason)

    def _say(self, of_one: str, of_many: str, nodes: list[Node], *words: object) -> None:
        # The log truncates long words: one word per node keeps every name.
        template = (of_one if len(nodes) == 1 else of_many).format(", ".join(["%s"] * len(nodes)))
        names = map(self._roster.name, nodes)
        count = [] if len(nodes) == 1 else [len(nodes)]
        warn(f"%s: {template}", self._phase, *count, *names, *words)


def _checked(rule: CohortRule, refused: Any, replies: int) -> Mapping[int, str]:
    """Return what a cohort rule has returned, or raise if it is not of these replies."""
    if not isinstance(refused, Mapping) or not refused.keys() <= set(range(replies)):
        raise ValueError(
            f"cohort rule {rule!r} must map indices of the {replies} replies to reasons, "
            f"got {refused!r}"
        )
    return refused
