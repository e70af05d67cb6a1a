"""The replies of a round, and rules that reject some of them together."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import numpy as np

from fedmedian.logs import shown
from fedmedian.model.layout import Arrays
from fedmedian.steps.payload import MASKED, Payload
from fedmedian.wire.scalars import Float32

Source = TypeVar("Source")

Node = int | str
"""The id of a node, or in the older API of a client."""


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
    held : str, optional
        The version of the model that the sender holds; see `fedmedian.steps.downlink`.
    """

    node: Node
    num_examples: float
    metrics: Mapping[str, Any]
    source: Source
    held: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Said(Generic[Source]):
    """The content of a reply to training, before it is judged.

    Parameters
    ----------
    arrays : mapping of str to array
        Its arrays.
    scalars : mapping or None
        The scalars of its payload; None for plain weights.
    num_examples : float
        The client's weight, > 0.
    metrics : mapping
        The client's own metrics.
    source : object
        Flower's own object of the reply.
    """

    arrays: Arrays
    scalars: Mapping[str, Any] | None
    num_examples: float
    metrics: Mapping[str, Any]
    source: Source


@dataclass(frozen=True)
class Answer(Reply[Source]):
    """A valid reply to training.

    Parameters
    ----------
    payload : Payload
        The client's perturbed update.
    scales : (L,) float32
        The noise scale of each block; 0 without noise.
    magnitudes : (L,) float32
        The magnitude of each block before noise; 0 where clients do not report it.
    """

    payload: Payload
    scales: Float32
    magnitudes: Float32

    @cached_property
    def key(self) -> tuple[float, bytes, str]:
        """The key to sort answers by; metrics, which may contain times, only break ties."""
        digest, payload = blake2b(), self.payload
        body = payload.body[:0] if payload.encoding == MASKED else payload.body  # masks are random
        for part in (body, payload.exact, self.scales, self.magnitudes):
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
        The number of asked nodes without a reply.
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
