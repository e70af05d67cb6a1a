"""Checkpoints: a run's state in a folder, to resume it in another process."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmedian.checks import require_integer, require_type
from fedmedian.files import NO_FOLLOW, create, create_text, read, replace_text, sync
from fedmedian.logs import warn
from fedmedian.privacy.accounting import Draw, Mechanism
from fedmedian.rounds.lock import FolderLock
from fedmedian.wire.npy import as_numbers

_FORMAT = 4
_ARRAYS, _STATE, _SUMS = "arrays.npz", "state.json", "SHA256SUMS"
_HISTORY = "history.jsonl"
_NAME = re.compile(r"round-(\d+)")
_DRAFT = ".draft"
_ANSWERED = "answered-rounds.json"

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
        The arguments, by name, that must not change when the run resumes.
    arrays : dict of str to dict of str to array
        The model and the strategy's state, in groups.
    history : dict
        The metrics of the rounds so far.
    """

    server_round: int
    identity: Mapping[str, str]
    arrays: Mapping[str, Mapping[str, NDArray[Any]]]
    history: History = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """The extent of a checkpoint's history file, so that a later one can append to it.

    Parameters
    ----------
    server_round : int
        The checkpoint's round.
    entries : dict of str to int
        The number of rounds per phase.
    num_bytes : int
        The length of their lines in bytes.
    digest : str
        The last of a chain of checksums, each over the one before and a line.
    """

    server_round: int
    entries: Mapping[str, int] = field(default_factory=dict)
    num_bytes: int = 0
    digest: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a strategy stores its run; running the same code again resumes it.

    The strategy writes ``folder/round-NNNNNN`` after every `every`-th round, and the Message API's
    own ``start`` also after the last one. It holds the model, the state of optimizer and scale
    rule, the arguments that the model depends on, and all metrics: ``arrays.npz``,
    ``history.jsonl`` (metrics), ``state.json`` (the rest) and ``SHA256SUMS``. No file contains
    pickles. ``SHA256SUMS`` covers arrays and state; the state holds the checksum of the metrics.
    Where the file system has hard links, the amount written does not grow with the number of
    rounds. A round that makes no new model is written with the next one that does, or when
    ``start`` ends: a run that failed trains its last rounds again when it resumes. If such a round
    was due, the last one with a new model is written at once. If the process is killed, a
    checkpoint is complete or absent. Only their owner can read checkpoints.

    The folder keeps the last two. A strategy resumes from the last intact one, even if another
    strategy's ``start`` drives its rounds and passes on its models unchanged.

    With a privacy budget, ``answered-rounds.json`` in the same folder counts each round before its
    clients are asked.

    Checkpoints do not hold what clients keep in ``Context.state``, as with `ClientMomentum`: Flower
    resets it with each run.

    Parameters
    ----------
    folder : str or Path
        The folder, created if necessary. A relative path is resolved when the `Checkpoint` is
        made. Each run needs its own folder: a second run at the same time is refused. Remove the
        folder to start over.
    every : int (default: 1)
        The number of rounds between checkpoints, >= 1.

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
        require_type("folder", self.folder, str | Path, "a path")
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
            lock = FolderLock(folder)
        except OSError as error:
            path = error.filename or str(folder)
            raise OSError(error.errno, error.strerror, path) from error
        try:
            # An existing lock can be writable in a folder that is not.
            with _drafting(folder):
                return lock
        except OSError:
            lock.release()
            raise

    def save(self, saved: Saved, before: int = 0, earlier: Mark | None = None) -> Mark:
        """Write a checkpoint, and remove all others except `before`; the folder must exist.

        Parameters
        ----------
        saved : Saved
            The run to write.
        before : int (default: 0)
            The round of an intact checkpoint to keep; 0 for none.
        earlier : Mark, optional
            An older checkpoint of the same run, whose history file is extended. Without it the
            whole history is written.

        Returns
        -------
        Mark
            The extent of this checkpoint's history.

        Raises
        ------
        OSError
            If it cannot be written; earlier checkpoints remain.
        """
        folder = Path(self.folder)  # not made anew where it was moved: that one has no lock
        final = folder / _folder_name(saved.server_round)
        with _drafting(folder) as draft:
            mark = _write(draft, saved, earlier)
            _remove(final)  # exists only if it could not be read, or the round was saved before
            draft.rename(final)
        sync(folder)
        for number, path in self._stored().items():
            if number not in (before, saved.server_round):
                _remove(path)
        return mark

    def withdraw(self, server_round: int) -> None:
        """Remove the checkpoint of a round, which has not ended after all."""
        _remove(Path(self.folder) / _folder_name(server_round))

    def load(self) -> Saved | None:
        """Return the last intact checkpoint, or None if the folder holds none.

        Creates the folder if necessary, so that a failure shows before training.

        Raises
        ------
        ValueError
            If there are checkpoints, but this version can read none of them.
        OSError
            If the folder cannot be made or read, or a file cannot be read for now, which does not
            count as damage.
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
            raise ValueError(f"cannot resume from any checkpoint, because {'; '.join(broken)}")
        return None

    def answered_rounds(self) -> tuple[dict[Draw, int], int, Mechanism | None]:
        """Return how many rounds clients may have answered, up to which round, and what they ran.

        See `note_answered_rounds`.

        Raises
        ------
        ValueError
            If the count is damaged.
        OSError
            If the file cannot be read, as when it is a link, or the folder cannot be made.
        """
        path = self._make_folder() / _ANSWERED
        with _reading(path):
            try:
                stored = json.loads(read(path))
            except FileNotFoundError:
                return {}, 0, None
            rounds = {Draw(*draw): number for *draw, number in stored["rounds"]}
            until = stored["until"]
            mechanism = None if stored["mechanism"] is None else Mechanism(**stored["mechanism"])
            if stored != _counted(rounds, until, mechanism):
                raise ValueError("it does not match its checksum")
            return rounds, until, mechanism

    def note_answered_rounds(
        self, rounds: Mapping[Draw, int], until: int, mechanism: Mechanism | None
    ) -> None:
        """Store how many rounds clients may have answered, with or without a checkpoint.

        Parameters
        ----------
        rounds : mapping of Draw to int
            The number of rounds by how their clients were drawn.
        until : int
            The last round that is counted, or has asked nobody.
        mechanism : Mechanism or None
            What clients release in a round; None if no round has asked them.

        Raises
        ------
        OSError
            If it cannot be written; the previous count remains.
        """
        text = json.dumps(_counted(rounds, until, mechanism)) + "\n"
        replace_text(Path(self.folder) / _ANSWERED, text)

    def _make_folder(self) -> Path:
        folder = Path(self.folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def _stored(self) -> dict[int, Path]:
        """Return the checkpoints' folders by round."""
        folders = [path for path in Path(self.folder).iterdir() if path.is_dir()]
        return {int(match[1]): path for path in folders if (match := _NAME.fullmatch(path.name))}


