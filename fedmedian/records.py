"""Conversion between Flower's records and arrays, and the size of records on the wire.

The only module outside `fedmedian.clients` and `fedmedian.strategies` that imports Flower; both
need it.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Any

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common import Parameters
from flwr.common.constant import SType
from flwr.supercore.inflatable.inflatable_object import InflatableObject, no_object_id_recompute
from numpy.typing import NDArray

from fedmedian.logs import shown
from fedmedian.model.layout import Arrays
from fedmedian.wire.npy import read_npy, write_npy
from fedmedian.wire.scalars import WireError


def to_arrays(record: ArrayRecord, most: float = inf) -> Arrays:
    """Return a record's arrays by name, read-only views into its bytes.

    Raises
    ------
    WireError
        If there are more than `most`, in which case none is read, or if the bytes of one are not
        an array; the message names it.
    """
    _require_at_most(most, len(record))
    return {name: _read(name, array.data) for name, array in record.items()}


def to_record(arrays: Arrays) -> ArrayRecord:
    """Return a record of named arrays."""
    return ArrayRecord(
        {
            name: Array(str(array.dtype), array.shape, SType.NUMPY, write_npy(array))
            for name, array in arrays.items()
        }
    )


def parameters_to_arrays(parameters: Parameters, most: float = inf) -> Arrays:
    """Return the arrays of the older API's Parameters, named "0", "1" and so on.

    Raises
    ------
    WireError
        As for `to_arrays`.
    """
    _require_at_most(most, len(parameters.tensors))
    tensors = enumerate(parameters.tensors)
    return {str(number): _read(str(number), data) for number, data in tensors}


def arrays_to_parameters(arrays: Arrays) -> Parameters:
    """Return arrays as the older API's Parameters."""
    return Parameters([write_npy(array) for array in arrays.values()], SType.NUMPY)


def _read(name: str, data: bytes) -> NDArray[Any]:
    try:
        return read_npy(data)
    except WireError as error:
        raise WireError(f"array {shown(name)} is {error}") from error


def _require_at_most(most: float, number: int) -> None:
    if number > most:
        raise WireError(f"sent {number} arrays, at most {most} are accepted")


def sizes_of(messages: Sequence[Message]) -> list[int]:
    """Return the number of bytes in each message's arrays and byte strings."""
    # Strategies send one content to all nodes.
    contents = {id(one.content): one.content for one in messages if one.has_content()}
    held = {key: _num_bytes(content) for key, content in contents.items()}
    return [held[id(one.content)] if one.has_content() else 0 for one in messages]


def _num_bytes(content: RecordDict) -> int:
    values = (value for record in content.values() for value in record.values())
    data = (value.data if isinstance(value, Array) else value for value in values)
    return sum(len(one) for one in data if isinstance(one, bytes))


def serialized_sizes(sent: Iterable[Message | InflatableObject]) -> list[int]:
    """Return the bytes of Flower's messages or records on the wire, headers included."""
    with no_object_id_recompute():  # objects hold others, and strategies send one content to all
        known = dict[str, int]()
        return [_serialized_size(one, known) for one in sent]


def _serialized_size(sent: Message | InflatableObject, known: dict[str, int]) -> int:
    """Return an object's bytes with those it holds; `known` has sizes by Flower's ids, hashes."""
    children: Mapping[str, InflatableObject] = sent.children or {}
    for key, child in children.items():
        if key not in known:
            known[key] = _serialized_size(child, known)
    return len(sent.deflate()) + sum(map(known.__getitem__, children))
