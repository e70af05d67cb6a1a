"""A Flower Grid whose nodes run in this process: simulation without Ray."""

import json
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from inspect import currentframe
from itertools import count
from threading import Lock
from traceback import extract_tb, format_exception, walk_stack

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedmedian.checks import require_integer, require_type
from fedmedian.clients.mod import require_reply
from fedmedian.logs import LOGGER, Once, as_line, text_of
from fedmedian.records import serialized_sizes

_RUN_ID = 1
_FIRST_NODE_ID = SUPERLINK_NODE_ID + 1

_ONE_CHUNK = 1 << 20
"""The bytes of an array that Flower surely sends as one chunk."""


class InProcessGrid(Grid):
    """A Grid that calls a ClientApp in this process, one node after the other.

    For tests, notebooks and quick experiments: a round takes milliseconds; Ray takes a quarter of
    a second. Nodes answer in the order of their partitions, whatever the order of the messages.
    Each node has its own Context, whose state lives as long as the grid. Messages are copied, so
    nodes do not see each other's changes. Exceptions in the ClientApp become error replies, as in
    Flower's other engines; only Ctrl-C ends the run. Nodes cannot join: a strategy that waits for
    more of them gets a ``ValueError``.

    Parameters
    ----------
    client_app : ClientApp
        The app that every node runs.
    num_nodes : int
        The number of nodes, >= 1. Node i has ``node_config`` ``{"partition-id": i,
        "num-partitions": num_nodes}``.
    run_config : dict, optional
        The run configuration of the nodes.

    Attributes
    ----------
    bytes_up, bytes_down : int
        Bytes of all replies, and of all messages to the nodes, as Flower would send them.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> from flwr.serverapp.strategy import FedAvg
    >>> grid = InProcessGrid(client_app, num_nodes=10)  # doctest: +SKIP
    >>> FedAvg().start(grid=grid, initial_arrays=arrays, num_rounds=3)  # doctest: +SKIP
    """

    def __init__(
        self, client_app: ClientApp, num_nodes: int, *, run_config: UserConfig | None = None
    ) -> None:
        require_type("client_app", client_app, ClientApp, "a flwr.clientapp.ClientApp")
        require_integer("num_nodes", num_nodes, low=1)
        require_type("run_config", run_config, dict | None, "a dict, or None")
        _identify_this_process()
        self.__client_app = client_app
        self.__run = Run.create_empty(_RUN_ID)
        self.__contexts = {
            _FIRST_NODE_ID + partition: Context(
                run_id=_RUN_ID,
                node_id=_FIRST_NODE_ID + partition,
                node_config={"partition-id": partition, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for partition in range(num_nodes)
        }
        self.__message_ids = count(1)
        self.__replies: dict[str, Message] = {}
        self.__once = Once()
        self.__lock = Lock()  # Flower's older server sends from several threads
        self.bytes_up = 0
        self.bytes_down = 0

    def __repr__(self) -> str:
        sizes = f"bytes_up={self.bytes_up:,}, bytes_down={self.bytes_down:,}"
        return f"<{type(self).__name__} of {len(self.__contexts)} nodes, {sizes}>"

    def set_run(self, run: Run) -> None:
        """Set the run that this grid operates in."""
        self.__run = run

    @property
    def run(self) -> Run:
        """The run that this grid operates in."""
        return self.__run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message to a node; see `flwr.serverapp.Grid.create_message`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes, in the order of their partitions.

        Raises
        ------
        ValueError
            If the calling strategy waits for more nodes than there are.
        """
        node_ids = list(self.__contexts)
        wanted, arguments = _awaited_nodes()
        if wanted > len(node_ids):
            raise ValueError(
                f"{arguments} must be <= {len(node_ids)}, the num_nodes of this InProcessGrid, "
                f"which no other node can join: the strategy waits for {wanted}"
            )
        return node_ids

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Deliver messages to the nodes, which answer, and return the messages' ids."""
        with self.__lock:
            return self.__push(list(messages))

    def __push(self, messages: list[Message]) -> list[str]:
        for message in messages:
            self.__give_id(message)
        self.bytes_down += _size(messages)
        # Flower shuffles the nodes, but a node may depend on those before it: through global
        # generators of NumPy and torch, or through colluding clients.
        for message in sorted(messages, key=lambda message: message.metadata.dst_node_id):
            try:
                self.__take(message, self.__answer(message))
            except KeyboardInterrupt:
                raise
            # The server must hear of any error in a ClientApp, and of replies that cannot be sent,
            # even of errors that would end the client's process if it had its own.
            except BaseException as error:
                self.__log_once(error)
                reason = f"{type(error).__name__}: {text_of(error)}"
                raised = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason)
                self.__take(message, Message(raised, reply_to=message))
        return [message.metadata.message_id for message in messages]

    def __log_once(self, error: BaseException) -> None:
        """Log an error with its traceback, unless one like it is logged already.

        The server gets its reason in any case, and logs it with the node.
        """
        lines = {(one.filename, one.lineno) for one in extract_tb(error.__traceback__)}
        if self.__once.is_first((type(error).__qualname__, frozenset(lines))):
            trace = "".join(format_exception(error)).splitlines()
            LOGGER.error("ClientApp raised an exception\n%s", "\n".join(map(as_line, trace)))

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to pushed messages, each once."""
        return [self.__replies.pop(key) for key in message_ids if key in self.__replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Deliver messages to the nodes and return their replies.

        Parameters
        ----------
        messages : iterable of Message
            The messages.
        timeout : float, optional
            Ignored: nodes run in turn and always answer.

        Returns
        -------
        list of Message
            One reply per message, in the same order.
        """
        return self.pull_messages(self.push_messages(messages))

    def __take(self, message: Message, reply: Message) -> None:
        self.__give_id(reply)
        self.bytes_up += _size([reply])
        self.__replies[message.metadata.message_id] = reply

    def __give_id(self, message: Message) -> None:
        # Flower's own grids set the id when they send, and it has no public setter.
        # As long as Flower's hexadecimal hash, so that byte counts are right.
        message.metadata.__dict__["_message_id"] = f"{next(self.__message_ids):064x}"

    def __answer(self, message: Message) -> Message:
        context = self.__contexts.get(message.metadata.dst_node_id)
        if context is None:
            error = Error(ErrorCode.NODE_UNAVAILABLE, "there is no such node")
            return Message(error, reply_to=message)
        received = Message(content=_copy(message.content), metadata=message.metadata)  # type: ignore[call-overload]
        reply = require_reply(self.__client_app(received, context))
        # A mod that rejects the app's answer replies to that answer instead of the message.
        reply.metadata.__dict__.update(
            _src_node_id=message.metadata.dst_node_id,
            _reply_to_message_id=message.metadata.message_id,
        )
        if reply.has_content():
            # The node may keep what it sends.
            reply.content = _copy(reply.content)
        return reply


def _size(messages: list[Message]) -> int:
    """Return the bytes of messages as Flower would send them."""
    contents = {id(one.content): one.content for one in messages if one.has_content()}
    measurable = {key: _measurable(content) for key, content in contents.items()}
    total, sent = 0, list[Message]()
    for one in messages:
        if one.has_content():
            content, left_out = measurable[id(one.content)]
            total += left_out
            sent.append(Message(content=content, metadata=one.metadata))  # type: ignore[call-overload]
        else:
            sent.append(one)
    return total + sum(serialized_sizes(sent))


def _measurable(content: RecordDict) -> tuple[RecordDict, int]:
    """Return content that can be measured, and how many bytes less it takes.

    Messages hold the ids of their records, which have one length, so a record without arrays can
    stand for one with them. That one's size follows from the forms of its arrays, and from which
    are equal: these are sent once. Arrays of several chunks may have equal chunks, too.
    """
    records = content.array_records
    arrays = [array for record in records.values() for array in record.values()]
    if len(records) == 1 and all(8 <= len(array.data) <= _ONE_CHUNK for array in arrays):
        ((key, record),) = records.items()
        places = dict[bytes, int]()
        forms = [
            (name, a.dtype, a.shape, a.stype, len(a.data), places.setdefault(a.data, len(places)))
            for name, a in record.items()
        ]
        return RecordDict({**content, key: ArrayRecord()}), _size_of_arrays(json.dumps(forms))
    # Copies, because measuring leaves data in arrays that cannot be copied or pickled.
    copies = {
        name: ArrayRecord(
            {key: Array(a.dtype, a.shape, a.stype, a.data) for key, a in record.items()}
        )
        for name, record in records.items()
    }
    return RecordDict({**content, **copies}), 0


@lru_cache
def _size_of_arrays(forms: str) -> int:
    """Return how many bytes more a record with arrays takes than one without."""
    arrays = {
        name: Array(dtype, tuple(shape), stype, place.to_bytes(8, "big").ljust(length))
        for name, dtype, shape, stype, length, place in json.loads(forms)
    }
    size, empty = serialized_sizes([ArrayRecord(arrays), ArrayRecord()])
    return size - empty


def _awaited_nodes() -> tuple[int, str]:
    """Return how many nodes the calling strategy waits for, if any, and the arguments that set it.

    Flower polls until that many nodes exist. The number is available only in the frames of the
    functions that poll.
    """
    for frame, _ in walk_stack(currentframe()):
        match frame.f_globals.get("__name__"), frame.f_code.co_name:
            case "flwr.serverapp.strategy.strategy_utils", "sample_nodes":
                wanted = frame.f_locals.get("min_available_nodes", 0)
                return wanted, "min_available_nodes, min_train_nodes and min_evaluate_nodes"
            case "flwr.server.compat.app_utils", "wrapped_method":
                # Called with arguments only to sample clients.
                by_place = zip(
                    ("num_clients", "min_num_clients"), frame.f_locals.get("args", ()), strict=False
                )
                asked = {**dict(by_place), **frame.f_locals.get("kwargs", {})}
                wanted = asked.get("min_num_clients") or asked.get("num_clients", 0)
                return wanted, "min_available_clients, min_fit_clients and min_evaluate_clients"
    return 0, ""


def _copy(content: RecordDict) -> RecordDict:
    copied = RecordDict()
    for name, record in content.items():
        # Arrays are never modified; lists of scalars might be.
        values = {key: list(v) if isinstance(v, list) else v for key, v in record.items()}
        copied[name] = type(record)(values)  # type: ignore[arg-type]
    return copied


def _identify_this_process() -> None:
    """Allow messages to be created, unless this process already runs a ServerApp."""
    with suppress(RuntimeError):
        if TaskIdentity.run_id:
            return
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = _RUN_ID
    TaskIdentity.node_id = SUPERLINK_NODE_ID
