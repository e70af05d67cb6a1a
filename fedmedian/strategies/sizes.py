"""The size of messages as Flower sends them."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedmedian.records import serialized_size
from fedmedian.steps.payload import Payload
from fedmedian.wire.scalars import PREFIX


def mean_size(messages: Sequence[Message]) -> float:
    """Return the mean size of messages as sent, to within some bytes of their headers.

    Flower hashes whatever it serialises, which would take longer than the rest of a round. What
    messages hold is counted instead, and Flower's headers are known from examples. That costs no
    more than reading them, and nothing of them is kept, whatever clients may send.

    Parameters
    ----------
    messages : sequence of M Message
        The messages, M >= 1.

    Returns
    -------
    float
        Bytes.
    """
    header = _header(messages[0])
    # Strategies send one content to all nodes.
    contents = {id(one.content): one.content for one in messages if one.has_content()}
    held = {key: header + _held(content) for key, content in contents.items()}
    return sum(
        held[id(message.content)] if message.has_content() else _size_of_error(message)
        for message in messages
    ) / len(messages)


def mean_sizes_of_training(replies: Sequence[Message], model: ArrayRecord) -> tuple[float, float]:
    """Return the `mean_size` of replies to training, and what it would be with FedAvg.

    Parameters
    ----------
    replies : sequence of M Message
        The replies, M >= 1.
    model : ArrayRecord
        The model, which FedAvg's clients would have sent in place of their arrays, and without
        what a payload needs besides.

    Returns
    -------
    mean, with_fedavg : float
        Bytes.
    """
    header, weights = _header(replies[0]), _held(model)
    mean = with_fedavg = 0
    for reply in replies:
        size = header if reply.has_content() else _size_of_error(reply)
        mean, with_fedavg = mean + size, with_fedavg + size
        for name, record in reply.content.items() if reply.has_content() else ():
            own, held = _in_text(name) + _headers()[_kind(record)], _held(record)
            mean += own + held
            if isinstance(record, ArrayRecord):
                with_fedavg += own + weights
            elif not Payload.is_in(record):
                with_fedavg += own + held
            elif name.startswith("fitres."):  # NumPyClients have their own metrics there as well
                rest = {key: value for key, value in record.items() if not key.startswith(PREFIX)}
                with_fedavg += own + _in_entries(rest)
    return mean / len(replies), with_fedavg / len(replies)


def _header(message: Message) -> int:
    empty: Any = {"content": RecordDict(), "metadata": message.metadata}
    return serialized_size(Message(**empty))


def _size_of_error(message: Message) -> int:
    short: Any = {"error": Error(message.error.code, ""), "metadata": message.metadata}
    return serialized_size(Message(**short)) + _in_text(message.error.reason or "")


def _held(value: Any) -> int:
    """Return the bytes that a value takes in a record or message, without its own header."""
    return _BYTES_HELD[_kind(value)](value)


def _kind(value: Any) -> type:
    kind = type(value)
    if kind in _BYTES_HELD:
        return kind
    return next(kind for kind in _BYTES_HELD if isinstance(value, kind))


def _in_entries(entries: Mapping[str, Any]) -> int:
    held = 0
    for name, value in entries.items():
        kind = _kind(value)
        held += _in_text(name) + _headers()[kind] + _BYTES_HELD[kind](value)
    return held


def _in_text(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _in_list(entries: list[Any]) -> int:
    tags = 2 * len(entries) if entries and isinstance(entries[0], str | bytes) else 0
    return tags + sum(map(_held, entries))


# An integer travels in groups of seven bits, and one bit is its sign.
_BYTES_HELD: dict[type, Callable[[Any], int]] = {
    int: lambda value: value.bit_length() // 7 + 1,
    float: lambda _: 8,
    str: _in_text,
    bytes: len,
    list: _in_list,
    Array: lambda array: len(array.data) + len(f"{array.dtype}{array.shape}{array.stype}"),
    ArrayRecord: _in_entries,
    MetricRecord: _in_entries,
    ConfigRecord: _in_entries,
    RecordDict: _in_entries,
}


@cache
def _headers() -> dict[type, int]:
    """Return the bytes that Flower adds to a value under a name, by the value's kind."""
    numbers_and_texts: list[Any] = [0, 0.0, "", b"", [0]]
    # What is an object of its own differs: equal ones would be sent once.
    examples: list[tuple[Callable[..., Any], Any, Any]] = [
        *((ConfigRecord, value, value) for value in numbers_and_texts),
        (ArrayRecord, Array("", (), "", b"0"), Array("", (), "", b"1")),
        (RecordDict, ConfigRecord(), ArrayRecord()),
        (RecordDict, ArrayRecord(), MetricRecord()),
        (RecordDict, MetricRecord(), ConfigRecord()),
    ]
    return {
        type(second): serialized_size(holder({"a": first, "b": second}))
        - serialized_size(holder({"a": first}))
        - len("b")
        - _held(second)
        for holder, first, second in examples
    }
