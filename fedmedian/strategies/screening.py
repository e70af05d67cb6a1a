"""Telling usable replies from others, one by one: no client can end a run or touch the model."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from math import isfinite
from typing import Any, Generic, TypeVar

from flwr.common.logger import log

from fedmedian.wire import WireError

Usable = TypeVar("Usable")

Node = int | str
"""A node's id, or what the older API knows a client by."""


@dataclass(frozen=True)
class Screened(Generic[Usable]):
    """What came of a phase's replies.

    Parameters
    ----------
    usable : list
        What was read from those that could be.
    rejected : int
        The number of those that could not.
    missing : int
        The number of nodes that did not reply.
    """

    usable: list[Usable]
    rejected: int
    missing: int

    @property
    def counts(self) -> dict[str, int]:
        """How many replies there are of each sort, for the round's report."""
        return {
            "replies-accepted": len(self.usable),
            "replies-rejected": self.rejected,
            "replies-missing": self.missing,
        }


class Roster:
    """The nodes by name, which has their partition in it once a reply has told."""

    def __init__(self) -> None:
        self._partition_of: dict[Node, int] = {}

    def learn(self, node: Node, partition: int | None) -> None:
        """Remember a node's partition, if it has told one."""
        if partition is not None:
            self._partition_of[node] = partition

    def name(self, node: Node) -> str:
        """Return what the log calls a node."""
        if node not in self._partition_of:
            return f"node {node}"
        return f"node {node} (partition {self._partition_of[node]})"

    def screen(
        self,
        phase: str,
        asked: Collection[Node],
        replies: Iterable[tuple[Node, Callable[[], Usable]]],
    ) -> Screened[Usable]:
        """Read every reply that can be read, and log why the others cannot.

        Parameters
        ----------
        phase : str
            What is logged in front.
        asked : collection of int or str
            The nodes that were asked.
        replies : iterable of (int or str, callable)
            Which node each reply speaks for, and what reads it; that raises if it is unusable.

        Returns
        -------
        Screened
            What was read, in the order of the replies, and how many were not.
        """
        usable: list[Usable] = []
        heard: set[Node] = set()
        rejected = 0
        for node, read in replies:
            heard.add(node)
            try:
                usable.append(read())
            # Whatever a client sends, it must not end the run.
            except Exception as error:
                log(WARNING, "%s: dropped the reply of %s: %s", phase, self.name(node), error)
                rejected += 1
        missing = [node for node in asked if node not in heard]
        for node in missing:
            log(WARNING, "%s: no reply from %s", phase, self.name(node))
        log(INFO, "%s: accepted %d replies, dropped %d", phase, len(usable), rejected)
        return Screened(usable, rejected, len(missing))


def require_examples(name: str, weight: Any) -> float:
    """Return a client's number of examples, or raise if it is none.

    Parameters
    ----------
    name : str
        What it is called.
    weight : object
        What the client sent.

    Returns
    -------
    float
        The number of examples, > 0.

    Raises
    ------
    WireError
        If it is not a finite number > 0.
    """
    if not isinstance(weight, int | float) or not isfinite(weight) or weight <= 0:
        raise WireError(f"metric {name!r} must be a number > 0, got {weight!r}")
    return float(weight)


def with_usual_metrics(
    sources: Sequence[Usable], metrics_of: Callable[[Usable], Mapping[str, Any]]
) -> list[Usable]:
    """Return the replies whose metrics have the names and forms that most replies have.

    Flower's aggregation of metrics raises on, silently mixes up, or spreads anything else.

    Parameters
    ----------
    sources : sequence
        Replies, at least one.
    metrics_of : callable
        Returns a reply's metrics.

    Returns
    -------
    list
        Those to aggregate metrics from.
    """
    signatures = [_signature(metrics_of(source)) for source in sources]
    usual, count = Counter(signatures).most_common(1)[0]
    if count < len(sources):
        log(
            WARNING,
            "left the metrics of %d replies out, which are not like most: %s",
            len(sources) - count,
            sorted(f"{name} ({form})" for name, form in usual),
        )
    return [source for source, own in zip(sources, signatures, strict=True) if own == usual]


def _signature(metrics: Mapping[str, Any]) -> frozenset[tuple[str, int | str]]:
    return frozenset((name, _form(value)) for name, value in metrics.items())


def _form(value: Any) -> int | str:
    if isinstance(value, list):
        return len(value)
    if isinstance(value, int | float):
        return "number" if isfinite(value) else "not finite"
    return type(value).__name__
