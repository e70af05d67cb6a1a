"""The clients' own metrics: those that can be aggregated."""

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import isclose, isfinite
from typing import Any, TypeVar

import numpy as np

from fedmedian.logs import shown, warn
from fedmedian.rounds.screening import AnyReply, Node
from fedmedian.rules.trust import capped_examples
from fedmedian.wire.scalars import WireError

Aggregated = TypeVar("Aggregated")

MOST_METRICS = 64
"""The number of metrics that a client may send."""

LONGEST_NAME = 128
"""The number of characters that a metric's name may have."""

MOST_ENTRIES = 4096
"""The number of numbers, and of characters of texts, that they may hold together."""

LARGEST = 1e100
"""The largest number that is averaged: squares, and sums over clients and examples, are finite."""


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
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not _is_finite(weight) or weight <= 0:
        raise WireError(f"metric {name!r} must be a number > 0, got {shown(weight)}")
    return float(weight)


def fair_examples(examples: Sequence[float]) -> list[float]:
    """Return the numbers of examples by which clients' metrics are averaged.

    Parameters
    ----------
    examples : sequence of M int or float
        What the clients claim, each as `require_examples` takes it, M >= 1.

    Returns
    -------
    list of M int or float
        The claims as `capped_examples` leaves them. Where there are integers the
        cap is one as well, unless it is below 1.
    """
    capped = capped_examples(np.array(examples, dtype=np.float64)).tolist()
    # Rounding must not take an example from those that are not capped.
    kept = [
        own if isclose(own, other, rel_tol=1e-9) else other
        for own, other in zip(examples, capped, strict=True)
    ]
    cap = min(max(kept), LARGEST)
    if cap >= 1 and any(isinstance(one, int) for one in examples):
        cap = int(cap)  # a lower cap bounds what any clients hold together as well
    return [min(cap, one) for one in kept]


def is_averageable(value: Any) -> bool:
    """Return whether a client's value can be averaged with others; what is no number can."""
    return not isinstance(value, int | float) or abs(value) <= LARGEST


def with_usual_metrics(
    replies: Sequence[AnyReply], name_of: Callable[[Node], str]
) -> list[AnyReply]:
    """Return the replies whose metrics have the names and forms that most replies have.

    Flower's aggregation of metrics raises on, silently mixes up, or spreads anything else. What
    is not finite, or more than a client may send, is left out before: its vote counts, and its
    metrics do not.

    Parameters
    ----------
    replies : sequence of Reply
        The replies.
    name_of : callable
        Maps a node to its name in the log.

    Returns
    -------
    list of Reply
        Those to aggregate metrics from; none if two forms are equally common.
    """
    fit: list[AnyReply] = []
    unfit: dict[str, list[str]] = {}
    for reply in replies:
        reason = _why_unfit(reply.metrics)
        if reason is None:
            fit.append(reply)
        else:
            unfit.setdefault(reason, []).append(name_of(reply.node))
    for reason, names in unfit.items():
        slots = ", ".join(["%s"] * len(names))  # as one word they would be cut
        warn(f"left the metrics of {slots} out: %s", *names, reason)
    if not fit:
        return []
    signatures = [_signature(reply.metrics) for reply in fit]
    (usual, count), *others = Counter(signatures).most_common(2)
    if others and others[0][1] == count:
        warn(
            "left the metrics of all %d replies out: %d report %s, and as many %s",
            len(fit),
            count,
            _describe(usual),
            _describe(others[0][0]),
        )
        return []
    if count < len(fit):
        warn(
            "left the metrics of %d replies out, which are not like most: %s",
            len(fit) - count,
            _describe(usual),
        )
    return [reply for reply, own in zip(fit, signatures, strict=True) if own == usual]


def try_to_aggregate(name: str, aggregate: Callable[[], Aggregated]) -> Aggregated | None:
    """Return what a function of the user's makes of the clients' metrics, or None if it raises.

    Parameters
    ----------
    name : str
        The function, as the user has passed it.
    aggregate : callable
        Calls it.

    Returns
    -------
    object or None
        What it returns.
    """
    try:
        return aggregate()
    # It may raise for what a client has sent, and no client is to end the run.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        warn(
            "%s failed, and the round goes on without the clients' metrics: %s: %s (%s, line %d)",
            name,
            type(error).__name__,
            error,
            place.filename,
            place.lineno or 0,
        )
        return None


def _why_unfit(metrics: Mapping[str, Any]) -> str | None:
    """Return the reason why metrics are aggregated with no others; None if there is none."""
    if len(metrics) > MOST_METRICS:
        return f"there are more than {MOST_METRICS}"
    longest = max(map(len, metrics), default=0)
    if longest > LONGEST_NAME:
        return f"a name has {longest} characters, more than {LONGEST_NAME}"
    entries = sum(_length(value) for value in metrics.values())
    if entries > MOST_ENTRIES:
        return f"they have {entries} entries, more than {MOST_ENTRIES}"
    for name, value in metrics.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(map(_is_finite, numbers)):
            return f"{shown(name)} is not finite"
        if not all(map(is_averageable, numbers)):
            return f"{shown(name)} is too large to be averaged"
    return None


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | str | bytes) else 1


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, int | float) or isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def _signature(metrics: Mapping[str, Any]) -> frozenset[tuple[str, int | str]]:
    return frozenset((name, _form(value)) for name, value in metrics.items())


def _describe(signature: frozenset[tuple[str, int | str]]) -> list[str]:
    return sorted(f"{name} ({form})" for name, form in signature)


def _form(value: Any) -> int | str:
    if isinstance(value, list):
        return len(value)
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__
