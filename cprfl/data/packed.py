"""Images inside of larger files: members of tar files and cells of Parquet tables.

Their URIs say where the bytes are, and end in the image's name:

- ``tar-member://data/train-000.tar/1536+20480/cat.jpg``: 20,480 bytes from byte 1,536 on;
- ``parquet-cell://data/train.parquet/17:image.bytes/cat.jpg``: row 17 of a column.

The path of the file stands in them as it is (``tar-member://s3://bucket/train.tar/...``): what follows it is read from
the end, so that it may hold anything.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.parquet as pq

from cprfl.data.filesystems import is_remote, named
from cprfl.data.opened import open_file
from cprfl.data.storage import stamps
from cprfl.errors import StorageError, UnreadableImageError

_TAR = re.compile(r"tar-member://(.+)/(\d+)\+(\d+)/[^/]*", re.DOTALL)
_PARQUET = re.compile(r"parquet-cell://(.+)/(\d+):([^/]*)/[^/]*", re.DOTALL)
_KEPT_BYTES = 2**29
_CHANGED = "it was cut off, or changed after `cprfl preprocess`"

_Stamp = tuple[int, ...]
_Key = tuple[str, _Stamp, int, str]  # path, stamp, row group, column


def tar_uri(path: str, offset: int, size: int, name: str) -> str:
    """URI of a member of an uncompressed tar file: ``size`` bytes from byte ``offset`` on."""
    return f"tar-member://{path}/{offset}+{size}/{_last(name)}"


def parquet_uri(path: str, row: int, column: str, name: str) -> str:
    """URI of a cell of a Parquet file; ``column`` is dotted where it is a field of a struct (``image.bytes``)."""
    return f"parquet-cell://{path}/{row}:{quote(column, safe='')}/{_last(name)}"


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def is_packed(uri: str) -> bool:
    """Whether a URI names an image inside of a larger file."""
    return uri.startswith(("tar-member://", "parquet-cell://"))


def container(uri: str) -> str:
    """Path or URI of the file that holds the image."""
    return str(_parts(uri)[0])


def read_packed(uri: str) -> bytes:
    """The image's bytes. Any number of threads may read.

    A cell of a Parquet file cannot be read alone: its whole row group is, and the row groups that were used last are
    kept (512 MiB). Images that are read in the table's order cost little; in random order, a row group each.

    Raises:
        FileNotFoundError: where the file that holds it is missing.
        UnreadableImageError: where that file is damaged or does not hold it.
        StorageError: where the storage cannot be reached or refuses.
    """
    path, *place = _parts(uri)
    if uri.startswith("tar-member:"):
        return _member(path, int(place[0]), int(place[1]))
    return _cell(path, int(place[0]), unquote(place[1]))


def _parts(uri: str) -> Sequence[str]:
    found = _TAR.fullmatch(uri) or _PARQUET.fullmatch(uri)
    if found is None:
        raise UnreadableImageError(f"{uri}: no URI of an image in a tar or Parquet file")
    return found.groups()


def _member(path: str, offset: int, size: int) -> bytes:
    with open_file(path) as file, named(path):
        content: bytes = file.read_at(size, offset)
    if len(content) < size:
        raise UnreadableImageError(f"{path} ends before byte {offset + size}; {_CHANGED}")
    return content


def _cell(path: str, row: int, column: str) -> bytes:
    stamp = stamps([path])[0]
    ends = _row_group_ends(path, stamp)
    if not ends or row >= ends[-1]:
        raise UnreadableImageError(f"{path} has no row {row}; {_CHANGED}")
    group = bisect.bisect_right(ends, row)
    value = _row_groups.column((path, stamp, group, column))[row - (ends[group - 1] if group else 0)]
    while isinstance(value, pa.StructScalar) and value.is_valid:
        value = value[0]
    if not value.is_valid:
        raise UnreadableImageError(f"{path}, row {row}: no bytes in {column}")
    content: bytes = value.as_py()
    return content


@functools.lru_cache(maxsize=256)
def _row_group_ends(path: str, stamp: _Stamp) -> tuple[int, ...]:
    """The row behind each row group of the file that has this stamp."""
    with parquet_file(path) as file:
        sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return tuple(itertools.accumulate(sizes))


def _read_column(path: str, stamp: _Stamp, group: int, column: str) -> Any:
    with parquet_file(path) as file:
        table = file.read_row_group(group, columns=[column], use_threads=False)
    if table.num_columns != 1:
        raise UnreadableImageError(f"{path} has no column {column}; {_CHANGED}")
    return table.column(0)


@contextmanager
def parquet_file(path: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, open while the block lasts.

    Raises:
        FileNotFoundError: where there is none.
        UnreadableImageError: where it is none, or damaged.
        StorageError: where the storage cannot be reached or refuses.
    """
    # What Arrow raises for damage beyond the footer is an OSError too: of a disk, it is the file that is at fault.
    damaged = pa.ArrowException if is_remote(path) else (pa.ArrowException, OSError)
    with named(path):
        try:
            with (
                open_file(path) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as file,
            ):
                yield file
        except (FileNotFoundError, StorageError):
            raise
        except damaged as error:
            raise UnreadableImageError(
                f"{path}: not readable as a Parquet file: {str(error).splitlines()[0]}"
            ) from None


@dataclass
class _Entry:
    """A column of a row group, or the place of one that is being read."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    column: Any = None


class _RowGroups:
    """Columns of row groups, the last used ones kept; each is read once, however many threads wait for it."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._lock = threading.Lock()
        self._entries: dict[_Key, _Entry] = {}  # the last used comes last

    def column(self, key: _Key) -> Any:
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry
        with entry.lock:
            if entry.column is None:
                entry.column = _read_column(*key)
                self._forget()
            return entry.column

    def _forget(self) -> None:
        """Let go of those that were not used for longest, until what is left is small enough or one alone."""
        with self._lock:
            sizes = {key: entry.column.nbytes for key, entry in self._entries.items() if entry.column is not None}
            for key in list(sizes)[:-1]:
                if sum(sizes.values()) <= self.most_bytes:
                    return
                del sizes[key], self._entries[key]


_row_groups = _RowGroups(_KEPT_BYTES)
