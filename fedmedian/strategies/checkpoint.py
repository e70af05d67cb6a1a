"""Runs that survive their process: what a strategy knows, written to a folder and read back."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_integer, require_type

_FORMAT = 1
_NAME = re.compile(r"round-(\d+)")

History = dict[str, dict[int, dict[str, Any]]]
"""Metrics of each phase by round."""


@dataclass(frozen=True)
class Saved:
    """A run after one of its rounds.

    Parameters
    ----------
    server_round : int
        The round.
    identity : dict of str to str
        The arguments that the run cannot go on with others of, by name.
    arrays : dict of str to dict of str to array
        The model and the strategy's own state, in groups.
    history : dict
        The metrics of the rounds so far.
    """

    server_round: int
    identity: Mapping[str, str]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]]
    history: History = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a strategy stores its run, from which the same call goes on.

    After every `every`-th round, and in the Message API after the last, the model, the optimiser's
    and the scale rule's state, the seed and all metrics are written to ``folder/round-NNNNNN``:
    arrays as ``arrays.npz``, the rest as ``state.json``, no pickle in either. The folder appears
    whole or not at all, whenever the process is killed, and replaces the one before. A strategy
    that finds one there goes on from it.

    What a client keeps in its ``Context.state``, as with `ClientMomentum`, is not in it: Flower
    begins that anew with each run.

    Parameters
    ----------
    folder : str or Path
        Where; made if need be. One folder belongs to one run: remove it to start anew.
    every : int (default: 1)
        The number of rounds from one checkpoint to the next, >= 1.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    Examples
    --------
    >>> checkpoint = Checkpoint("runs/first", every=10)
    """

    folder: str | Path
    every: int = 1

    def __post_init__(self) -> None:
        require_type("folder", self.folder, (str, Path), "a path")
        require_integer("every", self.every, low=1)

    def save(self, saved: Saved) -> None:
        """Write a checkpoint, and remove the ones before it.

        Parameters
        ----------
        saved : Saved
            What to write.
        """
        folder = Path(self.folder)
        final = folder / f"round-{saved.server_round:06}"
        draft = folder / f".{final.name}"
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir(parents=True)
        state = {
            "format": _FORMAT,
            "round": saved.server_round,
            "identity": dict(saved.identity),
            "arrays": {group: list(arrays) for group, arrays in saved.arrays.items()},
            "history": saved.history,
        }
        # Numbered, because an array's name need not be one that a file can have.
        numbered = {
            f"{group}.{number}": array
            for group, arrays in saved.arrays.items()
            for number, array in enumerate(arrays.values())
        }
        with (draft / "arrays.npz").open("wb") as file:
            np.savez(file, **numbered)  # type: ignore[arg-type]  # none is called allow_pickle
        (draft / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        for path in (draft / "arrays.npz", draft / "state.json", draft):
            _sync(path)
        draft.rename(final)
        _sync(folder)
        for old in folder.iterdir():
            if old != final and _NAME.fullmatch(old.name.removeprefix(".")):
                shutil.rmtree(old, ignore_errors=True)

    def load(self) -> Saved | None:
        """Return the last checkpoint, or None if there is none.

        The folder is made if need be: one that cannot be is better known before training.

        Raises
        ------
        ValueError
            If the checkpoint is not one that this version can read.
        OSError
            If the folder cannot be made or read.
        """
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        rounds = {int(m[1]): path for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))}
        if not rounds:
            return None
        path = rounds[max(rounds)]
        try:
            state = json.loads((path / "state.json").read_text())
            if state["format"] != _FORMAT:
                raise ValueError(f"it has format {state['format']}, this version reads {_FORMAT}")
            with np.load(path / "arrays.npz", allow_pickle=False) as arrays:
                return Saved(
                    state["round"],
                    state["identity"],
                    {
                        group: {name: arrays[f"{group}.{i}"] for i, name in enumerate(names)}
                        for group, names in state["arrays"].items()
                    },
                    {
                        phase: {int(number): metrics for number, metrics in rounds.items()}
                        for phase, rounds in state["history"].items()
                    },
                )
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"cannot go on from the checkpoint {path}: {error}") from error


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # other systems do not open folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
