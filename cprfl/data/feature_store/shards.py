"""One shard of a feature store: a Parquet file that carries a checksum of itself.

Features are fixed-size binary columns of little-endian float16: a typed tensor column costs about ten times as much to
write and read. Their shapes stand in the schema's metadata. pandas, Polars and DuckDB open the files as they are;
``numpy.frombuffer(value, "<f2")`` gives a row's features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.images import BadImage
from cprfl.data.locks import Lock, lock_shared
from cprfl.data.storage import Folder
from cprfl.errors import StorageError

VERSION = 5
ROWS_PER_SHARD = 128
_WRITTEN_AT_ONCE = 400_000  # bytes: pieces of this size stay in the processor's cache
_METADATA, _CHECKSUM = b"cprfl.features", b"cprfl.xxh3"
_NO_CHECKSUM = b"0" * 16  # stands where the checksum goes while the rest of the file is hashed
_NAME = re.compile(r"features-(\d{6,})\.parquet")
LOCK = ".lock"
"""File of a local store, of whose lock whoever fills or reads it has a share."""


class DamagedShardError(Exception):
    """A shard is not what was written; the store says which, and what mends it."""


@dataclass(frozen=True)
class ImageRows:
    """Which rows one image has, in this order.

    Attributes:
        views: the plain view and augmented ones, of which training draws.
        crops: that are scored in the plain view's place; with 1 there are none, and the plain view is scored.
    """

    views: int
    crops: int = 1

    @property
    def total(self) -> int:
        """Rows of one image."""
        return self.scored.stop if self.crops > 1 else self.views

    @property
    def scored(self) -> range:
        """Those whose logits are averaged."""
        first = self.views if self.crops > 1 else 0
        return range(first, first + self.crops)


@dataclass(frozen=True)
class Features:
    """Rows of a store; all views of an image follow each other.

    Attributes:
        image_ids: id of each of the n rows.
        views: int8 [n]; 0 is the plain view (`ImageRows` says what the others are).
        grid: float16 [n, v, d0], before pooling.
        global_features: float16 [n, d1].
    """

    image_ids: tuple[str, ...]
    views: np.ndarray
    grid: np.ndarray
    global_features: np.ndarray


def share(folder: Folder, *, make: bool = False) -> Lock | None:
    """A share of the lock of a store's folder: as long as it lasts nobody prunes the store.

    None on a remote filesystem, on storage without locks, and where this user can write nothing.

    Args:
        folder: of the store.
        make: the folder too.
    """
    return None if is_remote(folder.uri) else lock_shared(local_path(folder.uri) / LOCK, make_folder=make)


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"features-{number:06d}.parquet"


def write_shard(folder: Folder, number: int, features: Features, bad: Sequence[BadImage]) -> None:
    """Write one shard of a store, whole or not at all; ``bad`` are the images of it that have no row."""
    grid, global_features = (
        np.ascontiguousarray(array, dtype="<f2") for array in (features.grid, features.global_features)
    )
    metadata = {
        "version": VERSION,
        "key": folder.uri.rpartition("/")[2],
        "shard": number,
        "dtype": "float16",
        "grid_shape": list(grid.shape[1:]),
        "global_shape": list(global_features.shape[1:]),
        "bad_images": [asdict(item) for item in bad],
    }
    columns = {
        "image_id": pa.array(features.image_ids, pa.string()),
        "view": pa.array(features.views, pa.int8()),
        "features": _to_binary(grid),
        "global_features": _to_binary(global_features),
    }
    # A column that may hold nulls has its values copied once more.
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    table = pa.table(list(columns.values()), schema=pa.schema(fields))
    content = pa.BufferOutputStream()
    with pq.ParquetWriter(
        content, table.schema, compression="none", use_dictionary=False, write_statistics=False, store_schema=False,
        write_batch_size=max(1, _WRITTEN_AT_ONCE // max(grid[:1].nbytes, 1)),
    ) as writer:  # fmt: skip
        writer.write_table(table)
        writer.add_key_value_metadata({_METADATA: json.dumps(metadata).encode(), _CHECKSUM: _NO_CHECKSUM})
    written = memoryview(content.getvalue())
    start = _footer_start(written)
    before, _, after = bytes(written[start:]).rpartition(_NO_CHECKSUM)
    with folder.create(shard_name(number)) as file:
        file.write(written[:start])
        file.write(before + xxhash.xxh3_64(written).hexdigest().encode() + after)


def read_shard(folder: Folder, name: str, rows: int, expected: dict[str, Any]) -> Features:
    """All rows of a shard, compared with its checksum.

    Args:
        folder: of the store.
        name: of the shard's file.
        rows: it must have.
        expected: its metadata must say.

    Raises:
        DamagedShardError: where anything differs.
        FileNotFoundError: where there is no such file.
    """
    content = folder.read_array(name)
    with _damage_named():
        parquet = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
        if not _is_intact(content.data, parquet):
            raise DamagedShardError("damaged shard (its content has changed)")
        metadata = _metadata(parquet)
        if any(metadata.get(field) != value for field, value in expected.items()) or parquet.metadata.num_rows != rows:
            raise DamagedShardError("damaged shard (it is another one than its name says)")
        table = parquet.read(use_threads=False)  # the shards are what is read in parallel
        return Features(
            tuple(table["image_id"].to_pylist()),
            table["view"].to_numpy(),
            _from_binary(table["features"], metadata["grid_shape"]),
            _from_binary(table["global_features"], metadata["global_shape"]),
        )


def read_image_ids(folder: Folder, name: str) -> list[str]:
    """The id of each row, without reading its features.

    Raises:
        DamagedShardError: where it cannot be read.
    """
    with folder.open(name) as file, _damage_named():
        column = pq.ParquetFile(file).read(["image_id"], use_threads=False)["image_id"]
        if column.type != pa.string():
            raise DamagedShardError("damaged shard (its columns have changed)")
        ids: list[str] = column.to_pylist()
        return ids


def shard_numbers(folder: Folder) -> set[int]:
    """Numbers of the shards that are there."""
    return {int(match[1]) for name in folder.files() if (match := _NAME.fullmatch(name))}


def read_footer(folder: Folder, name: str) -> tuple[int, dict[str, Any]]:
    """Rows and our metadata of a shard.

    Raises:
        DamagedShardError: where its footer cannot be read.
    """
    with folder.open(name) as file, _damage_named():
        parquet = pq.ParquetFile(file)
        return parquet.metadata.num_rows, _metadata(parquet)


def is_whole(folder: Folder, name: str) -> bool:
    """Whether a file is a shard of this version, as far as its footer tells."""
    if not _NAME.fullmatch(name):
        return False
    try:
        return bool(read_footer(folder, name)[1].get("version") == VERSION)
    except DamagedShardError:
        return False


def _footer_start(content: memoryview) -> int:
    """Where a Parquet file's footer begins: its length stands before the last four bytes."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def _is_intact(content: memoryview, parquet: pq.ParquetFile) -> bool:
    """Whether no bit of the file has changed: its hash, with zeros for the checksum, is the checksum."""
    checksum = (parquet.metadata.metadata or {}).get(_CHECKSUM, _NO_CHECKSUM)
    start = _footer_start(content)
    before, _, after = bytes(content[start:]).rpartition(checksum)
    digest = xxhash.xxh3_64(content[:start])
    digest.update(before + _NO_CHECKSUM + after)
    return bool(digest.hexdigest().encode() == checksum)


def _metadata(parquet: pq.ParquetFile) -> dict[str, Any]:
    return dict(json.loads((parquet.metadata.metadata or {})[_METADATA]))


def _to_binary(array: np.ndarray) -> pa.Array:
    """One fixed-size binary value per row, without a copy."""
    width = int(np.prod(array.shape[1:])) * array.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)])


def _from_binary(column: pa.ChunkedArray, shape: Sequence[int]) -> np.ndarray:
    """The float16 array behind a fixed-size binary column, without a copy where it is one chunk."""
    array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
    values = np.frombuffer(array.buffers()[1], dtype="<f2") if len(array) else np.empty(0, "<f2")
    return values[array.offset * int(np.prod(shape)) :][: len(array) * int(np.prod(shape))].reshape(-1, *shape)


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn what reading a damaged file raises into a `DamagedShardError`; what the storage is to blame for stays."""
    try:
        yield
    except (FileNotFoundError, StorageError):
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if getattr(error, "errno", None):  # the disk's: what Arrow raises for damage has no number
            raise
        first_line = str(error).partition("\n")[0]
        raise DamagedShardError(f"damaged shard ({first_line or type(error).__name__})") from None
