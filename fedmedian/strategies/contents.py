"""The contents of messages, so far as they depend on the nodes that they are sent to."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedmedian.model.layout import Arrays
from fedmedian.records import to_record
from fedmedian.rounds.downlink import Content
from fedmedian.rounds.recipe import Question
from fedmedian.rounds.screening import Node
from fedmedian.wire.scalars import PREFIX

Write = Callable[[Sequence[Message]], None]


class Contents:
    """Contents that were made for some nodes, and how to make them for others.

    A subclass may construct messages to other nodes from the content of one that it was given.
    """

    def __init__(self) -> None:
        self._written: dict[int, tuple[RecordDict, RecordDict, Write]] = {}
        self._server_round = 0

    def begin(self, server_round: int) -> None:
        """Forget the contents of other rounds."""
        if self._server_round != server_round:
            self._written, self._server_round = {}, server_round

    def write(self, messages: Sequence[Message], write: Write) -> None:
        """Write to messages what depends on their nodes, and remember how."""
        before = [message.content for message in messages]
        write(messages)
        for usual, message in zip(before, messages, strict=True):
            if message.content is not usual:
                self._written[id(message.content)] = message.content, usual, write

    def origin_of(self, content: RecordDict) -> tuple[RecordDict, Write] | None:
        """Return what a content was made from and how, if `write` has made it."""
        written = self._written.get(id(content))
        if written is None or written[0] is not content:  # ids of a copy are another object's
            return None
        return written[1:]


def address(
    messages: Sequence[Message],
    record: ArrayRecord,
    model: Arrays,
    content_for: Callable[[Node], Content],
    arrays_key: str,
    config_key: str,
) -> None:
    """Replace the model in messages by what their nodes are to be sent to hold it.

    Clients know an array's place from what they are sent, so the order counts, too. Messages with
    other arrays, as a subclass constructs them, stay as they are.
    """

    @cache
    def record_of(content: Content) -> ArrayRecord:
        is_as_sent = content.arrays is model and [*model] == [*record] and not content.scalars
        return record if is_as_sent else to_record(content.arrays)

    made: dict[tuple[int, Content], RecordDict] = {}
    before = [message.content for message in messages]  # kept, so that ids stay their own
    for message, usual in zip(messages, before, strict=True):
        content = content_for(message.metadata.dst_node_id)
        if usual.get(arrays_key) is not record:
            continue
        if (own_record := record_of(content)) is record:
            continue
        key = id(usual), content
        if key not in made:  # one object for all nodes, as Flower's strategies send it
            message.content = RecordDict({**usual, arrays_key: own_record})
            tell(message, content.scalars, config_key)
            made[key] = message.content
        message.content = made[key]


def tell(message: Message, scalars: Mapping[str, Any], config_key: str) -> None:
    """Add scalars to the config of a message, which others may share."""
    config = ConfigRecord({**cast(ConfigRecord, message.content[config_key]), **scalars})
    message.content = RecordDict({**message.content, config_key: config})


def without_our_keys(config: ConfigRecord) -> ConfigRecord:
    """Return a copy of a config: callers reuse theirs, or take one from an older message."""
    return ConfigRecord({key: one for key, one in config.items() if not key.startswith(PREFIX)})


def in_order(record: ArrayRecord, question: Question) -> ArrayRecord:
    """Return arrays in the order in which clients are to be sent them.

    Arrays that are none of the question's stay as they are: the clients may have a mod before
    `perturb` that makes the model of them, as where a subclass compresses it.

    Raises
    ------
    ValueError
        If only some of the arrays are the question's: clients cannot answer it with them.
    """
    names = [*question.model]
    if [*record] == names or any(name.startswith(PREFIX) for name in record):  # or coded steps
        return record
    if record.keys() == {*names}:
        return ArrayRecord({name: record[name] for name in names})
    specs = question.layout.specs
    forms = [(name, tuple(array.shape), array.dtype) for name, array in record.items()]
    is_same = [shape for _, shape, _ in forms] == [spec.shape for spec in specs]
    own = {(spec.name, spec.shape, str(spec.dtype)) for spec in specs}
    if not is_same and not own.isdisjoint(forms):
        raise ValueError(
            f"training messages must hold the arrays that configure_train was given, {names}, got "
            f"{[*record]}: to train a part of the model, pass it to super().configure_train"
        )
    return record
