"""Flower's log of a run, short: a line for each training and evaluation, and the results last."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any, cast

from fedmedian.logs import LOGGER
from fedmedian.rounds.watch import describe_metrics

_ROUNDS = ("[ROUND %s/%s]", "[ROUND %s]")
_OURS = ("aggregate_train: %s", "aggregate_evaluate: %s")
_SERVERS = "\t└──> MetricRecord: %s"
_FOUND = (
    _SERVERS,
    "Initial global evaluation results: %s",
    "initial parameters (loss, other metrics): %s, %s",
    "fit progress: (%s, %s, %s, %s)",
)
_ASKED_NOBODY = "configure_fit: no clients selected, cancel"
_METRICS_OF_ALL_ROUNDS = ("Final results:", "Run finished %s round(s) in %.2fs")
_RUNS = ("Starting %s strategy:", "[INIT]")
_REPEATED = (
    "\t├── ConfigRecord (train): (empty!)",
    "\t├── ConfigRecord (evaluate): (empty!)",
    "Global evaluation",
    "\t└──> Aggregated MetricRecord: %s",
    "configure_train: Sampled %s nodes (out of %s)",
    "configure_evaluate: Sampled %s nodes (out of %s)",
    "configure_fit: strategy sampled %s clients (out of %s)",
    "configure_evaluate: strategy sampled %s clients (out of %s)",
    "configure_evaluate: no clients selected, skipping evaluation",
    "aggregate_fit: received %s results and %s failures",
    "aggregate_evaluate: received %s results and %s failures",
    "[SUMMARY]",
    "Final results:",
)


class _Concise(logging.Filter):
    """Drops what our lines report as well, and begins each of ours with its round.

    Parameters
    ----------
    thread : int
        The identifier of the run's thread. Lines of other threads pass.
    done : int
        The last round that does not run again. Lines of such rounds are dropped, except for the
        last one's evaluation, which is repeated.
    """

    def __init__(self, thread: int, done: int) -> None:
        super().__init__()
        self._thread = thread
        self._done = done
        self._number = 0
        self._round = ""
        self._is_finished = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if not self._is_of_run(record) or record.levelno > logging.INFO:
            return True
        if record.msg in _ROUNDS:
            self._number = next(iter(cast(tuple[int, ...], record.args)))
            self._round = f"{record.getMessage()} "
            return False
        if record.msg in _FOUND and self._number < self._done:
            return False
        if record.msg == _ASKED_NOBODY and self._number <= self._done:
            return False
        if record.msg in _OURS:
            record.msg = self._round + record.msg
        if record.msg == _SERVERS:
            record.msg = f"{self._round}evaluation by the server: %s"
            return record.args != (None,)
        was_finished = self._is_finished
        self._is_finished |= record.msg in _METRICS_OF_ALL_ROUNDS
        try:
            said = record.getMessage()
        # A line of the app's own; logging itself reports that it cannot be formatted.
        except Exception:
            return True
        is_repeated = record.msg in _REPEATED or said in _REPEATED
        return not (was_finished or is_repeated or not said.strip())

    def _is_of_run(self, record: logging.LogRecord) -> bool:
        """Return whether a line may be Flower's, of this run: an app may log any object."""
        return record.thread == self._thread and isinstance(record.msg, str)


class _ConciseOlder(_Concise):
    """The same for the older API, which does not report the end of a run.

    Parameters
    ----------
    thread, done : int
        See above.
    at_end : callable
        Logs the results. It is called once Flower has logged all rounds' metrics.
    """

    def __init__(self, thread: int, done: int, at_end: Callable[[], None]) -> None:
        super().__init__(thread, done)
        self._at_end = at_end

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line passes."""
        if self._is_of_run(record) and record.msg in _RUNS:  # the last one has failed
            LOGGER.removeFilter(self)
            return True
        passes = super().filter(record)
        if self._is_finished and self._is_of_run(record) and record.msg == "":
            LOGGER.removeFilter(self)
            self._at_end()
        return passes


@contextmanager
def concise(done: int) -> Iterator[None]:
    """Shorten Flower's log of a run in this thread.

    Parameters
    ----------
    done : int
        The last round that does not run again.
    """
    short = _Concise(get_ident(), done)
    LOGGER.addFilter(short)
    try:
        yield
    finally:
        LOGGER.removeFilter(short)


def shorten_older_run(done: int, at_end: Callable[[], None]) -> None:
    """Shorten Flower's log of the older API's run that begins in this thread.

    Parameters
    ----------
    done : int
        The last round that does not run again.
    at_end : callable
        Logs the results, after all that Flower logs.
    """
    LOGGER.addFilter(_ConciseOlder(get_ident(), done, at_end))


def log_last_evaluation(who: str, server_round: int, metrics: Mapping[str, Any]) -> None:
    """Log the last evaluation of a run.

    Parameters
    ----------
    who : str
        Those who evaluated.
    server_round : int
        The round.
    metrics : mapping
        What they found.
    """
    if found := describe_metrics(metrics):
        LOGGER.info("evaluation by %s after round %d: %s", who, server_round, found)
