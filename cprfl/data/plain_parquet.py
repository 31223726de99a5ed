"""Parquet files written from memory as it is: columns without nulls, one page each, neither encoded nor compressed.

A page of that kind is the values' own bytes, so an array of features goes from memory to the kernel and back without
being copied on the way. Any reader of Parquet takes such a file; Arrow's own writer copies every value twice, its
reader once. Format: https://parquet.apache.org/docs/file-format; page headers and footer are Thrift structs in the
compact protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

_MAGIC = b"PAR1"
_ALIGNMENT = 64  # bytes: a column's values start at a multiple of it
_CHECKSUM = b"xxh3"  # the last key of the metadata: the checksum of the whole file with these digits in its place
_NO_CHECKSUM = b"0" * 16
_INT32, _BYTE_ARRAY, _FIXED_LEN_BYTE_ARRAY = 1, 6, 7  # physical types
_UTF8, _INT_8 = 0, 15  # what they stand for
_REQUIRED, _PLAIN, _RLE, _UNCOMPRESSED, _DATA_PAGE = 0, 0, 3, 0, 0


@dataclass(frozen=True)
class Column:
    """A column as Parquet stores it.

    Attributes:
        name: of the column.
        values: all of its bytes, one value after the other.
        physical_type: number of the type.
        converted_type: number of what it stands for; None where it is just bytes.
        width: bytes of a value of fixed length.
    """

    name: str
    values: memoryview
    physical_type: int
    converted_type: int | None = None
    width: int | None = None


def strings(name: str, values: Sequence[str]) -> Column:
    """A column of strings."""
    encoded = [value.encode() for value in values]
    values_with_lengths = b"".join(len(value).to_bytes(4, "little") + value for value in encoded)
    return Column(name, memoryview(values_with_lengths), _BYTE_ARRAY, _UTF8)


def small_integers(name: str, values: np.ndarray) -> Column:
    """A column of int8, from int8 [n]."""
    return Column(name, values.astype("<i4").view(np.uint8).data, _INT32, _INT_8)


def fixed_bytes(name: str, values: np.ndarray) -> Column:
    """A column whose value of row i is the bytes of ``values[i]``, contiguous [n, ...]."""
    width = values.itemsize * int(np.prod(values.shape[1:]))
    return Column(name, values.reshape(-1).view(np.uint8).data, _FIXED_LEN_BYTE_ARRAY, width=width)


def write(file: BinaryIO, rows: int, columns: Sequence[Column], metadata: Mapping[bytes, bytes]) -> None:
    """Write a whole file: one row group, a checksum, and ``metadata`` where Arrow looks for the schema's."""
    digest, position, chunks = xxhash.xxh3_64(), 0, []

    def append(content: bytes | memoryview) -> None:
        nonlocal position
        digest.update(content)
        file.write(content)
        position += len(content)

    append(_MAGIC)
    for column in columns:
        header = _page_header(rows, len(column.values))
        append(bytes(-(position + len(header)) % _ALIGNMENT))
        chunks.append(_chunk(column, rows, position, len(header) + len(column.values)))
        append(header)
        append(column.values)
    footer = _footer(rows, columns, chunks, {**metadata, _CHECKSUM: _NO_CHECKSUM})
    footer += len(footer).to_bytes(4, "little") + _MAGIC
    digest.update(footer)
    before, _, after = footer.rpartition(_NO_CHECKSUM)
    file.write(before + digest.hexdigest().encode() + after)


def is_intact(content: np.ndarray, parquet: pq.ParquetFile) -> bool:
    """Whether the file, uint8 [size], has the checksum that its footer says: no bit of it has changed."""
    expected = (parquet.schema_arrow.metadata or {}).get(_CHECKSUM, _NO_CHECKSUM)
    start = len(content) - 8 - int.from_bytes(content[-8:-4].tobytes(), "little")
    before, _, after = content[start:].tobytes().rpartition(expected)
    digest = xxhash.xxh3_64(content[:start].data)
    digest.update(before + _NO_CHECKSUM + after)
    return bool(digest.hexdigest().encode() == expected)


