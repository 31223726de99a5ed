"""Tables in a file of Parquet that says whether it is still what was written.

The checksum is of all bytes of the file, with zeros in its own place, and stands last in the file's metadata. It is
looked for as bytes and compared before anything is decoded: no decoder sees a damaged file. Neither writing nor
comparing holds more of a file than a block of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cprfl.data.files import CHECKSUM, reading, write_aside
from cprfl.errors import UserError

_MARK, _NONE = b"xxh3_64:", b"0" * 16
_BLOCK = 1 << 20
_END = 8  # bytes of a file of Parquet behind its metadata: how long that is, and PAR1


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table, whole or not at all.

    Raises:
        OSError: where the file cannot be written.
    """
    write_parts(path, table.schema, [table])


def write_parts(path: Path, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
    """Write a table whose rows come part by part, whole or not at all; each part is a row group.

    Raises:
        OSError: where the file cannot be written.
    """
    with write_aside(path) as aside:
        with pq.ParquetWriter(aside, schema) as writer:
            for part in parts:
                writer.write_table(part)
            writer.add_key_value_metadata({CHECKSUM: _MARK + _NONE})
        with aside.open("r+b") as file:
            place = _place_of_checksum(file)
            said = _checksum(file, place)
            file.seek(place)
            file.write(said)


def read_table(path: Path, error: type[UserError], mend: str) -> pa.Table:
    """What was written; arguments and errors are those of `open_table`."""
    with open_table(path, error, mend) as table:
        return table.read()


@contextmanager
def open_table(path: Path, error: type[UserError], mend: str) -> Iterator[pq.ParquetFile]:
    """What `write_table` or `write_parts` wrote, to be read part by part.

    Args:
        path: of the file.
        error: to raise where it is not what was written.
        mend: what the user can do then.

    Raises:
        UserError: ``error``, where the file is missing, cannot be read, is damaged or was written by somebody else.
    """
    with reading(path, error, mend):
        file = path.open("rb")
    with file:
        with reading(path, error, mend):
            whole = _is_whole(file)
        if not whole:
            raise error(f"{path}: damaged (its content has changed), or of another version; {mend}")
        yield pq.ParquetFile(file)


def _is_whole(file: BinaryIO) -> bool:
    place = _place_of_checksum(file)
    if place < 0:
        return False
    file.seek(place)
    return file.read(len(_NONE)) == _checksum(file, place)


def _place_of_checksum(file: BinaryIO) -> int:
    """Where it begins in the file; -1 where there is none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _END, 0))
    length = int.from_bytes(file.read(_END)[:4], "little") + _END  # any number, where the file is damaged
    start = max(size - length, 0)
    file.seek(start)
    found = file.read().rfind(_MARK)
    return -1 if found < 0 else start + found + len(_MARK)


def _checksum(file: BinaryIO, place: int) -> bytes:
    """Of all bytes, with zeros at ``place``."""
    digest = xxhash.xxh3_64()
    file.seek(0)
    before = place
    while block := file.read(min(_BLOCK, before)):
        digest.update(block)
        before -= len(block)
    digest.update(_NONE)
    file.seek(place + len(_NONE))
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest().encode()
