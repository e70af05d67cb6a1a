"""Messages of NumPyClients in the Message API, and how to read them."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.common import Code

from fedmedian.logs import shown
from fedmedian.rounds.metrics import MOST_METRICS, is_number
from fedmedian.steps.payload import Payload
from fedmedian.strategies.options import FedAvgOptions
from fedmedian.wire.scalars import PREFIX, WireError

KEYS: FedAvgOptions = {
    "arrayrecord_key": "fitins.parameters",
    "configrecord_key": "fitins.config",
    "weighted_by_key": "num_examples",
}
"""The names of the parts of a NumPyClient's training message."""


_NUMBERS = ("num_examples", "loss")
"""The parts of a reply that hold one number under their own name."""


def as_evaluation(messages: Iterable[Message]) -> None:
    """Rename the parts of evaluation messages from training to evaluation, in place."""
    for message in messages:
        parts = message.content.items()
        message.content = RecordDict(
            {key.replace("fitins.", "evaluateins."): part for key, part in parts}
        )


def read_reply(content: RecordDict) -> RecordDict:
    """Return a NumPyClient's reply in the form of a Message API app.

    Parameters
    ----------
    content : RecordDict
        A reply to training or to evaluation, its parts named ``fitres.…`` or ``evaluateres.…``.

    Returns
    -------
    RecordDict
        Its arrays and payload, if any, and one MetricRecord with all its numbers.

    Raises
    ------
    WireError
        If it is not such a reply, or it reports a failure.
    """
    parts = {key.partition(".")[2]: record for key, record in content.items()}
    status, own = parts.get("status"), parts.get("metrics")
    if not isinstance(status, Mapping) or not isinstance(own, Mapping):
        raise WireError(f"is not a NumPyClient's reply, its records are {shown(list(content))}")
    if status.get("code") != Code.OK.value:
        raise WireError(f"client failed: {shown(status.get('message'))}")
    numbers: dict[str, Any] = {}
    # The client's own numbers come first: they must not replace those that Flower names.
    others = (parts[name] for name in _NUMBERS if isinstance(parts.get(name), MetricRecord))
    for record in (own, *others):
        metrics = ((key, value) for key, value in record.items() if _is_metric(key, value))
        numbers |= islice(metrics, MOST_METRICS + 1)  # one too many gets the reply rejected
    read = RecordDict({"metrics": MetricRecord(numbers)})
    if Payload.is_in(own):
        read["payload"] = own
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            read[key] = record
    return read


def _is_metric(key: str, value: Any) -> bool:
    return not key.startswith(PREFIX) and is_number(value)
