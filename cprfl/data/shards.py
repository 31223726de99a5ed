"""One shard of a feature store: a Parquet file with the checksum of its content in its metadata.

Features are fixed-size binary columns of little-endian float16: a typed tensor column costs
about ten times as much to write and read. Their shapes stand in the schema's metadata. pandas, Polars and DuckDB open
the files as they are; ``numpy.frombuffer(value, "<f2")`` gives a row's features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cprfl.data.images import BadImage
from cprfl.data.storage import Folder

VERSION = 3
ROWS_PER_SHARD = 128
_WRITTEN_AT_ONCE = 400_000  # bytes: pages of this size stay in the processor's cache, twice as fast as whole shards
_METADATA = b"cprfl.features"
_COLUMNS = ("image_id", "view", "features", "global_features")
_NAME = re.compile(r"features-(\d{6,})\.parquet")


class DamagedShardError(Exception):
    """A shard is not what was written; the store says which, and what mends it."""


@dataclass(frozen=True)
class Features:
    """Rows of a store; all views of an image follow each other.

    Attributes:
        image_ids: id of each of the n rows.
        views: int8 [n]; 0 is the plain view.
        grid: float16 [n, v, d0], before pooling.
        global_features: float16 [n, d1].
    """

    image_ids: tuple[str, ...]
    views: np.ndarray
    grid: np.ndarray
    global_features: np.ndarray

    def checksum(self) -> str:
        """Of ids, views and features, in 16 hexadecimal digits (XXH3)."""
        digest = xxhash.xxh3_64("\n".join(self.image_ids).encode())
        for array in (self.views, self.grid, self.global_features):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


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
        "checksum": features.checksum(),
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
    table = pa.table(list(columns.values()), schema=pa.schema(fields, {_METADATA: json.dumps(metadata)}))
    rows_at_once = max(1, _WRITTEN_AT_ONCE // max(grid[:1].nbytes, 1))
    with folder.create(shard_name(number)) as sink:
        pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=["image_id", "view"],
                       write_batch_size=rows_at_once)  # fmt: skip


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
    table = _read(folder, name, None)
    try:
        metadata = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    except ValueError:
        metadata = {}
    if any(metadata.get(field) != value for field, value in expected.items()) or table.num_rows != rows:
        raise DamagedShardError("damaged shard (it is another one than its name says)")
    table = table.combine_chunks()
    features = Features(
        tuple(_ids(table)),
        table["view"].to_numpy(),
        _from_binary(table["features"], metadata["grid_shape"]),
        _from_binary(table["global_features"], metadata["global_shape"]),
    )
    if features.checksum() != metadata.get("checksum"):
        raise DamagedShardError("damaged shard (its content has changed)")
    return features


def read_image_ids(folder: Folder, name: str) -> list[str]:
    """The id of each row, without reading its features.

    Raises:
        DamagedShardError: where it cannot be read.
    """
    return _ids(_read(folder, name, ["image_id"]))


def _ids(table: pa.Table) -> list[str]:
    try:
        ids: list[str] = table["image_id"].to_pylist()
    except UnicodeDecodeError as error:
        raise DamagedShardError(f"damaged shard ({error})") from None
    return ids


def _read(folder: Folder, name: str, columns: list[str] | None) -> pa.Table:
    try:
        with folder.open(name) as file:
            table = pq.ParquetFile(file).read(columns, use_threads=False)  # the shards are what is read in parallel
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedShardError(f"damaged shard ({str(error).splitlines()[0]})") from None
    types = {"image_id": pa.string(), "view": pa.int8()}
    if table.column_names != (columns or list(_COLUMNS)) or any(
        table.schema.field(name).type != types[name] for name in table.column_names if name in types
    ):
        raise DamagedShardError("damaged shard (its columns have changed)")
    return table


def shard_numbers(folder: Folder) -> set[int]:
    """Numbers of the shards that are there."""
    return {int(match[1]) for name in folder.files() if (match := _NAME.fullmatch(name))}


def read_footer(folder: Folder, name: str) -> tuple[int, dict[str, Any]]:
    """Rows and our metadata of a shard.

    Raises:
        DamagedShardError: where its footer cannot be read.
    """
    try:
        with folder.open(name) as file:
            parquet = pq.ParquetFile(file)
            return parquet.metadata.num_rows, dict(json.loads((parquet.schema_arrow.metadata or {})[_METADATA]))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DamagedShardError(f"damaged shard ({type(error).__name__} in its footer)") from None


def is_whole(folder: Folder, name: str) -> bool:
    """Whether a file is a shard of this version, as far as its footer tells."""
    if not _NAME.fullmatch(name):
        return False
    try:
        return bool(read_footer(folder, name)[1].get("version") == VERSION)
    except DamagedShardError:
        return False


def _to_binary(array: np.ndarray) -> pa.Array:
    """One fixed-size binary value per row, without a copy."""
    width = int(np.prod(array.shape[1:])) * array.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)])


def _from_binary(column: pa.ChunkedArray, shape: Sequence[int]) -> np.ndarray:
    """The float16 array behind a fixed-size binary column of one chunk, without a copy."""
    if not len(column):
        return np.empty((0, *shape), dtype="<f2")
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = int(np.prod(shape)) * 2
    if array.type != pa.binary(width):
        raise DamagedShardError(f"damaged shard (features of type {array.type}, not float16 of shape {list(shape)})")
    values = np.frombuffer(array.buffers()[1], dtype="<f2")
    start = array.offset * width // 2
    return values[start : start + len(array) * width // 2].reshape(len(array), *shape)
