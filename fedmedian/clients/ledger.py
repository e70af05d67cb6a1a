"""What a client has answered, counted in its state or, for all runs, in a folder."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fedmedian.files import open_privately, read, replace_text
from fedmedian.logs import warn
from fedmedian.privacy.accounting import PrivacyLoss
from fedmedian.privacy.amplification import ORDERS

if sys.platform != "win32":
    import fcntl

HAS_LOCKS = sys.platform != "win32"
"""Whether files can be locked on this system."""

_FILE = "answers.json"
_LAST_ROUND = "last-round-of-"


@dataclass(frozen=True)
class Answered:
    """What a client has answered.

    Parameters
    ----------
    number : int (default: 0)
        The number of answers.
    rounds : mapping of str to int (default: empty)
        The last round of each run.
    loss : PrivacyLoss (default: none)
        What the answers reveal together.
    """

    number: int = 0
    rounds: Mapping[str, int] = field(default_factory=dict)
    loss: PrivacyLoss = field(default_factory=PrivacyLoss)

    def encode(self) -> dict[str, Any]:
        """Return the answers as scalars and lists."""
        rounds = {_LAST_ROUND + run: number for run, number in self.rounds.items()}
        sums = {"as-gaussian": self.loss.as_gaussian, "as-sent": self.loss.as_sent}
        return {"answers": self.number, "divergences": [*self.loss.divergences]} | sums | rounds

    @classmethod
    def decode(cls, values: Mapping[str, Any]) -> Self:
        """Return the answers that `encode` has encoded.

        Raises
        ------
        ValueError
            If they are malformed.
        """
        values = dict(values)
        try:
            number, divergences = values.pop("answers"), values.pop("divergences")
            sums = values.pop("as-gaussian"), values.pop("as-sent")
        except KeyError as error:
            raise ValueError(f"{error} is missing") from None
        if other := [name for name in values if not name.startswith(_LAST_ROUND)]:
            raise ValueError(f"{other[0]!r} is not known")
        rounds = {name.removeprefix(_LAST_ROUND): last for name, last in values.items()}
        if not all(type(count) is int and count >= 0 for count in (number, *rounds.values())):
            raise ValueError("a count is not an integer >= 0")
        if not all(type(one) is float and one >= 0 for one in (*sums, *divergences)):
            raise ValueError("a loss is not a number >= 0")
        if len(divergences) not in (0, len(ORDERS)):
            raise ValueError(f"there are {len(divergences)} divergences, not {len(ORDERS)}")
        return cls(number, rounds, PrivacyLoss(*sums, (*divergences,)))


class Ledger:
    """A folder's count of answers, locked as long as the ledger is open: use it in ``with``.

    Parameters
    ----------
    folder : str
        The folder, made if missing.

    Raises
    ------
    OSError
        If it cannot be read or written.
    ValueError
        If what it holds is damaged.
    """

    def __init__(self, folder: str) -> None:
        self._path = Path(folder) / _FILE

    def __enter__(self) -> Self:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = open(self._path.with_name(".lock"), "a", opener=open_privately)
        if sys.platform != "win32":
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *error: object) -> None:
        if sys.platform != "win32":
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a forked child has the file open, too
        self._lock.close()

    def read(self) -> Answered:
        """Return the answers until now."""
        try:
            return Answered.decode(json.loads(read(self._path)))
        except FileNotFoundError:
            remedy = "restore it if there was one"
            warn("%s is a new ledger: answers are counted from 0; %s", self._path, remedy)
            return Answered()
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path} is damaged: {error}") from error

    def write(self, answers: Answered) -> None:
        """Replace the stored answers in one step; see `replace_text`."""
        replace_text(self._path, json.dumps(answers.encode()))
