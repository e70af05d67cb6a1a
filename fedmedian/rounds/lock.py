"""One run at a time in a folder."""

import os
import sys
from errno import EINVAL, ENOTSUP
from pathlib import Path
from stat import S_ISREG
from threading import current_thread
from weakref import WeakValueDictionary, finalize

from fedmedian.logs import warn

if sys.platform != "win32":
    import fcntl


class FolderLock:
    """The right to write to a folder, which one run at a time has.

    It ends with the process, whichever way that ends. Of the runs of one thread the last one has
    it: those before have ended, though nobody may have said so. Where the system has no
    ``flock``, as Windows and some network file systems, a warning says that only the runs of one
    process are kept apart.

    Parameters
    ----------
    folder : Path
        The folder, which is there. The lock is the file ``.lock`` in it.

    Raises
    ------
    RuntimeError
        If another run has it.
    OSError
        If the folder cannot be written to, or the lock is a link.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._thread = current_thread()
        before = _HELD.get(self._folder)
        if before is not None:
            if before._thread is not self._thread and before._thread.is_alive():
                raise _in_use(folder, "this process")
            before.release()
        path = folder / ".lock"
        # What it holds is written over: it must be no link to what somebody else needs.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags, mode=0o600)
        self._close = finalize(self, os.close, descriptor)
        try:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise OSError(EINVAL, "the lock must be a file that has no other name", str(path))
            _lock(descriptor, folder)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            os.fsync(descriptor)  # a full disk may fail only here
        except BaseException:
            self._close()
            raise
        _HELD[self._folder] = self

    def release(self) -> None:
        """Give it back; nothing happens if that has been done."""
        self._close()
        if _HELD.get(self._folder) is self:
            del _HELD[self._folder]


_HELD: WeakValueDictionary[Path, FolderLock] = WeakValueDictionary()
"""The locks of this process."""


def _lock(descriptor: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            raise OSError(ENOTSUP, "there is no flock")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        # Who has just taken it may not have written that down yet.
        where = f"process {holder}" if holder else "another process or thread"
        raise _in_use(folder, where) from error
    except OSError as error:
        warn("%s cannot be locked here, see that no other run uses it: %s", folder, error)


def _in_use(folder: Path, where: str) -> RuntimeError:
    return RuntimeError(f"checkpoint folder {str(folder)!r} is in use by another run, of {where}")


def _release_all() -> None:
    for lock in list(_HELD.values()):
        lock.release()


if hasattr(os, "register_at_fork"):
    # A child's copy of the descriptor would hold the lock when this process is long dead.
    os.register_at_fork(after_in_child=_release_all)
