"""Files by local path or by URI.

`join` puts a name behind a folder, `read_bytes` and `local_copy` read a file: nothing else looks at how a path is
written.
"""

from __future__ import annotations

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
from cprfl.data.filesystems import filesystem, is_remote, local_path, named

_ASKED_AT_ONCE = 32


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

    @property
    def _filesystem(self) -> tuple[fs.FileSystem, str]:
        return filesystem(self.uri)

    def __truediv__(self, name: str) -> Folder:
        return Folder(join(self.uri, name))

    def files(self) -> dict[str, int]:
        """Size in bytes of each file directly in the folder, by name; nothing where there is no folder."""
        return {info.base_name: info.size for info in self._list() if info.type == fs.FileType.File}

    def folders(self) -> list[str]:
        """Names of the folders in it."""
        return sorted(info.base_name for info in self._list() if info.type == fs.FileType.Directory)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        filesystem, path = self._filesystem
        with named(f"{self.uri}/{name}"):
            return bool(filesystem.get_file_info(f"{path}/{name}").type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return self.read_array(name).tobytes()

    def open(self, name: str) -> pa.NativeFile:
        """A file to read from, mapped into memory where it is a local one."""
        filesystem, path = self._filesystem
        with named(f"{self.uri}/{name}"):
            if isinstance(filesystem, fs.LocalFileSystem):
                return pa.memory_map(f"{path}/{name}")
            return filesystem.open_input_file(f"{path}/{name}")

    def read_array(self, name: str) -> np.ndarray:
        """A file's bytes, uint8 [size], in memory that may be written to and that Arrow's pool uses again."""
        filesystem, path = self._filesystem
        with named(f"{self.uri}/{name}"), filesystem.open_input_file(f"{path}/{name}") as file:
            return np.frombuffer(file.read_buffer(), np.uint8)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, which appears whole or not at all."""
        filesystem, path = self._filesystem
        if isinstance(filesystem, fs.LocalFileSystem):
            with write_aside(Path(path) / name) as aside, aside.open("wb") as file:
                yield file
            return
        # Closing a remote stream keeps what it has got, after an error too: so it is opened when all is at hand.
        content = pa.BufferOutputStream()
        yield content
        with named(f"{self.uri}/{name}"), filesystem.open_output_stream(f"{path}/{name}") as file:
            file.write(content.getvalue())

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""
        with self.create(name) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Remove a file."""
        filesystem, path = self._filesystem
        with named(f"{self.uri}/{name}"):
            filesystem.delete_file(f"{path}/{name}")

    def remove_all(self) -> None:
        """Remove the folder with all that is in it."""
        filesystem, path = self._filesystem
        with named(self.uri):
            filesystem.delete_dir(path)

    def _list(self) -> list[fs.FileInfo]:
        filesystem, path = self._filesystem
        with named(self.uri):
            found: list[fs.FileInfo] = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return found


def read_bytes(uri: str) -> bytes:
    """A file's bytes, by path or URI.

    Raises:
        FileNotFoundError: where there is none.
        StorageError: where the storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        return local_path(uri).read_bytes()
    opened, path = filesystem(uri)
    if web.is_web(uri):  # whole by one request, with no question for its size before
        return web.read(uri)
    with named(uri), opened.open_input_file(path) as file:
        content: bytes = file.read()
        return content


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """The file's local path, or that of a copy that lasts as long as the block; for libraries that want a path.

    Raises:
        FileNotFoundError: where there is none.
        StorageError: where the storage cannot be reached or refuses.
    """
    if not is_remote(uri):
        if not local_path(uri).is_file():
            raise FileNotFoundError(uri)
        yield local_path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / uri.rpartition("/")[2]
        copy.write_bytes(read_bytes(uri))
        yield copy


def stamps(uris: Sequence[str]) -> list[tuple[int, ...]]:
    """Size in bytes and modification time in ns of each file: what tells a changed one; (-1,) where there is none.

    Raises:
        StorageError: where a storage cannot be reached or refuses.
    """
    result: list[tuple[int, ...]] = [(-1,)] * len(uris)
    remote: dict[str, list[int]] = {}
    for row, uri in enumerate(uris):
        if is_remote(uri):
            remote.setdefault("/".join(uri.split("/")[:3]), []).append(row)
            continue
        try:
            stat = local_path(uri).stat()
        except OSError:
            continue
        result[row] = (stat.st_size, stat.st_mtime_ns)
    for root, rows in remote.items():
        found, base = filesystem(root)
        paths = [f"{base}{uris[row].removeprefix(root)}" for row in rows]
        with named(root):
            infos = _infos(found, paths)
        for row, info in zip(rows, infos, strict=True):
            if info.type == fs.FileType.File:
                result[row] = (info.size or 0, info.mtime_ns or 0)
    return result


def _infos(found: fs.FileSystem, paths: list[str]) -> list[fs.FileInfo]:
    """What a filesystem says of many files, asked side by side: Arrow asks fsspec's one after the other."""
    if not isinstance(found, fs.PyFileSystem):
        infos: list[fs.FileInfo] = found.get_file_info(paths)
        return infos
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        return list(pool.map(found.get_file_info, paths))
