"""What Flower's messages and the replies to them hold."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from fedmedian.logs import failure_of, warn
from fedmedian.records import to_arrays
from fedmedian.rounds.metrics import require_examples
from fedmedian.rounds.recipe import Question
from fedmedian.rounds.roster import LateReplyError
from fedmedian.rounds.screening import Answer, Node, Reply, Said
from fedmedian.steps.downlink import HELD
from fedmedian.steps.instruction import Instruction
from fedmedian.steps.payload import MOST_ARRAYS, Payload, as_version
from fedmedian.strategies import numpy_clients as numpy_messages
from fedmedian.wire.scalars import WireError

Record = TypeVar("Record")


@dataclass(frozen=True)
class ReplyReader:
    """Reads replies to training and to evaluation.

    Parameters
    ----------
    weighted_by_key : str
        The name of the metric that is a client's weight.
    numpy_clients : bool
        Whether the replies are those of `NumPyClient`.
    former : mapping of str to int
        The rounds of earlier messages, by their ids.
    """

    weighted_by_key: str
    numpy_clients: bool
    former: Mapping[str, int]

    def answer(self, question: Question, node: Node, reply: Message) -> Answer[RecordDict]:
        """Return a node's answer to a question.

        Raises
        ------
        WireError
            If the reply is late, an error, or no answer to it.
        """
        content, metrics, num_examples = self._open(reply)
        specs = question.layout.specs
        arrays = to_arrays(_only(ArrayRecord, content), max(len(specs), MOST_ARRAYS))
        scalars = next((one for one in _records(ConfigRecord, content) if Payload.is_in(one)), None)
        if self.numpy_clients and scalars is None and len(arrays) == len(specs):
            # Their names are positions.
            named = zip(specs, arrays.values(), strict=True)
            arrays = {spec.name: array for spec, array in named}
        return question.answer(node, Said(arrays, scalars, num_examples, metrics, content))

    def evaluation(self, node: Node, reply: Message) -> Reply[RecordDict]:
        """Return a node's reply to evaluation.

        Raises
        ------
        WireError
            If it is late, an error, or has no valid metrics.
        """
        records = _records(ConfigRecord, reply.content) if reply.has_content() else []
        held = next((record[HELD] for record in records if HELD in record), None)
        content, metrics, num_examples = self._open(reply)
        return Reply(node, num_examples, metrics, content, held=as_version(held))

    def _open(self, reply: Message) -> tuple[RecordDict, MetricRecord, float]:
        """Return a reply's content, the metrics in it, and the client's weight."""
        if (earlier := self.former.get(reply.metadata.reply_to_message_id)) is not None:
            raise LateReplyError(f"replies to a message of round {earlier}")
        if reply.has_error():
            raise WireError(_error_of(reply))
        content = reply.content
        if self.numpy_clients:
            content = numpy_messages.read_reply(content)
        metrics = _only(MetricRecord, content)
        key = self.weighted_by_key
        return content, metrics, require_examples(key, metrics.get(key))


def with_weights(
    contents: Iterable[RecordDict], key: str, weights: Iterable[float]
) -> list[RecordDict]:
    """Return replies' contents with other weights; those that change are copies."""
    weighted = []
    for content, weight in zip(contents, weights, strict=True):
        name, metrics = next((n, r) for n, r in content.items() if isinstance(r, MetricRecord))
        if metrics[key] != weight:
            content = RecordDict({**content, name: MetricRecord({**metrics, key: weight})})
        weighted.append(content)
    return weighted


def scalars_of(reply: Message) -> Mapping[str, Any] | str:
    """Return the scalars in a reply, or the reason why there are none."""
    if reply.has_error():
        return failure_of(reply.error.reason)
    return {
        key: one for record in _records(ConfigRecord, reply.content) for key, one in record.items()
    }


def question_in(reply: Message) -> Any:
    """Return the number of the question that a reply names; None for plain weights."""
    payloads = filter(Payload.is_in, _records(ConfigRecord, reply.content))
    return next(map(Payload.question_in, payloads), None)


def key_in(message: Message) -> tuple[Any, Any] | None:
    """Return the key of the question in a message's instruction; None without one."""
    configs = filter(Instruction.is_in, _records(ConfigRecord, message.content))
    return next(map(Instruction.key_in, configs), None)


def nodes_of(messages: Iterable[Message]) -> list[Node]:
    """Return the nodes that messages are sent to."""
    return [message.metadata.dst_node_id for message in messages]


def types_of(messages: Iterable[Message]) -> dict[Node, str]:
    """Return the type of the message to each node."""
    return {one.metadata.dst_node_id: one.metadata.message_type for one in messages}


def without_unsent(phase: str, replies: Iterable[Message]) -> tuple[list[Message], list[str]]:
    """Return the replies of nodes, and why others could not be asked, which is logged.

    A node may leave after it was drawn. The SuperLink then replies, but names neither the node nor
    the message.
    """
    asked, reasons = list[Message](), list[str]()
    for reply in replies:
        is_unsent = (
            reply.has_error()
            and reply.metadata.src_node_id == SUPERLINK_NODE_ID
            and not reply.metadata.reply_to_message_id
        )
        if is_unsent:
            reasons.append(_error_of(reply))
            warn("%s: a node could not be asked: %s", phase, reasons[-1])
        else:
            asked.append(reply)
    return asked, reasons


def by_node(
    sent: Sequence[Message], replies: Sequence[Message], former: Collection[str]
) -> tuple[list[Node], list[tuple[Node, Message]]]:
    """Return the nodes that were asked, and each reply with its node.

    If a node fails, the SuperLink replies for it, and only the message that it replies to names
    the node. A subclass asked for a reply whose message is neither ours nor a `former` one.
    """
    node_of = {one.metadata.message_id: one.metadata.dst_node_id for one in sent}
    node_of.pop("", None)
    known = node_of.keys() | former
    asked = nodes_of(sent)
    speaking: list[tuple[Node, Message]] = []
    for reply in replies:
        metadata = reply.metadata
        node = node_of.get(metadata.reply_to_message_id, metadata.src_node_id)
        if metadata.reply_to_message_id and metadata.reply_to_message_id not in known:
            asked.append(node)
        speaking.append((node, reply))
    return list(dict.fromkeys(asked)), speaking


def _error_of(reply: Message) -> str:
    return f"error {reply.error.code}: {failure_of(reply.error.reason)}"


def _records(kind: type[Record], content: RecordDict) -> list[Record]:
    # Flower's own views of a content check and copy it, which takes longer than reading a reply.
    return [record for record in content.values() if isinstance(record, kind)]


def _only(kind: type[Record], content: RecordDict) -> Record:
    records = _records(kind, content)
    if len(records) != 1:
        raise WireError(f"expected one {kind.__name__}, got {len(records)}")
    return records[0]
