"""Flower's log of a run, without what the lines of our own report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

_LOGGER = logging.getLogger("flwr")

_METRICS_OF_A_ROUND = "\t└──> Aggregated MetricRecord: %s"
_METRICS_OF_ALL_ROUNDS = "Final results:"


class _Repetition(logging.Filter):
    """Drops blank lines, and the metrics of each round and at the end.

    Parameters
    ----------
    thread : int
        The identifier of the run's thread. Lines of other threads pass.
    """

    def __init__(self, thread: int) -> None:
        super().__init__()
        self._thread = thread
        self._is_finished = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if record.thread != self._thread or record.levelno > logging.INFO:
            return True
        self._is_finished |= record.msg == _METRICS_OF_ALL_ROUNDS
        is_blank = not record.getMessage().strip()
        return not (self._is_finished or is_blank or record.msg == _METRICS_OF_A_ROUND)


@contextmanager
def without_repetition() -> Iterator[None]:
    """Shorten Flower's log of a run in this thread: a result of 20 rounds is 200 lines."""
    repetition = _Repetition(get_ident())
    _LOGGER.addFilter(repetition)
    try:
        yield
    finally:
        _LOGGER.removeFilter(repetition)
