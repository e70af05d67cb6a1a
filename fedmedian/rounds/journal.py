"""The finished rounds of a run: those in its checkpoint, and those since."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from fedmedian.logs import LOGGER, Once, as_line, shown, warn, without_addresses
from fedmedian.model.layout import Arrays, forms_of, is_by_position, is_same_array
from fedmedian.rounds.checkpoint import Checkpoint, History, Mark, Saved
from fedmedian.rounds.downlink import difference_in_form
from fedmedian.rounds.lock import FolderLock
from fedmedian.rounds.recipe import Recipe
from fedmedian.rounds.state import RunState

_INITIAL = "initial model"
"""The key of the digest of the initial model's names, shapes and dtypes in a run's identity."""

_REMEDY = "continue as that run began, or start over in another folder"

_NUMPY_SCALAR = re.compile(r"\bnp\.(?:float|int|uint)\d+\(([^()]*)\)")

_ALL_DIGITS: dict[str, Any] = {
    "edgeitems": 3,
    "floatmode": "unique",
    "formatter": None,
    "infstr": "inf",
    "legacy": False,
    "linewidth": 75,
    "nanstr": "nan",
    "sign": "-",
    "suppress": False,
    "threshold": 10_000,
}
"""NumPy's options for arrays in words, whatever the user has set to print them."""

_LONGEST_WORDS = 1_000
"""The number of characters of a field's words that are kept, with a digest of all."""


class Journal:
    """Writes and restores a run's checkpoints; does nothing without a `Checkpoint`.

    A round may train some of the arrays alone: a checkpoint holds the last value of each array that
    any round has asked about. Where names are positions, as in the older API, those that no round
    has asked about yet have their initial values, so that "0" can be told from another part.

    Parameters
    ----------
    checkpoint : Checkpoint or None
        Where and how often to store the run.

    Attributes
    ----------
    done : int
        The last round that the checkpoint holds, which does not run again; 0 for none.
    model : mapping of str to array, or None
        The arrays after that round.
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
        self._written: Saved | None = None
        self._known = dict(self.model or {})
        self._unloaded = set(self._known)
        self._form: str | None = None if saved is None else saved.identity.get(_INITIAL)
        self._once = Once()
        self._stored = self.done
        self._is_due = False
        self._moved_in = 0
        self._moved: Saved | None = None
        self._before = 0
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
        self._begin(saved)
        if initial is not None:
            self._form = _digest(forms_of(initial))
        if saved is None:
            if initial is not None and is_by_position(initial):
                self._known = dict(initial)
            return RunState()
        LOGGER.info("Resuming after round %d from %s", self.done, self._checkpoint.folder)
        return RunState.from_groups(saved.arrays)

    def holds(self, server_round: int) -> bool:
        """Return whether a round is stored and does not run again."""
        return server_round <= self.done != 0

    def require_continuation(self, model: Arrays) -> None:
        """Check that each array is the one that the last round with it returned.

        If not, a warning is logged once: no checkpoint holds the change.

        Parameters
        ----------
        model : mapping of str to array
            The model that the round starts from.

        Raises
        ------
        RuntimeError
            If it is the first round of a resumed run with that array, which would then continue a
            different run and overwrite this one; if another run has taken the folder over.
        """
        if self._checkpoint is None:
            return
        self.require_lock()
        changed = [
            name
            for name, array in model.items()
            if name in self._known and not is_same_array(array, self._known[name])
        ]
        for name in changed:
            if name in self._unloaded:
                raise RuntimeError(
                    f"the model of round {self.done} in {self._checkpoint.folder} was not loaded, "
                    f"array {shown(name)} differs: the code that drives this strategy must keep "
                    "every array that aggregate_train returns for each round up to "
                    f"{self.done}, in which no client trains, and pass it on unchanged; in the "
                    "older API, those that initialize_parameters returns"
                )
        absent = self._unloaded - model.keys()
        is_part = absent and self._unloaded == self._known.keys()
        if is_part and self._once.is_first("absent"):
            LOGGER.info(
                "the run resumes with a part of the model: arrays %s of the checkpoint are in what "
                "aggregate_train returned for round %d, and must be kept from there",
                *(shown(sorted(absent)), self.done),
            )
        if is_by_position(model) and self._is_unclear(model, has_changed=bool(changed)):
            self._known = dict(model)
            self._once.warn(
                "change",
                "a part of the model is trained, and its arrays have no names that say which part: "
                "no run can resume from the checkpoints in %s, except from those of rounds that "
                "train all arrays; train the first few, unchanged since the last round, or use "
                "names, which the older API does not have",
                self._checkpoint.folder,
            )
        elif changed and (self._stored or self._last is not None):
            self._once.warn(
                "change",
                "the model is not the one that the last round returned, array %s differs: the "
                "checkpoints in %s do not hold the change, so a run that resumes from them "
                "continues without it; pass on what aggregate_train or aggregate_fit returns, or "
                "leave the checkpoint out",
                *(shown(changed[0]), self._checkpoint.folder),
            )

    def _is_unclear(self, model: Arrays, *, has_changed: bool) -> bool:
        """Return whether arrays named by position may be another part than the first ones."""
        others = self._known.keys() - model.keys()
        if not self._known or model.keys() == self._known.keys():
            return False
        return has_changed or all(
            any(is_same_array(array, self._known[other]) for other in others)
            for array in model.values()
        )

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

    def end_round(
        self, server_round: int, recipe: Recipe, model: Arrays, state: RunState, *, has_step: bool
    ) -> None:
        """Record that a round has ended, and write a checkpoint if one is due.

        A round without a step is stored with the next one that has a step, or by `close`.
        Otherwise a run that fails would skip its failed rounds each time it resumes. If it was due,
        the last round with a step is written now. A subclass may train several times in a round;
        one step is enough.

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
        has_step : bool
            Whether this training has made a new model.
        """
        if self._checkpoint is None:
            return
        is_whole = model.keys() >= self._known.keys()  # and has an order that counts
        self._known = dict(model) if is_whole else {**self._known, **model}
        self._unloaded -= model.keys()
        identity = identity_of(recipe)
        if self._form is not None:
            identity[_INITIAL] = self._form
        arrays = {"model": self._known, **state.to_groups()}
        self._last = Saved(server_round, identity, arrays, self._history)
        self._is_due |= server_round % self._checkpoint.every == 0
        if has_step:
            self._moved_in = server_round
        if self._moved_in == server_round:
            self._moved = self._last
        if not self._is_due or (moved := self._moved) is None:
            return
        self._is_due = moved is not self._last
        if (error := self._save(moved)) is not None:
            number = moved.server_round
            warn("round %d was not stored, the run continues without it: %s", number, error)

    def reopen(self, server_round: int) -> None:
        """Withdraw a round's checkpoint, or a run that resumes would not train it again."""
        if self._checkpoint is not None and self._stored == server_round:
            self._checkpoint.withdraw(server_round)
            self._stored, self._latest, self._earlier = self._before, self._earlier, None
            self._last = self._moved = self._written  # to store, if nothing comes of the training
            self._is_due = True

    def close(self) -> None:
        """Store the last round unless it is stored already; log an error if that fails."""
        error = self._save(self._last)
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

    def require_lock(self) -> None:
        """Raise RuntimeError if another run has taken the checkpoint's folder over."""
        # A strategy of the user's own may drive several in one thread, all with this folder.
        if self._lock is not None:  # copies are without
            self._lock.require_held()

    def _save(self, saved: Saved | None) -> Exception | None:
        """Store a round unless it is stored already; return the error if that fails."""
        if self._checkpoint is None or saved is None:
            return None
        self.require_lock()
        is_last = saved is self._last
        if not is_last:  # rounds without a step have followed, and will run again
            number = saved.server_round
            rounds = {
                phase: {n: metrics for n, metrics in own.items() if n <= number}
                for phase, own in saved.history.items()
            }
            saved = replace(saved, history=rounds)
        is_again = saved.server_round == self._stored  # a subclass may train twice in a round
        before = self._before if is_again else self._stored
        try:
            mark = self._checkpoint.save(saved, before, None if is_again else self._earlier)
        # The run is worth more than a checkpoint.
        except Exception as error:
            return error
        if not is_again:
            self._before, self._earlier = self._stored, self._latest
        self._last = None if is_last else self._last
        self._moved, self._written = None, saved
        self._stored, self._latest = saved.server_round, mark
        return None


