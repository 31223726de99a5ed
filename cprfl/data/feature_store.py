"""The feature store: grid and global features of a list of images, in Parquet shards.

One folder per key. The key is the fingerprint of all that determines the bytes, so that the same request finds the
folder again and a changed one never reads a stale one. A shard appears whole or not at all; ``store.json``, with a
digest of every shard, appears when all are there. Labels are not in it: they are joined by ``image_id``.

Features are fixed-size binary columns of little-endian float16: a typed tensor column costs about ten times as much to
write and read. The shapes stand in each shard's schema metadata and in ``store.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cprfl.data.files import file_digest, fingerprint, write_aside, write_json
from cprfl.data.images import BadImage
from cprfl.errors import FeatureStoreError

VERSION = 1
ROWS_PER_SHARD = 256
_DESCRIPTION = "store.json"
_METADATA = b"cprfl.features"


@dataclass(frozen=True)
class StoreKey:
    """All that determines the bytes of a store.

    ``images`` holds (id, URI, size and time or ETag) of each image, in order; ``encoder`` is its fingerprint, which
    covers weights and transform.
    """

    images: tuple[tuple[str, str, tuple[int, ...]], ...]
    encoder: str
    views: int

    @property
    def fingerprint(self) -> str:
        """The name of the store's folder."""
        return fingerprint([VERSION, self.images, self.encoder, self.views])

    @property
    def image_list_digest(self) -> str:
        """Fingerprint of the image list alone."""
        return fingerprint(self.images)


@dataclass(frozen=True)
class Features:
    """Rows of a store.

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


class FeatureStoreWriter:
    """Fills the folder of one key, shard by shard; shards that are already there are kept.

    Args:
        root: the folder that holds one folder per key.
        key: what is to be stored.
        encoder: a description of the encoder for whoever reads ``store.json``.
    """

    def __init__(self, root: Path, key: StoreKey, encoder: dict[str, Any]) -> None:
        self.path = root / key.fingerprint
        self.key = key
        self.encoder = encoder

    @property
    def finished(self) -> bool:
        """Whether the store is complete."""
        return (self.path / _DESCRIPTION).exists()

    def shards(self) -> list[range]:
        """The images of each shard, as rows of the key's image list."""
        count = len(self.key.images)
        return [range(start, min(start + ROWS_PER_SHARD, count)) for start in range(0, count, ROWS_PER_SHARD)]

    def missing(self) -> list[int]:
        """Numbers of the shards that are yet to be written."""
        return [number for number in range(len(self.shards())) if not self._file(number).exists()]

    def write(self, number: int, features: Features, bad: Sequence[BadImage]) -> None:
        """Write one shard, whole or not at all; ``bad`` are the images of it that have no row."""
        grid, global_features = (
            np.ascontiguousarray(array, dtype="<f2") for array in (features.grid, features.global_features)
        )
        metadata = {
            "version": VERSION,
            "dtype": "float16",
            "grid_shape": list(grid.shape[1:]),
            "global_shape": list(global_features.shape[1:]),
            "key": self.key.fingerprint,
            "bad_images": [asdict(item) for item in bad],
        }
        table = pa.table(
            {
                "image_id": pa.array(features.image_ids, pa.string()),
                "view": pa.array(features.views, pa.int8()),
                "features": _to_binary(grid),
                "global_features": _to_binary(global_features),
            }
        ).replace_schema_metadata({_METADATA: json.dumps(metadata)})
        with write_aside(self._file(number)) as aside:
            pq.write_table(table, aside, compression="none", use_dictionary=False, write_page_checksum=True,
                           write_statistics=["image_id", "view"])  # fmt: skip

    def finish(self) -> FeatureStore:
        """Describe the finished store, with a digest of every shard, and open it."""
        shards, bad = [], []
        metadata: dict[str, Any] = {}
        for number in range(len(self.shards())):
            file = self._file(number)
            schema = pq.read_schema(file)
            metadata = json.loads(schema.metadata[_METADATA])
            bad += metadata["bad_images"]
            rows = pq.read_metadata(file).num_rows
            shards.append({"file": file.name, "rows": rows, "sha256": file_digest(file)})
        description = {
            "version": VERSION,
            "key": self.key.fingerprint,
            "image_list": self.key.image_list_digest,
            "encoder_fingerprint": self.key.encoder,
            "encoder": self.encoder,
            "views": self.key.views,
            "dtype": metadata["dtype"],
            "grid_shape": metadata["grid_shape"],
            "global_shape": metadata["global_shape"],
            "bad_images": bad,
            "shards": shards,
        }
        write_json(self.path / _DESCRIPTION, description)
        return FeatureStore.open(str(self.path))

    def _file(self, number: int) -> Path:
        return self.path / f"features-{number:05d}.parquet"


