"""Runs that survive their process: what a strategy knows, written to a folder and read back."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_integer, require_type
from fedmedian.logs import warn
from fedmedian.privacy.accounting import Draw
from fedmedian.rounds.lock import FolderLock

_FORMAT = 4
_ARRAYS, _STATE, _SUMS = "arrays.npz", "state.json", "SHA256SUMS"
_HISTORY = "history.jsonl"
_NAME = re.compile(r"round-(\d+)")
_DRAFT = ".draft"
_ANSWERED = "answered-rounds.json"
_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""Refuses a link to another file; not every system knows it."""

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
class Mark:
    """How much history a checkpoint has, so that its file can be continued.

    Parameters
    ----------
    server_round : int
        The checkpoint's round.
    entries : dict of str to int
        The number of rounds of each phase.
    num_bytes : int
        Their length.
    digest : str
        The last of a chain of checksums, each of the one before and a line.
    """

    server_round: int
    entries: Mapping[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a strategy stores its run, which the same call resumes.

    After every `every`-th round, and in the Message API's own ``start`` after the last, the model,
    the optimiser's and the scale rule's state, the arguments that the model depends on and all
    metrics are written to ``folder/round-NNNNNN``: arrays as ``arrays.npz``, metrics as
    ``history.jsonl``, the rest as ``state.json``, and no pickle in any of them. ``SHA256SUMS`` has
    the checksums of arrays and state, and the state that of the metrics. What is written does not
    grow with the number of rounds, where the file system has hard links. The folder appears whole
    or not at all, whenever the process is killed. The last two are kept, and a strategy that finds
    some resumes from the last whole one, also where another strategy's ``start`` drives its rounds
    and passes on the models that it is given unchanged. Only their owner can read them.

    With a privacy budget ``answered-rounds.json`` beside them counts the rounds that clients have
    been asked in, before they are.

    What a client keeps in its ``Context.state``, as with `ClientMomentum`, is not in it: Flower
    begins that anew with each run.

    Parameters
    ----------
    folder : str or Path
        Where; made if need be. A relative path is resolved when the `Checkpoint` is made. One
        folder belongs to one run: a second one at the same time is refused, and to start anew,
        remove it.
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
        object.__setattr__(self, "folder", Path(self.folder).absolute())

    def claim(self) -> FolderLock:
        """Make the folder, reserve it for one run, and return the lock to release afterwards.

        Raises
        ------
        RuntimeError
            If another run uses the folder.
        OSError
            If the folder cannot be made or written to, as on a full disk.
        """
        folder = self._make_folder()
        try:
            return FolderLock(folder)
        except OSError as error:
            path = error.filename or str(folder)
            raise OSError(error.errno, error.strerror, path) from error

    def save(self, saved: Saved, before: int = 0, earlier: Mark | None = None) -> Mark:
        """Write a checkpoint, and remove the others but for one.

        Parameters
        ----------
        saved : Saved
            What to write.
        before : int (default: 0)
            The round of a whole checkpoint that is to be kept; 0 for none.
        earlier : Mark, optional
            Another checkpoint of the same run, before that one: its history is continued. Without
            it the whole history is written.

        Returns
        -------
        Mark
            What continues this checkpoint's history.

        Raises
        ------
        OSError
            If it cannot be written; those before it are still there.
        """
        folder = self._make_folder()
        draft, final = folder / _DRAFT, folder / _folder_name(saved.server_round)
        _remove(draft)  # of a process that was killed
        try:
            draft.mkdir(mode=0o700)
            mark = _write(draft, saved, earlier)
            _remove(final)  # it is there only if it could not be read
            draft.rename(final)
        finally:
            _remove(draft)
        _sync(folder)
        for number, path in self._stored().items():
            if number not in (before, saved.server_round):
                _remove(path)
        return mark

    def load(self) -> Saved | None:
        """Return the last checkpoint that is whole, or None if there is none at all.

        The folder is made if need be: one that cannot be is better known before training.

        Raises
        ------
        ValueError
            If there are checkpoints, and none is whole and one that this version can read.
        OSError
            If the folder cannot be made or read, or a file in it cannot be read for now, which is
            not taken for damage.
        """
        self._make_folder()
        broken = []
        for _, path in sorted(self._stored().items(), reverse=True):
            try:
                saved = _read(path)
            except ValueError as error:
                broken.append(str(error))
                continue
            for reason in broken:
                warn("going back to an earlier checkpoint, because %s", reason)
            return saved
        if broken:
            raise ValueError(f"cannot go on from any checkpoint, because {'; '.join(broken)}")
        return None

    def answered_rounds(self) -> dict[Draw, int]:
        """Return the numbers of rounds that clients may have answered; see `note_answered_rounds`.

        Raises
        ------
        ValueError
            If it is damaged.
        OSError
            If it cannot be read, as where it is a link, or the folder cannot be made.
        """
        path = self._make_folder() / _ANSWERED
        with _reading(path):
            try:
                # What is written takes the place of a link, and would not be found there.
                descriptor = os.open(path, os.O_RDONLY | _NO_FOLLOW)
            except FileNotFoundError:
                return {}
            with open(descriptor, "rb") as file:
                stored = json.loads(file.read())
            rounds = {
                Draw(float(sampling), require_integer("min_replies", least, low=1)): (
                    require_integer("number of rounds", number, low=0)
                )
                for sampling, least, number in stored["rounds"]
            }
            if stored != _counted(rounds):
                raise ValueError("it does not match its checksum")
            return rounds

    def note_answered_rounds(self, rounds: Mapping[Draw, int]) -> None:
        """Write down how many rounds clients may have answered, those of no checkpoint included.

        Parameters
        ----------
        rounds : mapping of Draw to int
            Their numbers, by how their clients were drawn.

        Raises
        ------
        OSError
            If it cannot be written; what was there before still is.
        """
        folder = self._make_folder()
        draft = folder / f"{_DRAFT}-{_ANSWERED}"
        draft.unlink(missing_ok=True)  # of a process that was killed
        _create_text(draft, json.dumps(_counted(rounds)) + "\n")
        _sync(draft)
        draft.replace(folder / _ANSWERED)
        _sync(folder)

    def _make_folder(self) -> Path:
        folder = Path(self.folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _stored(self) -> dict[int, Path]:
        """Return the folders of the checkpoints by their rounds."""
        folders = [path for path in Path(self.folder).iterdir() if path.is_dir()]
        return {int(match[1]): path for path in folders if (match := _NAME.fullmatch(path.name))}


def _folder_name(server_round: int) -> str:
    return f"round-{server_round:06}"


def _remove(path: Path) -> None:
    """Remove a folder, or a link and not what it points to, if it is there."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, saved: Saved, earlier: Mark | None) -> Mark:
    """Write a checkpoint's files, and wait until they are on the disk."""
    # Numbered, because an array's name need not be one that a file can have.
    numbered = {
        f"{group}.{number}": array
        for group, arrays in saved.arrays.items()
        for number, array in enumerate(arrays.values())
    }
    state = {
        "format": _FORMAT,
        "round": saved.server_round,
        "identity": dict(saved.identity),
        "arrays": {group: list(arrays) for group, arrays in saved.arrays.items()},
    }
    mark = _write_history(folder, saved, earlier)
    state["history"] = {
        "entries": mark.entries,
        "bytes": mark.num_bytes,
        "sha256": mark.digest,
    }
    with _create(folder / _ARRAYS) as file:
        np.savez(file, **numbered)  # type: ignore[arg-type]  # none is called allow_pickle
    _create_text(folder / _STATE, json.dumps(state, indent=1) + "\n")
    _create_text(folder / _SUMS, "".join(f"{_sum(folder / n)}\n" for n in (_ARRAYS, _STATE)))
    for path in (folder / _HISTORY, folder / _ARRAYS, folder / _STATE, folder / _SUMS, folder):
        _sync(path)
    return mark


def _write_history(folder: Path, saved: Saved, earlier: Mark | None) -> Mark:
    """Write the metrics of all rounds, of which an earlier checkpoint's file has most.

    That file becomes this one's as well. What is appended does not concern the earlier checkpoint,
    which knows how much of it is its own; the one between has another file, a second copy.
    """
    path = folder / _HISTORY
    if earlier is not None:
        try:
            os.link(folder.parent / _folder_name(earlier.server_round) / _HISTORY, path)
            if path.lstat().st_size < earlier.num_bytes:
                raise OSError("it has been cut")
        except OSError:
            path.unlink(missing_ok=True)
            earlier = None
    if earlier is None:
        earlier = Mark(0)
        _create_text(path, "")
    lines, digest = [], earlier.digest
    for phase, rounds in saved.history.items():
        new = islice(reversed(rounds.items()), len(rounds) - earlier.entries.get(phase, 0))
        for number, metrics in reversed([*new]):
            # In the older API the user's own metrics may be anything; nothing depends on them.
            lines.append(json.dumps([phase, number, metrics], default=str))
            digest = _chained(digest, lines[-1])
    data = "".join(f"{line}\n" for line in lines).encode()
    with open(os.open(path, os.O_WRONLY | _NO_FOLLOW), "wb") as file:
        file.truncate(earlier.num_bytes)  # what a process that was killed has appended
        file.seek(earlier.num_bytes)
        file.write(data)
    entries = {phase: len(rounds) for phase, rounds in saved.history.items()}
    return Mark(saved.server_round, entries, earlier.num_bytes + len(data), digest)


def _read_history(path: Path, mark: Mark) -> History:
    """Read the metrics of all rounds: as much of the file as a checkpoint's mark says."""
    with _reading(path):
        with path.open("rb") as file:
            lines = file.read(mark.num_bytes).decode().splitlines()
        digest = ""
        for line in lines:
            digest = _chained(digest, line)
        if digest != mark.digest:
            raise ValueError(f"it does not match {_STATE}")
        history: History = {phase: {} for phase in mark.entries}
        for phase, number, metrics in map(json.loads, lines):
            history[phase][number] = metrics
    return history


def _chained(digest: str, line: str) -> str:
    """Return the checksum of a line and of all those before it, which `digest` is of."""
    return sha256(f"{digest}{line}".encode()).hexdigest()


def _read(folder: Path) -> Saved:
    """Read a checkpoint, or raise ValueError with the name of the file that cannot be."""
    with _reading(folder / _SUMS):
        sums = (folder / _SUMS).read_text().splitlines()
    for path in (folder / _ARRAYS, folder / _STATE):
        with _reading(path):
            if _sum(path) not in sums:
                raise ValueError(f"it does not match {_SUMS}")
    with _reading(folder / _STATE):
        state = json.loads((folder / _STATE).read_bytes())
        if state["format"] != _FORMAT:
            raise ValueError(
                f"it has format {state['format']}, this version reads {_FORMAT}: resume with the "
                "version that has written it, or start anew in another folder"
            )
        names = {group: list(names) for group, names in state["arrays"].items()}
        number, identity, own = int(state["round"]), dict(state["identity"]), state["history"]
        mark = Mark(number, dict(own["entries"]), int(own["bytes"]), str(own["sha256"]))
    history = _read_history(folder / _HISTORY, mark)
    with _reading(folder / _ARRAYS), np.load(folder / _ARRAYS, allow_pickle=False) as stored:
        arrays = {
            group: {name: stored[f"{group}.{i}"] for i, name in enumerate(own)}
            for group, own in names.items()
        }
    return Saved(number, identity, arrays, history)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}") from error
    except (MemoryError, OSError):
        raise  # which says nothing about what the file holds
    # JSON, zip and npy files fail to parse in more ways than can be listed.
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _create(path: Path) -> BinaryIO:
    return open(path, "xb", opener=partial(os.open, mode=0o600))


def _create_text(path: Path, text: str) -> None:
    with _create(path) as file:
        file.write(text.encode())


def _counted(rounds: Mapping[Draw, int]) -> dict[str, Any]:
    """Return numbers of rounds as they are stored, with a checksum."""
    counts = [[*draw, number] for draw, number in rounds.items()]
    return {"rounds": counts, "sha256": sha256(json.dumps(counts).encode()).hexdigest()}


def _sum(path: Path) -> str:
    """Return a file's line in ``SHA256SUMS``."""
    with path.open("rb") as file:
        return f"{file_digest(file, 'sha256').hexdigest()}  {path.name}"


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    if path.is_dir() and os.name != "posix":
        return  # other systems do not open folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
