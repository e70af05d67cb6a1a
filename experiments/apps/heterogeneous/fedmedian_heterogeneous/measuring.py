"""Measurement of a run: accuracy after each round, bytes as they are sent, wall time."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import nan
from typing import TypeVar

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute
from flwr.supercore.run import Run as FlowerRun

from fedmedian.records import serialized_size

Tell = Callable[[int, float], None]
"""Takes a round, 0 before the first, and the test accuracy after it."""


@dataclass(frozen=True)
class Run:
    """One strategy's run from one seed.

    Parameters
    ----------
    strategy : str
        The strategy's name in tables and figures.
    seed : int
        The seed.
    history : list of (int, float)
        Rounds, and the test accuracy after each; 0 stands for before the first.
    uplink_bytes, downlink_bytes : float
        Bytes per client and round of training replies, and of what asks for them, as sent, with
        all headers; nan if there were none, as where a checkpoint held the last round.
    seconds : float
        Wall time.
    """

    strategy: str
    seed: int
    history: list[tuple[int, float]]
    uplink_bytes: float
    downlink_bytes: float
    seconds: float

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return self.history[-1][0]

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last round."""
        return self.history[-1][1]


class MeteredGrid(Grid):
    """A Grid that passes everything on to another, and counts messages and their bytes.

    Parameters
    ----------
    grid : Grid
        The Grid to use.

    Attributes
    ----------
    sent, received : Counter
        The number of messages to clients, and of their replies, by message type. Errors do not
        count: one may be the SuperLink's, which speaks for a client that is gone.
    bytes_down, bytes_up : Counter
        The bytes of those as sent, with all headers.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.sent, self.received = Counter[str](), Counter[str]()
        self.bytes_down, self.bytes_up = Counter[str](), Counter[str]()

    def set_run(self, run: FlowerRun) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> FlowerRun:
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
        """Send messages, counted."""
        messages = list(messages)
        ids = self._grid.push_messages(messages)
        _count(messages, self.sent, self.bytes_down)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come, counted."""
        replies = list(self._grid.pull_messages(message_ids))
        _count(replies, self.received, self.bytes_up)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, and return their replies, both counted."""
        messages = list(messages)
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        _count(messages, self.sent, self.bytes_down)
        _count(replies, self.received, self.bytes_up)
        return replies


def _count(messages: Iterable[Message], number: Counter[str], size: Counter[str]) -> None:
    with no_object_id_recompute():  # strategies send one content to all nodes
        for message in messages:
            if message.has_content():
                number[message.metadata.message_type] += 1
                size[message.metadata.message_type] += serialized_size(message)


MeteredGridT = TypeVar("MeteredGridT", bound=MeteredGrid)


def measure(
    strategy: str, seed: int, grid: MeteredGridT, serve: Callable[[MeteredGridT, Tell], None]
) -> Run:
    """Measure one run.

    Parameters
    ----------
    strategy : str
        The strategy's name in tables and figures.
    seed : int
        The seed, which Flower's choice of nodes follows too.
    grid : MeteredGrid
        The clients; nothing has been counted yet.
    serve : callable
        Trains the clients of a grid, and tells the test accuracy after each round.

    Returns
    -------
    Run
        The measurements.
    """
    history: list[tuple[int, float]] = []
    random.seed(seed)
    start = time.perf_counter()
    serve(grid, lambda server_round, accuracy: history.append((server_round, accuracy)))
    seconds = time.perf_counter() - start
    return Run(
        strategy=strategy,
        seed=seed,
        history=history,
        uplink_bytes=_mean_of_trainings(grid.bytes_up, grid.received),
        downlink_bytes=_mean_of_trainings(grid.bytes_down, grid.sent),
        seconds=seconds,
    )


def _mean_of_trainings(size: Counter[str], number: Counter[str]) -> float:
    train = MessageType.TRAIN
    return size[train] / number[train] if number[train] else nan
