"""A round's replies as a whole, and rules that reject some of them together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedmedian.logs import shown
from fedmedian.steps.payload import Payload

Source = TypeVar("Source")

Node = int | str
"""A node's id; in the older API, a client's id."""


@dataclass(frozen=True)
class Reply(Generic[Source]):
    """A reply that is valid by itself.

    Parameters
    ----------
    node : int or str
        The sender.
    num_examples : float
        The client's weight, > 0.
    metrics : mapping
        The client's own metrics.
    source : object
        Flower's own object of the reply.
    """

    node: Node
    num_examples: float
    metrics: Mapping[str, Any]
    source: Source


@dataclass(frozen=True)
class Answer(Reply[Source]):
    """A valid reply to training.

    Parameters
    ----------
    payload : Payload
        The client's update as it was sent.
    """

    payload: Payload

    def key(self, *sizes: NDArray[np.float32]) -> tuple[float, bytes, str]:
        """Return the key to sort by; metrics, which may hold times, count last.

        `sizes` are the update's noise scales and magnitudes.
        """
        digest = blake2b()
        payload = self.payload
        for part in (payload.body, payload.exact, *sizes):
            digest.update(np.ascontiguousarray(part).data)
        return self.num_examples, digest.digest(), shown(self.metrics, most=_LONGEST_METRICS)


_LONGEST_METRICS = 10_000
"""The number of characters of a reply's metrics that `Answer.key` reads."""

AnyReply = TypeVar("AnyReply", bound=Reply[Any])


@dataclass(frozen=True)
class Cohort(Generic[AnyReply]):
    """A round's valid replies before aggregation.

    Parameters
    ----------
    server_round : int
        The round.
    asked : collection of int or str
        The nodes that were asked.
    replies : sequence of Reply
        The replies that are valid by themselves; `Answer` in training.
    rejected : int
        The number of replies that are not.
    missing : int
        The number of asked nodes that did not reply.
    """

    server_round: int
    asked: Collection[Node]
    replies: Sequence[AnyReply]
    rejected: int
    missing: int


CohortRule = Callable[[Cohort[Any]], Mapping[int, str]]
"""Maps a cohort to the replies to reject: the reason by index in ``cohort.replies``."""


def one_reply_per_node(cohort: Cohort[Any]) -> dict[int, str]:
    """Reject replies of nodes that were not asked, and all but a node's first reply."""
    refused: dict[int, str] = {}
    heard: set[Node] = set()
    asked = set(cohort.asked)
    for index, reply in enumerate(cohort.replies):
        if reply.node not in asked:
            refused[index] = "it was not asked"
        elif reply.node in heard:
            refused[index] = "it has replied already"
        heard.add(reply.node)
    return refused


def all_or_none(cohort: Cohort[Any]) -> dict[int, str]:
    """Reject every reply if one is rejected or missing."""
    if not (cohort.rejected or cohort.missing):
        return {}
    return dict.fromkeys(range(len(cohort.replies)), "others failed, and accept_failures is False")
