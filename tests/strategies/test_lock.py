"""The lock of a folder: one run at a time, and no longer than its process lives."""

import fcntl
import gc
import os
import stat
import subprocess
import sys
from contextlib import contextmanager
from errno import ENOLCK
from threading import Event, Thread

import pytest

from fedmedian.rounds.lock import FolderLock

HOLDER = """
import os, sys, time
from pathlib import Path
from fedmedian.rounds.lock import FolderLock

lock = FolderLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)  # by now the child has closed its copy of the lock
time.sleep(60)
"""


@contextmanager
def held_by_another_thread(folder):
    held, done = Event(), Event()

    def hold():
        lock = FolderLock(folder)
        held.set()
        done.wait()
        del lock

    thread = Thread(target=hold)
    thread.start()
    held.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_locked(folder):
    """Whether another process would find the folder locked."""
    with (folder / ".lock").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_folder_is_locked_until_the_lock_is_released(tmp_path):
    lock = FolderLock(tmp_path)
    assert is_locked(tmp_path)
    lock.release()
    lock.release()
    assert not is_locked(tmp_path)
    FolderLock(tmp_path).release()


def test_another_process_that_has_the_folder_is_named(tmp_path):
    (tmp_path / ".lock").write_text("1234\n")
    with (tmp_path / ".lock").open() as file:  # as good as another process to flock
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"of process 1234, which a SuperLink") as used:
            FolderLock(tmp_path)
        assert str(tmp_path) in str(used.value)
    FolderLock(tmp_path).release()


def test_a_run_that_has_only_just_taken_the_folder_is_refused_in_whole_words(tmp_path):
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as file:  # whose process is not in it yet
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"in use by another run, of another process or th"):
            FolderLock(tmp_path)


def test_a_run_of_another_thread_that_has_the_folder_keeps_it(tmp_path):
    with (
        held_by_another_thread(tmp_path),
        pytest.raises(RuntimeError, match=r"in use by another run, of this process: use another"),
    ):
        FolderLock(tmp_path / ".." / tmp_path.name)
    FolderLock(tmp_path).release()


def test_a_later_run_of_the_same_thread_takes_the_folder_over(tmp_path):
    first = FolderLock(tmp_path)
    first.require_held()
    second = FolderLock(tmp_path)
    with pytest.raises(RuntimeError, match=r"in use by another run, of this process: use another"):
        first.require_held()
    second.require_held()
    first.release()  # which is the other's by now
    assert is_locked(tmp_path)
    second.release()
    assert not is_locked(tmp_path)


def test_a_lock_that_nobody_has_any_more_is_released(tmp_path):
    lock = FolderLock(tmp_path)
    assert is_locked(tmp_path)
    del lock
    gc.collect()
    assert not is_locked(tmp_path)


def test_the_lock_says_whose_it_is_to_nobody_but_its_owner(tmp_path):
    (tmp_path / ".lock").write_text("a longer text than that\n")
    lock = FolderLock(tmp_path)
    assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"
    lock.release()
    (tmp_path / ".lock").unlink()
    FolderLock(tmp_path).release()
    assert stat.S_IMODE((tmp_path / ".lock").stat().st_mode) == 0o600


@pytest.mark.parametrize("make_link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_is_left_as_it_is(
    make_link, tmp_path
):
    (tmp_path / "precious").write_text("precious")
    make_link(tmp_path / "precious", tmp_path / ".lock")
    with pytest.raises(OSError, match=r"\.lock"):
        FolderLock(tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, warnings):
    def flock(descriptor, operation):
        raise OSError(ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = FolderLock(tmp_path)
    (warning,) = warnings(str(tmp_path))
    assert "cannot be locked here" in warning
    lock.release()


@pytest.mark.slow
def test_a_killed_process_leaves_no_lock_though_its_children_live_on(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(RuntimeError, match=f"of process {holder.pid}, "):
                FolderLock(tmp_path)
            holder.kill()
            holder.wait()
            os.kill(child, 0)  # it is still there
            FolderLock(tmp_path).release()
        finally:
            holder.kill()
            os.kill(child, 9)
