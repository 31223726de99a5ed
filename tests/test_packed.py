"""Images inside of tar and Parquet files: found by their URIs, wherever the file is, and never a neighbour's bytes."""

from __future__ import annotations

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.data import packed
from cprfl.data.packed import container, is_packed, parquet_uri, read_packed, tar_uri
from cprfl.data.storage import Folder, join
from cprfl.errors import UnreadableImageError

PATHS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1)


@given(path=PATHS, name=NAMES, offset=st.integers(0, 2**40), size=st.integers(0, 2**32), folder=PATHS)
def test_a_uri_keeps_any_path_and_ends_in_the_images_name(
    path: str, name: str, offset: int, size: int, folder: str
) -> None:
    for written in (path, f"/data/{path}", f"s3://bucket/{path}", f"/a b/#1/50%/{path}"):
        uris = [tar_uri(written, offset, size, f"{folder}/{name}"), parquet_uri(written, offset, f"{path}.bytes", name)]
        for uri in uris:
            assert is_packed(uri)
            assert container(uri) == written
            assert uri.rpartition("/")[2] == name
            assert join("some/folder", uri) == uri


@pytest.mark.parametrize("uri", ["a.jpg", "/data/a.tar/1+2/a.jpg", "s3://bucket/a.parquet", "synthetic:1"])
def test_other_files_are_not_packed(uri: str) -> None:
    assert not is_packed(uri)


def contents(count: int, size: int = 100) -> list[bytes]:
    return [bytes([number % 256]) * (size + number) for number in range(count)]


def tar_of(images: list[bytes]) -> tuple[bytes, list[tuple[int, int]]]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, image in enumerate(images):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        return buffer.getvalue(), [(member.offset_data, member.size) for member in tar]


def table_of(images: list[bytes | None]) -> pa.Table:
    cells = [{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(images)]
    return pa.table({"image": cells, "plain": pa.array(images, pa.large_binary()), "label": list(range(len(images)))})


def parquet_of(table: pa.Table, rows_a_group: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=rows_a_group)
    return bytes(sink.getvalue())


def test_members_and_cells_are_read_from_any_storage(root: str) -> None:
    images = contents(23)
    archive, places = tar_of(images)
    Folder(root).write("a b.tar", archive)
    Folder(root).write("t.parquet", parquet_of(table_of(list(images)), 5))
    for number, (offset, size) in enumerate(places):
        assert read_packed(tar_uri(f"{root}/a b.tar", offset, size, f"{number}.jpg")) == images[number]
    for number in (*range(23), 3, 22, 0):
        for column in ("image.bytes", "plain"):
            assert read_packed(parquet_uri(f"{root}/t.parquet", number, column, "x.jpg")) == images[number]
    for name in ("none.tar", "none.parquet"):
        uri = tar_uri(f"{root}/{name}", 0, 1, "a") if name == "none.tar" else parquet_uri(f"{root}/{name}", 0, "a", "a")
        with pytest.raises(FileNotFoundError):
            read_packed(uri)


def test_threads_read_each_row_group_once_and_keep_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = contents(60, size=1000)
    (tmp_path / "t.parquet").write_bytes(parquet_of(table_of(list(images)), 10))
    uris = [parquet_uri(f"{tmp_path}/t.parquet", number, "image.bytes", "x") for number in range(60)]
    read: list[int] = []
    whole = packed._read_column

    def noted(*key: Any) -> Any:
        read.append(key[2])
        return whole(*key)

    monkeypatch.setattr(packed, "_read_column", noted)
    monkeypatch.setattr(packed, "_row_groups", packed._RowGroups(25_000))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_packed, uris[:20])) == images[:20]
    assert sorted(read) == [0, 1]
    for uri, image in zip(uris, images, strict=True):
        assert read_packed(uri) == image
    kept = [entry.column.nbytes for entry in packed._row_groups._entries.values()]
    assert len(kept) == 2
    assert sum(kept) <= 25_000


@pytest.mark.parametrize("where", [3, 400, -3])
def test_a_damaged_table_is_named(tmp_path: Path, where: int) -> None:
    noise = np.random.default_rng(0).bytes(3000)
    content = bytearray(parquet_of(table_of([noise, noise[::-1]]), 5))
    path = tmp_path / "t.parquet"
    path.write_bytes(bytes(content[: len(content) // 2]))
    with pytest.raises(UnreadableImageError, match="t.parquet: not readable as a Parquet file"):
        read_packed(parquet_uri(str(path), 0, "image.bytes", "a.jpg"))
    content[where] ^= 255
    path.write_bytes(bytes(content))
    try:
        assert len(read_packed(parquet_uri(str(path), 0, "image.bytes", "a.jpg"))) == 3000
    except UnreadableImageError as error:
        assert "t.parquet" in str(error)


def test_what_is_not_there_any_more_is_named(tmp_path: Path) -> None:
    archive, places = tar_of(contents(3))
    (tmp_path / "a.tar").write_bytes(archive[: places[2][0] + 10])
    with pytest.raises(UnreadableImageError, match=r"a.tar ends before byte \d+; it was cut off, or changed"):
        read_packed(tar_uri(f"{tmp_path}/a.tar", *places[2], "2.jpg"))
    (tmp_path / "t.parquet").write_bytes(parquet_of(table_of([b"one", None]), 5))
    for row, column, message in (
        (1, "image.bytes", "row 1: no bytes in image.bytes"),
        (2, "image.bytes", "has no row 2"),
        (0, "picture", "has no column picture"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            read_packed(parquet_uri(f"{tmp_path}/t.parquet", row, column, "a.jpg"))


def test_a_table_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    uri = parquet_uri(f"{tmp_path}/t.parquet", 1, "image.bytes", "a.jpg")
    for image in (b"before", b"afterwards"):
        (tmp_path / "t.parquet").write_bytes(parquet_of(table_of([b"x", image]), 5))
        assert read_packed(uri) == image
