"""Files opened for reading: a regular file on a disk, or a remote one, whose reads outlast the storage's troubles."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from cprfl.data.filesystems import is_remote, local_path, named, on
from cprfl.data.trouble import Trouble, TroubleError
from cprfl.errors import StorageError


def open_file(uri: str) -> pa.NativeFile:
    """A file to read from, at any place in it.

    What is read of a remote file is read again where the storage is in trouble (`filesystems.on`), and never shorter
    than the file is.

    Raises:
        FileNotFoundError: where there is none.
        StorageError: where it is a folder, a pipe or a device, or the storage cannot be reached or refuses; reading
            raises it too.
    """
    if is_remote(uri):
        return pa.PythonFile(_PatientFile(uri), mode="r")
    with named(uri):
        return pa.OSFile(str(regular_file(uri)))


def regular_file(uri: str) -> Path:
    """The path of a local file, which reading ends of: a pipe would be waited for, a device has no end.

    Raises:
        FileNotFoundError: where there is none.
        StorageError: where it is no regular file.
    """
    path = local_path(uri)
    with named(uri):
        try:
            mode = path.stat().st_mode
        except (NotADirectoryError, ValueError):  # the latter for a name with a NUL in it
            raise FileNotFoundError(uri) from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise StorageError(f"{uri}: {kind}, not a file")
    return path


def read_whole(uri: str, opened: fs.FileSystem, path: str) -> pa.Buffer:
    """A remote file's bytes; for `filesystems.on`.

    Raises:
        TroubleError: where fewer came than the file has.
    """
    with opened.open_input_file(path) as file:
        content = file.read_buffer()
        _refuse_shorter(uri, content.size, file.size())
    return content


def _refuse_shorter(uri: str, found: int, expected: int) -> None:
    if found < expected:
        raise TroubleError(f"{uri}: only {found:,} of {expected:,} bytes came", Trouble.BUSY)


class _PatientFile(io.RawIOBase):
    """A remote file that is opened anew where reading it fails."""

    def __init__(self, uri: str) -> None:
        self._uri, self._place = uri, 0
        self._file: pa.NativeFile | None = None
        self._opened: fs.FileSystem | None = None  # with which it was opened
        self._size = on(uri, self._open).size()

    def _open(self, opened: fs.FileSystem, path: str) -> pa.NativeFile:
        if self._file is None or self._opened is not opened:
            self._file, self._opened = opened.open_input_file(path), opened
        return self._file

    def _read(self, opened: fs.FileSystem, path: str, count: int) -> bytes:
        file, self._file = self._open(opened, path), None
        if file.size() != self._size:
            raise StorageError(f"{self._uri}: it was changed while it was read; start again")
        content: bytes = file.read_at(count, self._place)
        _refuse_shorter(self._uri, len(content), count)
        self._file = file
        return content

    def read(self, size: int = -1) -> bytes:
        """The next ``size`` bytes, fewer only at the file's end."""
        left = max(0, self._size - self._place)
        count = left if size is None or size < 0 else min(size, left)
        content = on(self._uri, lambda opened, path: self._read(opened, path, count)) if count else b""
        self._place += count
        return content

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def tell(self) -> int:
        """The place."""
        return self._place

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True