def _folder_name(server_round: int) -> str:
    return f"round-{server_round:06}"


@contextmanager
def _drafting(folder: Path) -> Iterator[Path]:
    """Make a folder for a draft, and remove it at the end unless it was renamed."""
    draft = folder / _DRAFT
    _remove(draft)  # left by a killed process
    try:
        draft.mkdir(mode=0o700)
        yield draft
    finally:
        _remove(draft)


def _remove(path: Path) -> None:
    """Remove a folder, or a link but not its target, if it exists."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _write(folder: Path, saved: Saved, earlier: Mark | None) -> Mark:
    """Write a checkpoint's files and flush them to disk."""
    # Numbered, because an array's name may not be a valid file name.
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
    state["history"] = {"entries": mark.entries, "bytes": mark.num_bytes, "sha256": mark.digest}
    with create(folder / _ARRAYS) as file:
        np.savez(file, **numbered)  # type: ignore[arg-type]  # no name is allow_pickle
    create_text(folder / _STATE, json.dumps(state, indent=1) + "\n")
    create_text(folder / _SUMS, "".join(f"{_sum(folder / n)}\n" for n in (_ARRAYS, _STATE)))
    for path in (folder / _HISTORY, folder / _ARRAYS, folder / _STATE, folder / _SUMS, folder):
        sync(path)
    return mark


