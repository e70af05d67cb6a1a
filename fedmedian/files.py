"""Files that only their owner can read, and that are whole even after a power failure."""

import os
from pathlib import Path
from typing import BinaryIO

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
"""The flag that refuses to open a symbolic link, where the system supports that."""


def open_privately(path: str, flags: int) -> int:
    """Open a file for its owner alone, as the `opener` of ``open``."""
    return os.open(path, flags, mode=0o600)


def create(path: Path) -> BinaryIO:
    """Create a file, which must not exist yet."""
    return open(path, "xb", opener=open_privately)


def create_text(path: Path, text: str) -> None:
    """Create a file, which must not exist yet, with this text."""
    with create(path) as file:
        file.write(text.encode())


def read(path: Path) -> bytes:
    """Return what `replace_text` has written.

    Raises
    ------
    OSError
        If the file cannot be read, or is a link: writing would replace the link, not its target.
    """
    with open(os.open(path, os.O_RDONLY | NO_FOLLOW), "rb") as file:
        return file.read()


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step: if the process dies before, the old file remains.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    draft = path.with_name(f".draft-{path.name}")
    draft.unlink(missing_ok=True)  # left by a killed process
    create_text(draft, text)
    sync(draft)
    draft.replace(path)
    sync(path.parent)  # or a power failure may undo the replacement


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to disk."""
    if path.is_dir() and os.name != "posix":
        return  # other systems cannot open folders
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
