"""Telling usable replies from others, one by one: no client can end a run or touch the model."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from math import isfinite
from typing import TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.logger import log

from fedmedian.layout import Arrays, Layout
from fedmedian.perturbation import perturb_update
from fedmedian.wire import Instruction, Payload, WireError, read_npy

Usable = TypeVar("Usable")


@dataclass(frozen=True)
class Answer:
    """A training reply that passed the screening."""

    payload: Payload
    num_examples: float
    content: RecordDict


def screen(
    replies: Iterable[Message],
    read: Callable[[RecordDict], Usable],
    node_of_message: Mapping[str, int],
    phase: str,
) -> list[Usable]:
    """Read every reply that can be read, and log why the others cannot.

    Parameters
    ----------
    replies : iterable of Message
        What came back.
    read : callable
        Turns a reply's content into what is wanted; raises if it is unusable.
    node_of_message : mapping of str to int
        Which node each message was sent to. The reply of a node that failed comes from the
        SuperLink, and only this tells which one it speaks for.
    phase : str
        What is logged in front.

    Returns
    -------
    list
        What `read` returned, in the order of the replies.
    """
    usable: list[Usable] = []
    dropped = 0
    for reply in replies:
        try:
            if reply.has_error():
                raise WireError(f"error {reply.error.code}: {reply.error.reason}")
            usable.append(read(reply.content))
        # Whatever a client sends, it must not end the run.
        except Exception as error:
            node = node_of_message.get(
                reply.metadata.reply_to_message_id, reply.metadata.src_node_id
            )
            log(WARNING, "%s: dropped the reply of node %s: %s", phase, node, error)
            dropped += 1
    log(INFO, "%s: accepted %d replies, dropped %d", phase, len(usable), dropped)
    return usable


def read_answer(
    content: RecordDict,
    instruction: Instruction,
    layout: Layout,
    before: Arrays,
    weighted_by_key: str,
) -> Answer:
    """Read a training reply.

    Plain weights, from a client without the mod, are as good as a vector without noise.

    Parameters
    ----------
    content : RecordDict
        The reply's content.
    instruction : Instruction
        What the client was asked.
    layout : Layout
        The model's layout.
    before : mapping of str to array
        The model that the client started from.
    weighted_by_key : str
        The metric that holds the number of examples.

    Returns
    -------
    Answer
        The payload, checked against the instruction.

    Raises
    ------
    ValueError
        If the reply is unusable, saying why.
    """
    num_examples = read_num_examples(content, weighted_by_key)
    if len(content.array_records) != 1:
        raise WireError(f"expected one ArrayRecord, got {len(content.array_records)}")
    (record,) = content.array_records.values()
    arrays = {name: read_npy(array.data) for name, array in record.items()}
    scalars = next((r for r in content.config_records.values() if Payload.is_in(r)), None)
    if scalars is not None:
        payload = Payload.decode(list(arrays.values()), scalars)
    elif instruction.kind == "vector" and instruction.noise is None:
        after = layout.named(arrays)
        update = layout.difference(before, after)
        # Without noise and signs there is nothing to draw.
        payload = perturb_update(instruction, layout, update, after, np.random.default_rng(0))
    else:
        raise WireError(
            f"sent plain weights, was asked for {instruction.kind!r} with noise "
            f"{instruction.noise!r}: does its ClientApp have mods=[perturb]?"
        )
    payload.require_answer(instruction, layout)
    return Answer(payload, num_examples, content)


def read_num_examples(content: RecordDict, weighted_by_key: str) -> float:
    """Read the weight of a reply.

    Parameters
    ----------
    content : RecordDict
        The reply's content.
    weighted_by_key : str
        The metric that holds the number of examples.

    Returns
    -------
    float
        The number of examples, > 0.

    Raises
    ------
    WireError
        If there is not exactly one MetricRecord, or it holds no such number.
    """
    if len(content.metric_records) != 1:
        raise WireError(f"expected one MetricRecord, got {len(content.metric_records)}")
    (metrics,) = content.metric_records.values()
    weight = metrics.get(weighted_by_key)
    if not isinstance(weight, int | float) or not isfinite(weight) or weight <= 0:
        raise WireError(f"metric {weighted_by_key!r} must be a number > 0, got {weight!r}")
    return float(weight)


def with_usual_metrics(contents: Sequence[RecordDict]) -> list[RecordDict]:
    """Return the replies whose metrics have the names and lengths that most replies have.

    Flower's aggregation of metrics raises on, or silently mixes up, anything else.

    Parameters
    ----------
    contents : sequence of RecordDict
        Replies with exactly one MetricRecord each, at least one reply.

    Returns
    -------
    list of RecordDict
        Those to aggregate metrics from.
    """
    signatures = [_metrics_signature(content) for content in contents]
    usual, count = Counter(signatures).most_common(1)[0]
    if count < len(contents):
        log(
            WARNING,
            "left the metrics of %d replies out, which lack or add some: usual are %s",
            len(contents) - count,
            sorted(name for name, _ in usual),
        )
    return [content for content, own in zip(contents, signatures, strict=True) if own == usual]


def _metrics_signature(content: RecordDict) -> frozenset[tuple[str, int | None]]:
    (metrics,) = content.metric_records.values()
    return frozenset(
        (name, len(value) if isinstance(value, list) else None) for name, value in metrics.items()
    )
