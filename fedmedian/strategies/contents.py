"""The parts of messages that depend on the receiving node."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedmedian.model.layout import Arrays, Layout
from fedmedian.records import to_arrays, to_record
from fedmedian.rounds.downlink import Content, Held
from fedmedian.rounds.recipe import Question
from fedmedian.rounds.screening import Node
from fedmedian.steps.downlink import has_steps, is_in, target_of, without_steps
from fedmedian.steps.instruction import Instruction
from fedmedian.wire.scalars import PREFIX, WireError

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
            add_to_config(message, content.scalars, config_key)
            made[key] = message.content
        message.content = made[key]


def readdress(
    messages: Sequence[Message], helds: Sequence[Held | None], wanted: Sequence[Content | None]
) -> None:
    """Replace coded steps in messages that a subclass has made if their nodes cannot take them.

    They may be for another node. If a subclass has put its own model into a message, no steps lead
    there, and the client is sent none.

    Parameters
    ----------
    messages : sequence of Message
        The messages.
    helds : sequence of Held or None
        What clients hold of the model that each is about; None for what stays as it is.
    wanted : sequence of Content or None
        What the node of each is to be sent to follow it.
    """
    made: dict[tuple[int, Content], RecordDict] = {}
    before = [message.content for message in messages]  # kept, so that ids stay their own
    for message, content, held, own in zip(messages, before, helds, wanted, strict=True):
        if held is not None and own is not None:
            key = id(content), own
            if key not in made:
                made[key] = _with_steps(content, held, own)
            message.content = made[key]


def targets_in(messages: Sequence[Message]) -> list[str | None]:
    """Return the version of the model that each message's client then holds; None without one."""
    contents = {id(message.content): message.content for message in messages}  # nodes share one
    told = {key: _told_in(content) for key, content in contents.items()}
    targets = {key: target_of(one[1]) for key, one in told.items() if one is not None}
    return [targets.get(id(message.content)) for message in messages]


def _told_in(content: RecordDict) -> tuple[str, ConfigRecord] | None:
    """Return the config about the model that clients hold, after its name; None without one."""
    configs = ((name, one) for name, one in content.items() if isinstance(one, ConfigRecord))
    return next(((name, one) for name, one in configs if is_in(one)), None)


def _with_steps(content: RecordDict, held: Held, wanted: Content) -> RecordDict:
    """Return a content with the steps that are wanted in place of any, or without."""
    told = _told_in(content)
    if told is None or not has_steps(told[1]):
        return content
    name, config = told
    arrays = {key: one for key, one in content.items() if isinstance(one, ArrayRecord)}
    if any(one.keys() == held.model.keys() for one in arrays.values()):
        return RecordDict({**content, name: ConfigRecord(without_steps(config))})
    steps = [key for key, record in arrays.items() if _is_coded(record)]
    told_anew = {**without_steps(config), **wanted.scalars}
    if not steps or told_anew == config:
        return content
    records = {key: to_record(wanted.arrays) for key in steps}
    return RecordDict({**content, **records, name: ConfigRecord(told_anew)})


def _is_coded(record: ArrayRecord) -> bool:
    return any(name.startswith(PREFIX) for name in record)


def add_to_config(message: Message, scalars: Mapping[str, Any], config_key: str) -> None:
    """Add scalars to the config of a message, which others may share."""
    config = ConfigRecord({**cast(ConfigRecord, message.content[config_key]), **scalars})
    message.content = RecordDict({**message.content, config_key: config})


def correct_config(message: Message, scalars: Mapping[str, Any]) -> None:
    """Replace scalars in the config with the instruction if they are those of another node."""
    for name, one in message.content.items():
        if isinstance(one, ConfigRecord) and Instruction.is_in(one):
            if any(one.get(key) != value for key, value in scalars.items()):
                add_to_config(message, scalars, name)
            return


def without_our_keys(config: ConfigRecord) -> ConfigRecord:
    """Return a copy of a config: callers reuse theirs, or take one from an older message."""
    return ConfigRecord({key: one for key, one in config.items() if not key.startswith(PREFIX)})


def as_asked(record: ArrayRecord, question: Question) -> ArrayRecord:
    """Return arrays in the order and the dtypes in which clients are to be sent them.

    Arrays that are none of the question's stay as they are: the clients may have a mod before
    `perturb` that makes the model of them, as where a subclass compresses it.

    Raises
    ------
    ValueError
        If only some of the arrays are the question's: clients cannot answer it with them.
    """
    if _is_coded(record):
        return record
    names, specs = [*question.model], question.layout.specs
    if record.keys() == {*names}:
        ordered = record if [*record] == names else ArrayRecord({one: record[one] for one in names})
        return _recast(ordered, question.layout)
    forms = [(name, tuple(array.shape), array.dtype) for name, array in record.items()]
    is_same = [shape for _, shape, _ in forms] == [spec.shape for spec in specs]
    own = {(spec.name, spec.shape, str(spec.dtype)) for spec in specs}
    if not is_same and not own.isdisjoint(forms):
        raise ValueError(
            f"training messages must hold the arrays that configure_train was given, {names}, got "
            f"{[*record]}: to train a part of the model, pass it to super().configure_train"
        )
    return record


def _recast(record: ArrayRecord, layout: Layout) -> ArrayRecord:
    try:
        arrays = to_arrays(record)
    except WireError:  # in a subclass's own format
        return record
    recast = layout.recast(arrays)
    return record if recast is arrays else to_record(recast)