def _require_same_run(
    checkpoint: Checkpoint, saved: Saved, recipe: Recipe, initial: Arrays | None
) -> None:
    folder = str(checkpoint.folder)
    for name, own in identity_of(recipe).items():
        if (stored := saved.identity.get(name)) != own:
            raise ValueError(
                f"checkpoint {folder!r} is of a run with {name}={stored}, this one has "
                f"{name}={own}; {_REMEDY}"
            )
    if initial is None:
        return
    stored_model, form = saved.arrays["model"], forms_of(initial)
    # The stored arrays may be a part of the model, or have grown.
    if saved.identity.get(_INITIAL) != _digest(form) and form != forms_of(stored_model):
        raise ValueError(
            f"checkpoint {folder!r} is of a different model than the initial one, in which arrays "
            f"are {difference_in_form(stored_model, initial)}; {_REMEDY}"
        )
    if is_by_position(initial) and not initial.keys() <= stored_model.keys():
        raise ValueError(
            f"checkpoint {folder!r} holds {len(stored_model)} of the model's {len(initial)} "
            "arrays, which have no names that say which ones: start over in another folder, and in "
            "each round train all arrays, the first few as the last round left them, or arrays "
            "that have names"
        )


def _digest(forms: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]) -> str:
    """Return a digest of the shapes and dtypes of a model's arrays."""
    in_order = [(name, shape, str(dtype)) for name, (shape, dtype) in sorted(forms.items())]
    return blake2b(repr(in_order).encode(), digest_size=16).hexdigest()


def identity_of(recipe: Recipe) -> dict[str, str]:
    """Return a recipe's fields in words: what must be the same where a run resumes."""
    return {one.name: _in_words(getattr(recipe, one.name)) for one in fields(recipe)}


def _in_words(value: Any) -> str:
    """Return a description of a value that is the same in every process.

    Functions compare by name, sequences by their items, NumPy's scalars as numbers, and arrays of
    more than 10,000 entries by their ends.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = [*value]
    with np.printoptions(**_ALL_DIGITS):
        words = _NUMPY_SCALAR.sub(r"\1", without_addresses(repr(value)))
    if len(words) <= _LONGEST_WORDS:
        return words
    return f"{words[:_LONGEST_WORDS]}…, digest {blake2b(words.encode(), digest_size=8).hexdigest()}"
