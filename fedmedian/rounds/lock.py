"""A lock that gives a folder to one run at a time."""

import os
import sys
from errno import EINVAL, ENOTSUP
from pathlib import Path
from stat import S_ISREG
from threading import current_thread
from weakref import WeakValueDictionary, finalize

from fedmedian.files import NO_FOLLOW
from fedmedian.logs import warn

if sys.platform != "win32":
    import fcntl


class FolderLock:
    """The exclusive right of one run to write to a folder.

    The lock ends with the process, however that ends. A new run in the same thread takes the lock
    over, since the previous run of that thread should have ended; if not, that one finds out by
    `require_held`. Without ``flock``, as on Windows and some network file systems, a warning says
    that only runs of the same process are kept apart.

    Parameters
    ----------
    folder : Path
        An existing folder. The lock is the file ``.lock`` in it.

    Raises
    ------
    RuntimeError
        If another run holds the lock.
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
        # Locking overwrites the file, so it must not be a link to a file in use elsewhere.
        flags = os.O_RDWR | os.O_CREAT | NO_FOLLOW
        descriptor = os.open(path, flags, mode=0o600)
        self._close = finalize(self, os.close, descriptor)
        try:
            status = os.fstat(descriptor)
            if not S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise OSError(
                    EINVAL, "the lock must be a regular file without other links", str(path)
                )
            _lock(descriptor, folder)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            os.fsync(descriptor)  # a full disk may fail only here
        except BaseException:
            self._close()
            raise
        _HELD[self._folder] = self

    def require_held(self) -> None:
        """Raise if another run has taken the lock over.

        Raises
        ------
        RuntimeError
            As when the lock is made.
        """
        if not self._close.alive:
            raise _in_use(self._folder, "this process")

    def release(self) -> None:
        """Release the lock; does nothing if it is released already."""
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
        # A new holder may not have written its id yet.
        where = f"process {holder}" if holder else "another process or thread"
        where += ", which a SuperLink that was killed may have left behind"
        raise _in_use(folder, where) from error
    except OSError as error:
        warn("%s cannot be locked here: %s; make sure that no other run uses it", folder, error)


def _in_use(folder: Path, where: str) -> RuntimeError:
    return RuntimeError(
        f"checkpoint folder {str(folder)!r} is in use by another run, of {where}: use another "
        "folder, or end that run first"
    )


def _release_all() -> None:
    for lock in list(_HELD.values()):
        lock.release()


if hasattr(os, "register_at_fork"):
    # A child's copy of the descriptor would hold the lock after this process has died.
    os.register_at_fork(after_in_child=_release_all)
