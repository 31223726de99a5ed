"""Parquet pages written without Arrow: Arrow reads what was meant, and the arrays lie in the file as they are."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprfl.data import plain_parquet

ids = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)  # lengths of more than one byte too


def written(names: list[str], width: int) -> tuple[bytes, np.ndarray]:
    values = np.arange(len(names) * width, dtype="<f2").reshape(len(names), width)
    columns = [
        plain_parquet.strings("image_id", names),
        plain_parquet.small_integers("view", np.arange(len(names), dtype=np.int8)),
        plain_parquet.fixed_bytes("features", values),
    ]
    file = io.BytesIO()
    plain_parquet.write(file, len(names), columns, {b"about": "größe".encode()})
    return file.getvalue(), values


@settings(max_examples=50, deadline=None)
@given(names=st.lists(ids, max_size=20), width=st.integers(1, 5_000))
def test_arrow_reads_what_was_written(names: list[str], width: int) -> None:
    content, values = written(names, width)
    table = pq.read_table(pa.BufferReader(content))
    assert table.schema.metadata[b"about"].decode() == "größe"
    assert [str(field.type) for field in table.schema] == ["string", "int8", f"fixed_size_binary[{2 * width}]"]
    assert not any(field.nullable for field in table.schema)
    assert table["image_id"].to_pylist() == names
    assert table["view"].to_pylist() == list(range(len(names)))
    assert table["features"].to_pylist() == [row.tobytes() for row in values]


@settings(max_examples=50, deadline=None)
@given(names=st.lists(ids, max_size=20), width=st.integers(1, 5_000), where=st.floats(0, 1, exclude_max=True))
def test_values_lie_in_the_file_and_every_byte_of_it_is_guarded(names: list[str], width: int, where: float) -> None:
    content = np.frombuffer(bytearray(written(names, width)[0]), np.uint8)
    parquet = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
    found = plain_parquet.fixed_values(content, parquet, "features")
    assert np.array_equal(found.view("<f2"), written(names, width)[1])
    assert not len(names) or np.shares_memory(found, content)
    assert (found.__array_interface__["data"][0] - content.__array_interface__["data"][0]) % 64 == 0
    assert plain_parquet.is_intact(content, parquet)
    content[int(where * (len(content) - 8))] ^= 1  # the footer's length, which follows, is where Arrow begins
    assert not plain_parquet.is_intact(content, parquet)


def test_files_of_another_layout_are_refused() -> None:
    content, _ = written(["a", "b"], 3)
    table, sink = pq.read_table(pa.BufferReader(content)), pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none")  # with a dictionary: its pages are no plain values
    other = np.frombuffer(sink.getvalue(), np.uint8)
    parquet = pq.ParquetFile(pa.BufferReader(pa.py_buffer(other)))
    assert not plain_parquet.is_intact(other, parquet)
    with pytest.raises(ValueError, match="no values of fixed length in column image_id"):
        plain_parquet.fixed_values(other, parquet, "image_id")
    with pytest.raises(KeyError):
        plain_parquet.fixed_values(other, parquet, "nothing")