def fixed_values(content: np.ndarray, parquet: pq.ParquetFile, name: str) -> np.ndarray:
    """Values of a column of `fixed_bytes` where they lie in ``content``, the whole file: uint8 [n, width].

    Raises:
        KeyError: for an unknown column.
        ValueError: where the values are not there.
    """
    rows, kind = parquet.metadata.num_rows, parquet.schema_arrow.field(name).type
    if not pa.types.is_fixed_size_binary(kind) or parquet.metadata.num_row_groups != 1:
        raise ValueError(f"no values of fixed length in column {name}")
    chunk = parquet.metadata.row_group(0).column(parquet.schema_arrow.get_field_index(name))
    stop = chunk.data_page_offset + chunk.total_compressed_size
    start = stop - rows * kind.byte_width
    if not chunk.data_page_offset < start <= stop <= len(content):
        raise ValueError(f"the values of {name} are not where the footer says")
    return content[start:stop].reshape(rows, kind.byte_width)


class _Value(NamedTuple):
    """A Thrift value: the number of its type, and its bytes."""

    kind: int
    content: bytes


def _varint(number: int) -> bytes:
    content = bytearray()
    while number > 0x7F:
        content.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*content, number])


def _int(number: int, kind: int = 5) -> _Value:
    return _Value(kind, _varint(2 * number))  # zigzag: the last bit is the sign, and nothing here is negative


def _long(number: int) -> _Value:
    return _int(number, 6)


def _text(content: bytes) -> _Value:
    return _Value(8, _varint(len(content)) + content)


def _list(items: Sequence[_Value]) -> _Value:
    assert 0 < len(items) < 15, "longer lists have another header"
    return _Value(9, bytes([len(items) << 4 | items[0].kind]) + b"".join(item.content for item in items))


def _struct(fields: Mapping[int, _Value]) -> _Value:
    """Fields by their number, in ascending order."""
    content, last = b"", 0
    for number, value in fields.items():
        content += bytes([number - last << 4 | value.kind]) + value.content
        last = number
    return _Value(12, content + b"\0")


def _page_header(rows: int, size: int) -> bytes:
    data_page = _struct({1: _int(rows), 2: _int(_PLAIN), 3: _int(_RLE), 4: _int(_RLE)})
    return _struct({1: _int(_DATA_PAGE), 2: _int(size), 3: _int(size), 5: data_page}).content


def _chunk(column: Column, rows: int, offset: int, size: int) -> _Value:
    described = {
        1: _int(column.physical_type),
        2: _list([_int(_PLAIN)]),
        3: _list([_text(column.name.encode())]),
        4: _int(_UNCOMPRESSED),
        5: _long(rows),
        6: _long(size),
        7: _long(size),
        9: _long(offset),
    }
    return _struct({2: _long(0), 3: _struct(described)})


def _footer(rows: int, columns: Sequence[Column], chunks: Sequence[_Value], metadata: Mapping[bytes, bytes]) -> bytes:
    root = _struct({4: _text(b"schema"), 5: _int(len(columns))})
    size = sum(len(column.values) for column in columns)
    fields = {
        1: _int(2),
        2: _list([root, *map(_schema_element, columns)]),
        3: _long(rows),
        4: _list([_struct({1: _list(chunks), 2: _long(size), 3: _long(rows)})]),
        5: _list([_struct({1: _text(key), 2: _text(value)}) for key, value in metadata.items()]),
        6: _text(b"cprfl"),
    }
    return _struct(fields).content


def _schema_element(column: Column) -> _Value:
    fields = {1: _int(column.physical_type)}
    if column.width is not None:
        fields[2] = _int(column.width)
    fields |= {3: _int(_REQUIRED), 4: _text(column.name.encode())}
    if column.converted_type is not None:
        fields[6] = _int(column.converted_type)
    return _struct(fields)
