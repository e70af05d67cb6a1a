"""The clients' own metrics: those that can be aggregated."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from fedmedian.strategies.cohort import AnyReply
from fedmedian.wire import WireError

_LOGGER = logging.getLogger("flwr")


def require_examples(name: str, weight: Any) -> float:
    """Return a client's number of examples, or raise if it is none.

    Parameters
    ----------
    name : str
        The metric's name.
    weight : object
        The client's word.

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


def with_usual_metrics(replies: Sequence[AnyReply]) -> list[AnyReply]:
    """Return the replies whose metrics have the names and forms that most replies have.

    Flower's aggregation of metrics raises on, silently mixes up, or spreads anything else.

    Parameters
    ----------
    replies : sequence of Reply
        The replies.

    Returns
    -------
    list of Reply
        Those to aggregate metrics from.
    """
    if not replies:
        return []
    signatures = [_signature(reply.metrics) for reply in replies]
    usual, count = Counter(signatures).most_common(1)[0]
    if count < len(replies):
        _LOGGER.warning(
            "left the metrics of %d replies out, which are not like most: %s",
            len(replies) - count,
            sorted(f"{name} ({form})" for name, form in usual),
        )
    return [reply for reply, own in zip(replies, signatures, strict=True) if own == usual]


def _signature(metrics: Mapping[str, Any]) -> frozenset[tuple[str, int | str]]:
    return frozenset((name, _form(value)) for name, value in metrics.items())


def _form(value: Any) -> int | str:
    if isinstance(value, list):
        return len(value)
    if isinstance(value, int | float):
        return "number" if isfinite(value) else "not finite"
    return type(value).__name__
