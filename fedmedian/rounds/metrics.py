"""Selection of the clients' metrics that can be aggregated."""

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
"""The largest number of metrics per client."""

LONGEST_NAME = 128
"""The largest number of characters in a metric's name."""

MOST_ENTRIES = 4096
"""The largest total of numbers and characters in a client's metrics."""

LARGEST = 1e100
"""The largest number that is averaged, so that squares and weighted sums stay finite."""


def require_examples(name: str, weight: Any) -> float:
    """Return a client's number of examples, or raise if it is invalid.

    Parameters
    ----------
    name : str
        The metric's name.
    weight : object
        The client's value.

    Returns
    -------
    float
        The number of examples, > 0.

    Raises
    ------
    WireError
        If it is not a finite number > 0.
    """
    if not is_number(weight) or not _is_finite(weight) or weight <= 0:
        raise WireError(f"metric {name!r} must be a number > 0, got {shown(weight)}")
    return float(weight)


def fair_examples(examples: Sequence[float]) -> list[float]:
    """Return the numbers of examples that weight the average of clients' metrics.

    Parameters
    ----------
    examples : sequence of M int or float
        What the clients claim, each as `require_examples` takes it, M >= 1.

    Returns
    -------
    list of M int or float
        The claims, capped as by `capped_examples`. With integers among them the cap is an integer
        as well, unless it is below 1.
    """
    capped = capped_examples(np.array(examples, dtype=np.float64)).tolist()
    # Rounding must not change a claim below the cap.
    kept = [
        own if isclose(own, other, rel_tol=1e-9) else other
        for own, other in zip(examples, capped, strict=True)
    ]
    cap = min(max(kept), LARGEST)
    if cap >= 1 and any(isinstance(one, int) for one in examples):
        cap = int(cap)  # rounding the cap down keeps every bound
    return [min(cap, one) for one in kept]


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no bool; float64 of NumPy is one."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_averageable(value: Any) -> bool:
    """Return whether a value is small enough to average; anything but a number is."""
    return not isinstance(value, int | float) or abs(value) <= LARGEST


def with_usual_metrics(
    replies: Sequence[AnyReply], name_of: Callable[[Node], str]
) -> list[AnyReply]:
    """Return the replies whose metrics have the names and types that most replies' have.

    Flower's aggregation would raise on the others, mix them up silently, or spread them. Metrics
    that are not finite, or exceed the limits above, are dropped first; the client's update still
    counts.

    Parameters
    ----------
    replies : sequence of Reply
        The replies.
    name_of : callable
        Maps a node to its name for the log.

    Returns
    -------
    list of Reply
        The replies to aggregate metrics from; none unless more than half have one form.
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
        slots = ", ".join(["%s"] * len(names))  # one word would be truncated
        warn(f"left the metrics of {slots} out: %s", *names, reason)
    if not fit:
        return []
    signatures = [
        frozenset((name, _form(value)) for name, value in reply.metrics.items()) for reply in fit
    ]
    ((usual, count),) = Counter(signatures).most_common(1)
    if 2 * count <= len(fit):  # a few that lie could be as many
        warn(
            "left the metrics of all %d replies out: most must have the same names and lengths, "
            "but no more than %d report the same ones: %s",
            *(len(fit), count, _describe(usual)),
        )
        return []
    if count < len(fit):
        warn(
            "left the metrics of %d replies out, which differ from most: %s",
            *(len(fit) - count, _describe(usual)),
        )
    return [reply for reply, own in zip(fit, signatures, strict=True) if own == usual]


def try_to_aggregate(name: str, aggregate: Callable[[], Aggregated]) -> Aggregated | None:
    """Return the result of the user's aggregation of metrics, or None if it raises.

    Parameters
    ----------
    name : str
        The argument that the user passed it as.
    aggregate : callable
        Calls it.

    Returns
    -------
    object or None
        What it returns.
    """
    try:
        return aggregate()
    # It may raise because of a client's metrics, and no client may end the run.
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        warn(
            "%s failed, and the round continues without the clients' metrics: %s: %s (%s, line %d)",
            *(name, type(error).__name__, error, place.filename, place.lineno or 0),
        )
        return None


def _why_unfit(metrics: Mapping[str, Any]) -> str | None:
    """Return why metrics cannot be aggregated; None if they can."""
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
    except OverflowError:  # an integer too large for a float
        return False


def _describe(signature: frozenset[tuple[str, int | str]]) -> list[str]:
    return sorted(f"{name} ({form})" for name, form in signature)


def _form(value: Any) -> int | str:
    if isinstance(value, list):
        return len(value)
    if isinstance(value, int | float):
        return "number"
    return type(value).__name__
