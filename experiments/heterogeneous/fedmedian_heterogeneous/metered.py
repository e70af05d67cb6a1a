"""A Grid that counts what its clients send."""

from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.run import Run

from fedmedian.wire import serialized_size


class MeteredGrid(Grid):
    """Passes everything on to another Grid, and counts replies and their bytes.

    Parameters
    ----------
    grid : Grid
        The Grid to use.

    Attributes
    ----------
    replies, bytes_up : int
        The number of clients' replies so far, and their bytes as sent, with all headers; errors
        do not count.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.replies = 0
        self.bytes_up = 0

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come, counted."""
        return self._count(self._grid.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and return their replies, counted."""
        return self._count(self._grid.send_and_receive(messages, timeout=timeout))

    def _count(self, replies: Iterable[Message]) -> list[Message]:
        replies = list(replies)
        # An error may be the SuperLink's, which speaks for a client that is gone.
        sent = [reply for reply in replies if reply.has_content()]
        with no_object_id_recompute():
            self.bytes_up += sum(serialized_size(reply) for reply in sent)
        self.replies += len(sent)
        return replies
