"""The finished rounds of a run: those in its checkpoint, and those since."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from fedmedian.logs import LOGGER, as_line, warn, without_addresses
from fedmedian.model.layout import Arrays, is_same_model
from fedmedian.rounds.checkpoint import Checkpoint, History, Mark, Saved
from fedmedian.rounds.lock import FolderLock
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.state import RunState

_NUMPY_SCALAR = re.compile(r"\bnp\.(?:float|int|uint)\d+\(([^()]*)\)")


class Journal:
    """Writes and restores a run's checkpoints; does nothing without a `Checkpoint`.

    Parameters
    ----------
    checkpoint : Checkpoint or None
        Where and how often to store the run.

    Attributes
    ----------
    done : int
        The last round that the checkpoint holds, which does not run again; 0 for none.
    model : mapping of str to array, or None
        The model after that round.
    """

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        self._lock: FolderLock | None = None
        self._begin(None)

    def _begin(self, saved: Saved | None) -> None:
        self.done = 0 if saved is None else saved.server_round
        self.model: Arrays | None = None if saved is None else saved.arrays["model"]
        self._history: History = {} if saved is None else dict(saved.history)
        self._last: Saved | None = None
        self._newest = self.model
        self._has_warned = False
        self._stored = self.done
        self._earlier: Mark | None = None
        self._latest: Mark | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle, without the lock of the folder."""
        return {**vars(self), "_lock": None}

    def open(self, recipe: Recipe, initial: Arrays | None) -> RunState:
        """Start a run, or resume the one in the checkpoint.

        Parameters
        ----------
        recipe : Recipe
            What the run's model depends on.
        initial : mapping of str to array, or None
            The initial model, if it is known.

        Returns
        -------
        RunState
            The state to begin with.

        Raises
        ------
        ValueError
            If the checkpoint is of a different run, or is damaged.
        RuntimeError
            If another run uses the checkpoint's folder.
        OSError
            If the folder cannot be made or written to.
        """
        self.release()
        self._begin(None)
        if self._checkpoint is None:
            return RunState()
        self._lock = self._checkpoint.claim()
        try:
            saved = self._checkpoint.load()
            if saved is not None:
                _require_same_run(self._checkpoint, saved, recipe, initial)
        except BaseException:
            self.release()
            raise
        if saved is None:
            return RunState()
        self._begin(saved)
        LOGGER.info("Resuming after round %d from %s", self.done, self._checkpoint.folder)
        return RunState.from_groups(saved.arrays)

    def holds(self, server_round: int) -> bool:
        """Return whether a round is stored and does not run again."""
        return server_round <= self.done != 0

    def require_continuation(self, model: Arrays) -> None:
        """Check that a round starts from the model that the last round returned.

        If not, a warning is logged once: no checkpoint holds the change.

        Parameters
        ----------
        model : mapping of str to array
            The model that the round starts from.

        Raises
        ------
        RuntimeError
            If it is the first round of a resumed run, which would then continue a different run
            and overwrite this one.
        """
        if self._checkpoint is None or self._newest is None or is_same_model(model, self._newest):
            return
        if self._newest is self.model:
            raise RuntimeError(
                f"the model of round {self.done} in {self._checkpoint.folder} was not loaded: the "
                "code that drives this strategy must pass on unchanged what aggregate_train "
                f"returns for each round up to {self.done}, in which no client trains; in the "
                "older API, what initialize_parameters returns"
            )
        if not self._has_warned:
            warn(
                "the model is not the one that the last round returned: the checkpoints in %s do "
                "not hold the change, so a run that resumes from them continues without it; pass "
                "on what aggregate_train or aggregate_fit returns, or leave the checkpoint out",
                self._checkpoint.folder,
            )
        self._has_warned = True

    def warn_of_unseen_rounds(self) -> None:
        """Log what a resumed run lacks when another strategy's ``start`` drives it."""
        if self._checkpoint is not None and self.done > 1:
            warn(
                "resuming after round %d from %s: rounds 1 to %d do not run again, so the caller's "
                "evaluate_fn does not see their models, and a run of fewer rounds ends with the "
                "model of round %d; let evaluate_fn skip those rounds, and set num_rounds to at "
                "least %d",
                *(self.done, self._checkpoint.folder, self.done - 1, self.done, self.done),
            )

    def note(self, phase: str, server_round: int, metrics: Mapping[str, Any]) -> None:
        """Remember a round's metrics for the next checkpoint."""
        if self._checkpoint is not None:
            self._history.setdefault(phase, {})[server_round] = dict(metrics)

    def recall(self, phase: str, server_round: int) -> Mapping[str, Any] | None:
        """Return a round's metrics, or None if there were none."""
        return self._history.get(phase, {}).get(server_round)

    def end_round(self, server_round: int, recipe: Recipe, model: Arrays, state: RunState) -> None:
        """Record that a round has ended, and write a checkpoint if one is due.

        Parameters
        ----------
        server_round : int
            The round.
        recipe : Recipe
            What the run's model depends on.
        model : mapping of str to array
            The model after the round.
        state : RunState
            The state after the round.
        """
        if self._checkpoint is None:
            return
        self._newest = model
        arrays = {"model": model, **state.to_groups()}
        self._last = Saved(server_round, identity_of(recipe), arrays, self._history)
        if server_round % self._checkpoint.every == 0 and (error := self._save()) is not None:
            warn("round %d was not stored, the run continues without it: %s", server_round, error)

    def close(self) -> None:
        """Store the last round unless it is stored already; log an error if that fails."""
        error = self._save()
        if error is not None and self._checkpoint is not None and self._last is not None:
            LOGGER.error(
                "the run ended after round %d, but nothing after round %d is stored in %s: %s",
                *(self._last.server_round, self._stored, self._checkpoint.folder, as_line(error)),
            )

    def release(self) -> None:
        """Unlock the checkpoint's folder for other runs."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _save(self) -> Exception | None:
        """Store the last round unless it is stored already; return the error if that fails."""
        saved = self._last
        if self._checkpoint is None or saved is None:
            return None
        try:
            mark = self._checkpoint.save(saved, self._stored, self._earlier)
        # The run is worth more than a checkpoint.
        except Exception as error:
            return error
        self._last, self._stored = None, saved.server_round
        self._earlier, self._latest = self._latest, mark
        return None


def _require_same_run(
    checkpoint: Checkpoint, saved: Saved, recipe: Recipe, initial: Arrays | None
) -> None:
    folder = str(checkpoint.folder)
    for name, own in identity_of(recipe).items():
        if (stored := saved.identity.get(name)) != own:
            raise ValueError(
                f"checkpoint {folder!r} is of a run with {name}={stored}, this one has {name}={own}"
            )
    if initial is not None and _forms(initial) != _forms(saved.arrays["model"]):
        raise ValueError(f"checkpoint {folder!r} is of a different model than the initial one")


def _forms(model: Arrays) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of each array of a model, in whatever order."""
    return {name: (array.shape, array.dtype) for name, array in model.items()}


def identity_of(recipe: Recipe) -> dict[str, str]:
    """Return a recipe's fields in words: what must be the same where a run resumes."""
    return {one.name: _in_words(getattr(recipe, one.name)) for one in fields(recipe)}


def _in_words(value: Any) -> str:
    """Return a description of a value that is the same in every process.

    Functions compare by name, sequences by their items, and NumPy's scalars as numbers.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [*value]
    return _NUMPY_SCALAR.sub(r"\1", without_addresses(repr(value)))
