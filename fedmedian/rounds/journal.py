"""The rounds that are behind a run: those that a checkpoint holds, and those since."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmedian.logs import as_line, warn
from fedmedian.model.layout import Arrays, Layout
from fedmedian.rounds.checkpoint import Checkpoint, History, Mark, Saved
from fedmedian.rounds.core import Core
from fedmedian.rounds.lock import FolderLock

_LOGGER = logging.getLogger("flwr")

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


class Journal:
    """Keeps a run's checkpoints; without one it is empty and stays so.

    Parameters
    ----------
    checkpoint : Checkpoint or None
        Where to.

    Attributes
    ----------
    done : int
        The last round that the run need not run, because the checkpoint holds it.
    model : mapping of str to array, or None
        The model after that round.
    """

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        self._lock: FolderLock | None = None
        self._last: tuple[int, Arrays] | None = None
        self._newest: Arrays | None = None
        self._has_warned = False
        self._stored = 0
        self._earlier: Mark | None = None
        self._latest: Mark | None = None
        self._begin(None)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: the lock of the checkpoint's folder stays here."""
        return {**vars(self), "_lock": None}

    def open(self, core: Core, initial: Arrays | None) -> None:
        """Begin a run, or resume the one that the checkpoint holds.

        Parameters
        ----------
        core : Core
            Takes over the state that was stored.
        initial : mapping of str to array, or None
            The model that the run would begin with, if it is known.

        Raises
        ------
        ValueError
            If the checkpoint holds another run than this one, or is damaged.
        RuntimeError
            If another run has the checkpoint's folder.
        OSError
            If the folder cannot be made, or checkpoints cannot be written.
        """
        self.release()
        self._begin(None)
        if self._checkpoint is None:
            return
        self._lock = self._checkpoint.claim()
        try:
            saved = self._checkpoint.load()
            if saved is not None:
                _require_same_run(self._checkpoint, saved, core, initial)
        except BaseException:
            self.release()
            raise
        if saved is not None:
            core.restore(saved.arrays)
            self._begin(saved)
            _LOGGER.info("Going on after round %d, from %s", self.done, self._checkpoint.folder)

    def require_continuation(self, model: Arrays) -> None:
        """Check that a round after those of the checkpoint begins with the last round's model.

        What has changed it since is in no checkpoint, which is logged once.

        Parameters
        ----------
        model : mapping of str to array
            The model that the round begins with.

        Raises
        ------
        RuntimeError
            If it is to be the first of a resumed run: that would continue another one, and write
            over it.
        """
        if self._checkpoint is None or self._newest is None or _is_same(model, self._newest):
            return
        if self._newest is self.model:
            raise RuntimeError(
                f"the model of round {self.done} in {self._checkpoint.folder} has not been taken "
                "over: what drives this strategy must pass on unchanged what it returns, in the "
                f"Message API of aggregate_train for each round until {self.done}, though nobody "
                "is asked in them, in the older API of initialize_parameters"
            )
        if not self._has_warned:
            warn(
                "the model is not the one that the last round has returned: what has changed it is "
                "not in the checkpoints in %s, and a run can resume from them only without that "
                "change; pass on what aggregate_train or aggregate_fit returns (average_decay "
                "keeps an average beside it), or leave the checkpoint out",
                self._checkpoint.folder,
            )
        self._has_warned = True

    def warn_of_unseen_rounds(self) -> None:
        """Log what a run lacks that resumes and that this strategy's own ``start`` does not run."""
        if self._checkpoint is not None and self.done > 1:
            warn(
                "resuming after round %d, from %s: rounds 1 to %d are not run again, so that an "
                "evaluate_fn of what drives this strategy does not see their models, and a run of "
                "fewer rounds ends with the model of round %d; let evaluate_fn pass over them, and "
                "num_rounds be at least %d",
                *(self.done, self._checkpoint.folder, self.done - 1, self.done, self.done),
            )

    def note(self, phase: str, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Remember a round's metrics for the next checkpoint."""
        if self._checkpoint is not None:
            self._history.setdefault(phase, {})[server_round] = dict(metrics)

    def recall(self, phase: str, server_round: int) -> Mapping[str, Any] | None:
        """Return a round's metrics, or None if there were none."""
        return self._history.get(phase, {}).get(server_round)

    def end_round(self, core: Core, model: Arrays | None) -> None:
        """Take note that a round has ended, and write a checkpoint if it is time to.

        Parameters
        ----------
        core : Core
            In the state after the round.
        model : mapping of str to array, or None
            The new model, or None if it is the one from before the round.
        """
        if self._checkpoint is None:
            return
        number = core.current.number
        self._newest = core.current.arrays if model is None else model
        self._last = number, self._newest
        if number % self._checkpoint.every == 0 and (error := self._save(core)) is not None:
            warn("round %d is not stored, the run continues without: %s", number, error)

    def close(self, core: Core) -> None:
        """Write the last round down, if it is not yet, and say so if it cannot be."""
        error = self._save(core)
        if error is not None and self._checkpoint is not None and self._last is not None:
            _LOGGER.error(
                "the run has ended after round %d, and what came after round %d is not in %s: %s",
                *(self._last[0], self._stored, self._checkpoint.folder, as_line(error)),
            )

    def release(self) -> None:
        """Leave the checkpoint's folder to other runs."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _save(self, core: Core) -> Exception | None:
        """Write the last round down, if it is not yet, and return what keeps it from being so."""
        if self._checkpoint is None or self._last is None:
            return None
        number, model = self._last
        saved = Saved(number, _identity(core), {"model": model, **core.state}, self._history)
        try:
            mark = self._checkpoint.save(saved, self._stored, self._earlier)
        # Whatever keeps it from being written, the run is worth more.
        except Exception as error:
            return error
        self._last, self._stored = None, number
        self._earlier, self._latest = self._latest, mark
        return None

    def _begin(self, saved: Saved | None) -> None:
        self.done = 0 if saved is None else saved.server_round
        self.model: Arrays | None = None if saved is None else saved.arrays["model"]
        self._history: History = {} if saved is None else dict(saved.history)
        self._last = None
        self._newest = self.model
        self._has_warned = False
        self._stored = self.done
        self._earlier = self._latest = None


def _require_same_run(
    checkpoint: Checkpoint, saved: Saved, core: Core, initial: Arrays | None
) -> None:
    folder = str(checkpoint.folder)
    for name, own in _identity(core).items():
        if (stored := saved.identity.get(name)) != own:
            raise ValueError(
                f"checkpoint {folder!r} is of a run with {name}={stored}, this one has {name}={own}"
            )
    if initial is not None and Layout.of_model(initial) != Layout.of_model(saved.arrays["model"]):
        raise ValueError(f"checkpoint {folder!r} is of another model than the initial one")


def _is_same(model: Arrays, other: Arrays) -> bool:
    return model.keys() == other.keys() and all(
        np.array_equal(array, other[name], equal_nan=True) for name, array in model.items()
    )


def _identity(core: Core) -> dict[str, str]:
    return {name: _in_words(value) for name, value in core.identity.items()}


def _in_words(value: Any) -> str:
    """Return what another process would call the same value.

    A function is known by its name alone, and any sequence of the same items is the same.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [*value]
    return _ADDRESS.sub("", repr(value))
