"""Locks on files, which the kernel takes back from a process that dies, however it dies.

They are advisory: a file that is locked can be read, written and removed by whoever does not ask. Storage that knows no
locks is said to be so, and nobody waits there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNKNOWN = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_SECONDS = 0.2  # between two attempts: a system call that waits by itself would not be interrupted by Ctrl-C
_mine = threading.local()  # paths that this thread holds: its stages call each other


class NoLocksError(Exception):
    """The storage that a file is on knows no locks."""


class Lock:
    """A lock that this process holds until it is released, or until nothing refers to it any more.

    Attributes:
        path: of the locked file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self._descriptor = path, descriptor
        self.release = weakref.finalize(self, os.close, descriptor)

    def alone(self) -> bool:
        """Make it one that nobody shares. Where others do it stays shared, and the answer is no."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.share()  # the attempt may have given it up
            return False
        return True

    def share(self) -> None:
        """Make it one that others may share."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def say(self, text: str) -> None:
        """Leave a word for whoever waits; it is shown to people and read by nothing."""
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(errors="replace"), 0)
        except OSError as error:
            error.filename = str(self.path)  # or nobody knows where there is no room
            raise


def try_lock(path: Path, *, shared: bool = False) -> Lock | None:
    """Lock a file, made where there is none; none where somebody else holds it, or something else than a share.

    Raises:
        NoLocksError: where the storage knows no locks.
        OSError: where the file's folder is not there, or the file can be neither made nor opened.
    """
    while True:
        descriptor = _open(path)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            os.close(descriptor)
            if error.errno in _UNKNOWN:
                raise NoLocksError(f"{path}: {error.strerror}") from None
            raise
        if _is_there(path, descriptor):
            return Lock(path, descriptor)
        os.close(descriptor)  # it was removed meanwhile, with what it guards


def lock_shared(path: Path, *, make_folder: bool = False) -> Lock | None:
    """A share of a file's lock, as soon as nobody has it alone.

    Args:
        path: of the file, which is made where there is none.
        make_folder: that it lies in, too.

    Returns:
        None where it cannot be locked: the storage knows no locks, or there is no file and none can be made.
    """
    while True:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            found = try_lock(path, shared=True)
        except NoLocksError:
            return None
        except FileNotFoundError:
            if make_folder and not path.parent.exists():  # it was removed in between
                continue
            return None
        if found is not None:
            return found
        time.sleep(_SECONDS)


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[bool]:
    """Hold a file's lock alone while the block runs; whoever comes second waits, and says for whom.

    A thread that holds it already goes on. Where the storage knows no locks that is said, and the block runs.

    Args:
        path: of the file; folders are made.
        what: is done in the block, for whoever waits.

    Yields:
        Whether this block is the outermost of its thread.
    """
    held: set[Path] = _mine.__dict__.setdefault("held", set())
    if path in held:
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _wait(path)
    if lock is not None:
        lock.say(f"{what}, process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    held.add(path)
    try:
        yield True
    finally:
        held.discard(path)
        if lock is not None:
            lock.release()


def holds(path: Path) -> bool:
    """Whether this thread is in an `exclusive` block for this file."""
    return path in _mine.__dict__.get("held", ())


def _wait(path: Path) -> Lock | None:
    """The lock, as soon as it is free; none where there is none to be had."""
    said = False
    while True:
        try:
            lock = try_lock(path)
        except NoLocksError as error:
            _tell(f"{error}: this storage knows no locks; see that no other command works on the same experiment")
            return None
        if lock is not None:
            return lock
        if not said:
            holder = "".join(filter(str.isprintable, path.read_text(errors="replace")[:300]))
            _tell(f"{path.stem}: waiting for another command ({holder or 'it starts just now'}); Ctrl-C gives up")
            said = True
        time.sleep(_SECONDS)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # which is enough to lock it


def _is_there(path: Path, descriptor: int) -> bool:
    """Whether the path still leads to the opened file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))
