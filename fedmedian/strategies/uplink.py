"""The size of replies as Flower sends them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from flwr.app import Array, ArrayRecord, Message, Metadata, RecordDict

from fedmedian.records import serialized_size

_Form = tuple[tuple[str, type, tuple[tuple[Any, ...], ...]], ...]

# Each with something of the size of a value of its kind, or of one of its entries.
_EXAMPLES: dict[type, Any] = {int: 1, float: 1.0, str: "0", bytes: b"0", list: [1.0]}


def mean_reply_size(replies: Sequence[Message]) -> float:
    """Return the mean size of replies as sent, to within some bytes of their headers.

    Flower hashes whatever it serialises, which for arrays would take longer than the rest of a
    round: replies of one form are taken to have headers of one size.

    Parameters
    ----------
    replies : sequence of M Message
        The replies, M >= 1.

    Returns
    -------
    float
        Bytes.
    """
    return sum(_size(reply) for reply in replies) / len(replies)


def _size(reply: Message) -> int:
    if not reply.has_content():
        return serialized_size(reply)
    form = tuple(
        (key, type(record), tuple(_form_of(*item) for item in record.items()))
        for key, record in reply.content.items()
    )
    data = sum(
        len(array.data)
        for record in reply.content.values()
        if isinstance(record, ArrayRecord)
        for array in record.values()
    )
    metadata = reply.metadata
    ids = len(metadata.message_id), len(metadata.reply_to_message_id)
    return data + _size_of_headers(form, *ids)


def _form_of(key: str, value: Any) -> tuple[Any, ...]:
    """Return the properties that a value's size follows from."""
    if isinstance(value, Array):
        return key, Array, value.dtype, value.shape, value.stype
    kind = next(kind for kind in _EXAMPLES if isinstance(value, kind))
    return key, kind, 1 if kind in (int, float) else len(value)


@lru_cache(maxsize=256)
def _size_of_headers(form: _Form, id_length: int, reply_to_length: int) -> int:
    content, markers = RecordDict(), 0
    for key, kind_of_record, items in form:
        values: dict[str, Any] = {}
        for item in items:
            marker = f"{key}.{item[0]}".encode()  # equal objects would be sent once
            if item[1] is Array:
                dtype, shape, stype = item[2:]
                values[item[0]] = Array(dtype, shape, stype, marker)
                markers += len(marker)
            else:
                _, kind, length = item
                values[item[0]] = _EXAMPLES[kind] * length
        content[key] = kind_of_record(values)
    metadata = Metadata(1, "0" * id_length, 1, 1, "0" * reply_to_length, "", 1.0, 1.0, "train")
    message = Message(content=content, metadata=metadata)  # type: ignore[call-overload]
    return serialized_size(message) - markers
