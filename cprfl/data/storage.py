"""Files by local path or by URI.

`join` puts a name behind a folder, `read_bytes` and `local_copy` read a file: nothing else looks at how a path is
written.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import fs
from pydantic import AfterValidator, ValidationInfo

from cprfl.data import web
from cprfl.data.files import write_aside
from cprfl.data.filesystems import check_bucket, is_remote, local_path, named, on
from cprfl.data.opened import open_file, read_whole, regular_file
from cprfl.data.trouble import check_size, described
from cprfl.errors import StorageError

_ASKED_AT_ONCE = 32
_NOT_THERE = (-1,)


def join(folder: str, path: str) -> str:
    """``path`` in ``folder``; an absolute path or a URI stays what it is."""
    if not folder or path.startswith("/") or "://" in path:
        return path
    return f"{folder.rstrip('/')}/{path}" if path not in ("", ".") else folder


def parent(path: str) -> str:
    """The folder that a file is in."""
    folder, slash, _ = path.rpartition("/")
    return folder if folder else slash or "."


def _resolve(path: str, info: ValidationInfo) -> str:
    """Put a relative path behind the validation context's ``data_root``, if there is one."""
    root = (info.context or {}).get("data_root")
    return path if root is None else join(root, path)


DataPath = Annotated[str, AfterValidator(_resolve)]
"""A path or URI in a dataset or encoder section: relative to the experiment's ``data_root``."""


@dataclass(frozen=True)
class Folder:
    """A folder on any filesystem; nothing of it need exist. Only its URI travels between processes.

    Attributes:
        uri: without a slash at its end.
    """

    uri: str

    def __truediv__(self, name: str) -> Folder:
        return Folder(join(self.uri, name))

    def files(self) -> dict[str, int]:
        """Size in bytes of each file directly in the folder, by name; nothing where there is no folder."""
        return {info.base_name: info.size for info in self._list() if info.type == fs.FileType.File}

    def folders(self) -> list[str]:
        """Names of the folders in it."""
        return sorted(info.base_name for info in self._list() if info.type == fs.FileType.Directory)

    def is_there(self) -> bool:
        """Whether the folder exists; in a bucket, whether anything is in it.

        Raises:
            StorageError: where there is no such bucket, or the storage cannot be reached or refuses.
        """
        found = on(self.uri, lambda opened, path: opened.get_file_info(path).type)
        if found == fs.FileType.NotFound:
            check_bucket(self.uri)
        return bool(found == fs.FileType.Directory)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        found = on(f"{self.uri}/{name}", lambda opened, path: opened.get_file_info(path).type)
        return bool(found == fs.FileType.File)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return self.read_array(name).tobytes()

    def open(self, name: str) -> pa.NativeFile:
        """A file to read from, mapped into memory where it is a local one."""
        uri = f"{self.uri}/{name}"
        if is_remote(uri):
            return open_file(uri)
        with named(uri):
            return pa.memory_map(str(regular_file(uri)))

    def read_array(self, name: str) -> np.ndarray:
        """A file's bytes, uint8 [size], in memory that may be written to and that Arrow's pool uses again."""
        uri = f"{self.uri}/{name}"
        if not is_remote(uri):
            regular_file(uri)
        return np.frombuffer(on(uri, lambda opened, path: read_whole(uri, opened, path)), np.uint8)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, which appears whole or not at all."""
        uri = f"{self.uri}/{name}"
        if not is_remote(uri):
            with named(uri), write_aside(local_path(uri)) as aside, aside.open("wb") as file:
                yield file
            return
        # Closing a remote stream keeps what it has got, after an error too: so it is opened when all is at hand.
        stream = pa.BufferOutputStream()
        yield stream
        content = stream.getvalue()

        def upload(opened: fs.FileSystem, path: str) -> None:
            with opened.open_output_stream(path) as file:
                file.write(content)

        on(uri, upload)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        with self.create(name) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file."""
        on(f"{self.uri}/{name}", lambda opened, path: opened.delete_file(path))

    def remove_all(self) -> None:
        """Remove the folder with all that is in it."""
        on(self.uri, lambda opened, path: opened.delete_dir(path))

    def _list(self) -> list[fs.FileInfo]:
        found: list[fs.FileInfo] = on(
            self.uri, lambda opened, path: opened.get_file_info(fs.FileSelector(path, allow_not_found=True))
        )
        if not found:
            check_bucket(self.uri)
        return found


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """A file's bytes, by path or URI.

    Args:
        uri: path or URI.
        limit: the most bytes that such a file may have; a larger one is refused before it is read.

    Raises:
        FileNotFoundError: where there is none.
        StorageError: where it is no file (a folder, a pipe, a device), is larger than ``limit``, or the storage cannot
            be reached or refuses.
    """
    if not is_remote(uri):
        path = regular_file(uri)
        with named(uri), path.open("rb") as file:
            check_size(uri, path.stat().st_size, limit)
            content: bytes = file.read(-1 if limit is None else limit + 1)  # it may be growing
        check_size(uri, len(content), limit)
        return content
    if web.is_web(uri):  # whole by one request, with no question for its size before
        return on(uri, lambda *_: web.read(uri, limit))
    with open_file(uri) as remote:
        check_size(uri, remote.size(), limit)
        return bytes(remote.read())


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """The file's local path, or that of a copy that lasts as long as the block; for libraries that want a path.

    Raises:
        FileNotFoundError: where there is none.
        StorageError: where the storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        yield regular_file(uri)
        return
    with tempfile.TemporaryDirectory(prefix="cprfl-") as folder:
        copy = Path(folder) / uri.rpartition("/")[2]
        content = read_bytes(uri)
        with named(str(copy)):
            copy.write_bytes(content)
        del content
        yield copy


def stamps(uris: Sequence[str]) -> list[tuple[int, ...]]:
    """Size in bytes and modification time in ns of each file: what tells a changed one; (-1,) where there is none.

    Raises:
        StorageError: where a storage cannot be reached or refuses.
    """
    result: list[tuple[int, ...]] = [() if is_remote(uri) else _local_stamp(uri) for uri in uris]
    remote = [row for row, uri in enumerate(uris) if is_remote(uri)]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        for row, stamp in zip(remote, pool.map(_remote_stamp, [uris[row] for row in remote]), strict=True):
            result[row] = stamp
    if remote and all(result[row] == _NOT_THERE for row in remote):
        check_bucket(uris[remote[0]])
    return result


def _local_stamp(uri: str) -> tuple[int, ...]:
    try:
        found = local_path(uri).stat()
    except ValueError:  # a name with a NUL in it
        return _NOT_THERE
    except OSError as error:
        if error.errno in (errno.EIO, errno.ESTALE):  # the disk or share is at fault, with all that is on it
            raise StorageError(described(uri, error)) from None
        return _NOT_THERE
    return (found.st_size, found.st_mtime_ns)


def _remote_stamp(uri: str) -> tuple[int, ...]:
    info = on(uri, lambda opened, path: opened.get_file_info(path))
    return (info.size or 0, info.mtime_ns or 0) if info.type == fs.FileType.File else _NOT_THERE