class FeatureStore:
    """A finished store, opened for reading.

    Attributes:
        path: its folder.
        description: what ``store.json`` says.
    """

    def __init__(self, path: Path, description: dict[str, Any]) -> None:
        self.path = path
        self.description = description

    @classmethod
    def open(cls, uri: str) -> FeatureStore:
        """Open a finished store.

        Raises:
            FeatureStoreError: where there is none, it is unfinished, of another version, or a shard is missing.
        """
        path = Path(uri.removeprefix("file://"))
        file = path / _DESCRIPTION
        if not file.exists():
            raise FeatureStoreError(f"{path}: no finished feature store here; `cprfl preprocess CONFIG` writes it")
        try:
            description = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise FeatureStoreError(
                f"{file}: damaged ({error.msg}); delete the folder, then preprocess again"
            ) from None
        if description.get("version") != VERSION:
            raise FeatureStoreError(
                f"{path}: format version {description.get('version')}, this program reads {VERSION}; "
                "delete the folder, then preprocess again"
            )
        for shard in description["shards"]:
            if not (path / shard["file"]).exists():
                raise FeatureStoreError(
                    f"{path / shard['file']}: shard missing; delete the folder, then preprocess again"
                )
        return cls(path, description)

    def __len__(self) -> int:
        return sum(shard["rows"] for shard in self.description["shards"])

    @property
    def bad_images(self) -> list[BadImage]:
        """Images of the key's list that have no features."""
        return [BadImage(**item) for item in self.description["bad_images"]]

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(v, d0): grid cells and channels."""
        cells, channels = self.description["grid_shape"]
        return cells, channels

    def verify(self) -> None:
        """Compare every shard's bytes with the digest taken when the store was finished.

        Raises:
            FeatureStoreError: naming the first shard that differs.
        """
        for shard in self.description["shards"]:
            if file_digest(self.path / shard["file"]) != shard["sha256"]:
                raise self._damaged(shard["file"], "its bytes have changed")

    def shards(self) -> Iterator[Features]:
        """Each shard in turn; every page's checksum is verified."""
        for shard in self.description["shards"]:
            try:
                table = pq.read_table(self.path / shard["file"], page_checksum_verification=True, memory_map=True)
            except (OSError, pa.ArrowException) as error:
                raise self._damaged(shard["file"], str(error)) from None
            metadata = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
            if metadata.get("key") != self.description["key"] or table.num_rows != shard["rows"]:
                raise self._damaged(shard["file"], "it belongs to another store")
            table = table.combine_chunks()
            yield Features(
                tuple(table["image_id"].to_pylist()),
                table["view"].to_numpy(),
                _from_binary(table["features"], metadata["grid_shape"]),
                _from_binary(table["global_features"], metadata["global_shape"]),
            )

    def read(self) -> Features:
        """All rows, in memory."""
        shards = list(self.shards())
        return Features(
            tuple(image_id for shard in shards for image_id in shard.image_ids),
            np.concatenate([shard.views for shard in shards]),
            np.concatenate([shard.grid for shard in shards]),
            np.concatenate([shard.global_features for shard in shards]),
        )

    def _damaged(self, file: str, why: str) -> FeatureStoreError:
        return FeatureStoreError(
            f"{self.path / file}: damaged shard ({why}); delete this file and {_DESCRIPTION}, then preprocess again"
        )


def _to_binary(array: np.ndarray) -> pa.Array:
    """One fixed-size binary value per row, without a copy."""
    width = array[0].nbytes if len(array) else int(np.prod(array.shape[1:])) * array.itemsize
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(array)])


def _from_binary(column: pa.ChunkedArray, shape: Sequence[int]) -> np.ndarray:
    """The float16 array behind a fixed-size binary column, without a copy where it is one chunk."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = array.type.byte_width
    values = np.frombuffer(array.buffers()[1], dtype="<f2")
    start = array.offset * width // 2
    return values[start : start + len(array) * width // 2].reshape(len(array), *shape)
