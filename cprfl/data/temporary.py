"""Files of a process that was killed: how the next one knows them, and that their process is gone."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from cprfl.data.locks import Lock, try_lock

_PREFIX, _LOCK, _FILES = "cprfl-temporary-", "lock", "files"
_ASIDE = re.compile(r"\.(.*\.)?[0-9a-f]{32}")
"""What is written aside is called so until it is whole: a dot, the name that it is to have, and a UUID."""


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for the block, where this machine keeps temporary files.

    Those whose process was killed are removed first: such a folder is locked as long as its process lives.
    """
    remove_abandoned()
    folder, lock = _make()
    try:
        (folder / _FILES).mkdir()
        yield folder / _FILES
    finally:
        shutil.rmtree(folder / _FILES)
        shutil.rmtree(folder, ignore_errors=True)  # without its lock, another command takes it for one that was left
        lock.release()


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Have Python's `tempfile` use a folder while the block runs: what libraries leave there goes with the folder."""
    folder.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before


def remove_abandoned() -> None:
    """Remove this user's temporary folders whose process is gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = try_lock(folder / _LOCK)
        except FileNotFoundError:  # its process removes it just now
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)  # another command may be at it too
            lock.release()


def aside_of(path: Path) -> Path:
    """Where to write what is to become ``path``."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def remove_at_once(folder: Path) -> None:
    """Remove a folder of which nobody may find a half, whenever this is interrupted."""
    shutil.rmtree(folder.rename(aside_of(folder)), ignore_errors=True)


def remove_asides(folder: Path, but: Collection[str] = ()) -> None:
    """Remove what a killed process was writing below a folder in which nobody else writes now.

    Args:
        folder: where to look.
        but: names of folders directly below it that are left alone.
    """
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in but]
        for name in filter(_ASIDE.fullmatch, files):
            (Path(place) / name).unlink(missing_ok=True)
        for name in filter(_ASIDE.fullmatch, folders):
            shutil.rmtree(Path(place) / name)
        folders[:] = [name for name in folders if not _ASIDE.fullmatch(name)]


def _make() -> tuple[Path, Lock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            lock = try_lock(folder / _LOCK)
        except FileNotFoundError:  # another command took it for one that was left
            continue
        if lock is not None:
            return folder, lock