def _write_history(folder: Path, saved: Saved, earlier: Mark | None) -> Mark:
    """Write the metrics of all rounds by extending an earlier checkpoint's file.

    Both checkpoints then share the file through a hard link; the earlier one reads only the bytes
    in its own mark. The checkpoint between them has a second copy.
    """
    path = folder / _HISTORY
    if earlier is not None:
        try:
            os.link(folder.parent / _folder_name(earlier.server_round) / _HISTORY, path)
            if path.lstat().st_size < earlier.num_bytes:
                raise OSError("it was truncated")
        except OSError:
            path.unlink(missing_ok=True)
            earlier = None
    if earlier is None:
        earlier = Mark(0)
        create_text(path, "")
    lines, digest = [], earlier.digest
    for phase, rounds in saved.history.items():
        new = islice(reversed(rounds.items()), len(rounds) - earlier.entries.get(phase, 0))
        for number, metrics in reversed([*new]):
            lines.append(json.dumps(_plain([phase, number, metrics])))
            digest = _chained(digest, lines[-1])
    data = "".join(f"{line}\n" for line in lines).encode()
    with open(os.open(path, os.O_WRONLY | NO_FOLLOW), "wb") as file:
        file.truncate(earlier.num_bytes)  # drop what a killed process appended
        file.seek(earlier.num_bytes)
        file.write(data)
    entries = {phase: len(rounds) for phase, rounds in saved.history.items()}
    return Mark(saved.server_round, entries, earlier.num_bytes + len(data), digest)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: the user's functions may return any type of metric or name."""
    if hasattr(value, "shape"):  # of NumPy or torch; arrays of TensorFlow have no tolist
        value = value.tolist() if hasattr(value, "tolist") else np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    return value if isinstance(value, str | int | float | None) else str(value)


def _read_history(path: Path, mark: Mark) -> History:
    """Read the metrics of all rounds, up to the length in a checkpoint's mark."""
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
    """Return the checksum of a line and all lines before it, whose checksum is `digest`."""
    return sha256(f"{digest}{line}".encode()).hexdigest()


def _read(folder: Path) -> Saved:
    """Read a checkpoint, or raise ValueError with the name of the unreadable file."""
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
                "version that wrote it, or start over in another folder"
            )
        names = {group: list(names) for group, names in state["arrays"].items()}
        number, identity, own = int(state["round"]), dict(state["identity"]), state["history"]
        mark = Mark(number, dict(own["entries"]), int(own["bytes"]), str(own["sha256"]))
    history = _read_history(folder / _HISTORY, mark)
    with _reading(folder / _ARRAYS), np.load(folder / _ARRAYS, allow_pickle=False) as stored:
        arrays = {
            group: {name: as_numbers(stored[f"{group}.{i}"]) for i, name in enumerate(own)}
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
        raise  # not a sign of damage
    # Parsers of JSON, zip and npy raise too many types to list.
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else repr(error)
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _counted(rounds: Mapping[Draw, int], until: int, mechanism: Mechanism | None) -> dict[str, Any]:
    """Return numbers of rounds in the stored form, with a checksum."""
    stored = {
        "rounds": [[*draw, number] for draw, number in rounds.items()],
        "until": until,
        "mechanism": None if mechanism is None else asdict(mechanism),
    }
    return {**stored, "sha256": sha256(json.dumps(stored).encode()).hexdigest()}


def _sum(path: Path) -> str:
    """Return a file's line in ``SHA256SUMS``."""
    with path.open("rb") as file:
        return f"{file_digest(file, 'sha256').hexdigest()}  {path.name}"
