"""One shard of a feature store: a Parquet file with the checksum of its content in its metadata.

Features are fixed-size binary columns of little-endian float16: a typed tensor column costs
about ten times as much to write and read. Their shapes stand in the schema's metadata. pandas, Polars and DuckDB open
the files as they are; ``numpy.frombuffer(value, "<f2")`` gives a row's features. Why Arrow does not write them:
`cprfl.data.plain_parquet`.
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

from cprfl.data import plain_parquet
from cprfl.data.images import BadImage
from cprfl.data.storage import Folder

VERSION = 4
ROWS_PER_SHARD = 128
_METADATA = b"cprfl.features"
_TYPES = {"image_id": pa.string(), "view": pa.int8()}
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
    columns = [
        plain_parquet.strings("image_id", features.image_ids),
        plain_parquet.small_integers("view", features.views),
        plain_parquet.fixed_bytes("features", grid),
        plain_parquet.fixed_bytes("global_features", global_features),
    ]
    with folder.create(shard_name(number)) as file:
        plain_parquet.write(file, len(grid), columns, {_METADATA: json.dumps(metadata).encode()})


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
        if not plain_parquet.is_intact(content, parquet):
            raise DamagedShardError("damaged shard (its content has changed)")
        metadata = _metadata(parquet)
        if any(metadata.get(field) != value for field, value in expected.items()) or parquet.metadata.num_rows != rows:
            raise DamagedShardError("damaged shard (it is another one than its name says)")
        small = _read(parquet, "image_id", "view")
        grid, global_features = (
            plain_parquet.fixed_values(content, parquet, column).view("<f2").reshape(rows, *metadata[shape])
            for column, shape in (("features", "grid_shape"), ("global_features", "global_shape"))
        )
        return Features(tuple(small["image_id"].to_pylist()), small["view"].to_numpy(), grid, global_features)


def read_image_ids(folder: Folder, name: str) -> list[str]:
    """The id of each row, without reading its features.

    Raises:
        DamagedShardError: where it cannot be read.
    """
    with _damage_named(), folder.open(name) as file:
        ids: list[str] = _read(pq.ParquetFile(file), "image_id")["image_id"].to_pylist()
        return ids


def shard_numbers(folder: Folder) -> set[int]:
    """Numbers of the shards that are there."""
    return {int(match[1]) for name in folder.files() if (match := _NAME.fullmatch(name))}


def read_footer(folder: Folder, name: str) -> tuple[int, dict[str, Any]]:
    """Rows and our metadata of a shard.

    Raises:
        DamagedShardError: where its footer cannot be read.
    """
    with _damage_named(), folder.open(name) as file:
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


def _read(parquet: pq.ParquetFile, *names: str) -> pa.Table:
    """Small columns, also where the checksum has not been compared."""
    table = parquet.read(list(names), use_threads=False)
    if {field.name: field.type for field in table.schema} != {name: _TYPES[name] for name in names}:
        raise DamagedShardError("damaged shard (its columns have changed)")
    return table


def _metadata(parquet: pq.ParquetFile) -> dict[str, Any]:
    return dict(json.loads((parquet.schema_arrow.metadata or {})[_METADATA]))


@contextmanager
def _damage_named() -> Iterator[None]:
    """Turn what reading a damaged file raises into a `DamagedShardError`; a missing file stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        first_line = str(error).partition("\n")[0]
        raise DamagedShardError(f"damaged shard ({first_line or type(error).__name__})") from None
