"""Tables in a file of Parquet that says whether it is still what was written.

The checksum is of all bytes of the file, with zeros in its own place, and stands last in the file's metadata. It is
looked for as bytes and compared before anything is decoded: no decoder sees a damaged file.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cprfl.data.files import CHECKSUM, reading, write_aside
from cprfl.errors import UserError

_MARK, _NONE = b"xxh3_64:", b"0" * 16


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table, whole or not at all.

    Raises:
        OSError: where the file cannot be written.
    """
    with write_aside(path) as aside:
        with pq.ParquetWriter(aside, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata({CHECKSUM: _MARK + _NONE})
        content = aside.read_bytes()
        start = content.rfind(_MARK) + len(_MARK)
        with aside.open("r+b") as file:
            file.seek(start)
            file.write(_checksum(content))


def read_table(path: Path, error: type[UserError], mend: str, columns: list[str] | None = None) -> pa.Table:
    """What `write_table` wrote.

    Args:
        path: of the file.
        error: to raise where it is not what was written.
        mend: what the user can do then.
        columns: to read; all unless given.

    Raises:
        UserError: ``error``, where the file is missing, cannot be read, is damaged or was written by somebody else.
    """
    with reading(path, error, mend):
        content = bytearray(path.stat().st_size)
        with path.open("rb") as file:
            file.readinto(content)
    start = content.rfind(_MARK) + len(_MARK)
    said = bytes(content[start : start + len(_NONE)])
    content[start : start + len(_NONE)] = _NONE
    if start < len(_MARK) or said != _checksum(content):
        raise error(f"{path}: damaged (its content has changed), or of another version; {mend}")
    content[start : start + len(_NONE)] = said
    return pq.read_table(pa.BufferReader(pa.py_buffer(content)), columns=columns)


def _checksum(content: bytes | bytearray) -> bytes:
    return xxhash.xxh3_64_hexdigest(content).encode()
