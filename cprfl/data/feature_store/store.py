"""The feature store: grid and global features of a list of images, in Parquet shards, in a local folder or on S3.

One folder per key. The key is the fingerprint of all that determines the bytes, so that the same request finds the
folder again and a changed one never reads a stale one. A shard appears whole or not at all and carries a
checksum of its content; ``store.json`` appears when all shards are there. Two processes that fill one store make the
same shards, so neither can spoil the other's. Labels are not in it: they are joined by ``image_id``.

What a shard looks like is in `shards`, how a store is filled in `filling`, how batches are
drawn in `batches`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import numpy as np

from cprfl.data.feature_store.batches import Batch, Views, read_in_batches
from cprfl.data.feature_store.shards import (
    LOCK,
    VERSION,
    DamagedShardError,
    Features,
    ImageRows,
    read_image_ids,
    read_shard,
    share,
)  # fmt: skip
from cprfl.data.files import fingerprint
from cprfl.data.filesystems import is_remote
from cprfl.data.images import BadImage
from cprfl.data.locks import Lock
from cprfl.data.storage import Folder
from cprfl.errors import FeatureStoreError

DESCRIPTION = "store.json"
READERS = 16  # threads, where reading is waiting: small pieces of many shards, or shards on S3
_LOCAL_READERS = 3  # where it is copying


class FeatureStore:
    """A finished store, or some of its images, opened for reading.

    Attributes:
        folder: where it is.
        description: what ``store.json`` says.
        images: of each shard, the images that this object reads, as numbers within the shard; one that stands there
            several times is read as often.
        lock: a share of a local store's lock: nobody prunes it while an object reads it.
    """

    def __init__(
        self,
        folder: Folder,
        description: dict[str, Any],
        images: list[np.ndarray],
        kept: dict[int, Features] | None,
        lock: Lock | None = None,
    ) -> None:
        self.folder, self.description, self.images, self.lock = folder, description, images, lock
        self._kept = kept  # shards in memory; none where they are not to be kept

    @classmethod
    def open(cls, uri: str) -> FeatureStore:
        """Open a finished store by its path or URI.

        Raises:
            FeatureStoreError: where there is none, it is unfinished, of another version, or a shard is missing.
            StorageError: where the storage cannot be reached.
        """
        folder = Folder(uri.removeprefix("file://").rstrip("/"))
        lock = share(folder) if folder.exists(DESCRIPTION) else None
        with ExitStack() as failing:
            if lock is not None:  # at once: an exception that is kept keeps it too
                failing.callback(lock.release)
            description = _read_description(folder)
            failing.pop_all()
        total = _rows_per_image(description).total
        images = [np.arange(shard["rows"] // total) for shard in description["shards"]]
        return cls(folder, description, images, None, lock)

    def __len__(self) -> int:
        """Rows: those of each image times the images."""
        return self.num_images * self.rows_per_image.total

    @property
    def num_images(self) -> int:
        """Images that this object reads."""
        return sum(map(len, self.images))

    @property
    def views(self) -> int:
        """Views of each image that training draws of."""
        return self.rows_per_image.views

    @property
    def rows_per_image(self) -> ImageRows:
        """The rows of each image: views, and crops where those are scored."""
        return _rows_per_image(self.description)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(v, d0): grid cells and channels."""
        cells, channels = self.description["grid_shape"]
        return cells, channels

    @property
    def global_dim(self) -> int:
        """Channels of the global feature."""
        return int(self.description["global_shape"][0])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's features."""
        shapes = (self.description["grid_shape"], self.description["global_shape"])
        return sum(2 * int(np.prod(shape)) for shape in shapes)

    @property
    def bad_images(self) -> list[BadImage]:
        """Images of the key's list that have no features."""
        return [BadImage(**item) for item in self.description["bad_images"]]

    def subset(self, image_ids: Collection[str], memory_bytes: int = 0) -> FeatureStore:
        """The same store, read at these images only, in the store's order.

        Args:
            image_ids: ids; those the store does not have are an error.
            memory_bytes: shards are kept in memory once read if all that hold these images fit into this.

        Raises:
            FeatureStoreError: naming an image that has no features.
        """
        wanted, per_shard = set(image_ids), self._all_ids()
        images = [
            np.array([number for number in chosen if ids[number] in wanted], dtype=np.int64)
            for ids, chosen in zip(per_shard, self.images, strict=True)
        ]
        if sum(map(len, images)) < len(wanted):
            absent = wanted - {image_id for ids in per_shard for image_id in ids}
            raise FeatureStoreError(
                f"{self.folder.uri}: no features of image {min(absent)!r} and {len(absent) - 1} others; "
                "`cprfl preprocess CONFIG` makes them"
            )
        rows = sum(s["rows"] for s, chosen in zip(self.description["shards"], images, strict=True) if len(chosen))
        kept: dict[int, Features] | None = {} if rows * self.row_bytes <= memory_bytes else None
        return FeatureStore(self.folder, self.description, images, kept, self.lock)

    def repeated(self, image_ids: Sequence[str]) -> FeatureStore:
        """The same store, read at these images, each as often as it is named; it keeps the same shards in memory."""
        images: list[list[int]] = [[] for _ in self.images]
        for shard, number in map(self._places.__getitem__, image_ids):
            images[shard].append(number)
        chosen = [np.sort(np.array(numbers, dtype=np.int64)) for numbers in images]
        return FeatureStore(self.folder, self.description, chosen, self._kept, self.lock)

    def iter_batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        views: Views = "all",
        buffer_bytes: int = 128 * 2**20,
    ) -> Iterator[Batch]:
        """Rows in batches of tensors; without a seed in the store's order and without a copy where that can be.

        Args:
            batch_size: rows per batch; the last one may be smaller.
            shuffle_seed: order shards at random, and rows within as many shards as fit into ``buffer_bytes``. The
                same seed gives the same batches, whether shards are kept in memory or not.
            rank: each of ``world_size`` readers gets its own part and reads no shard but those of its part. With a
                seed all parts are equally long, for which some rows come twice.
            world_size: number of readers.
            views: ``all`` rows, the ``plain`` view of each image, one view at ``random``, or the ``scored`` rows: the
                plain view, or all crops one after the other.
            buffer_bytes: memory that a shuffled reader may fill with shards.

        Raises:
            FeatureStoreError: naming a damaged shard.
        """
        return read_in_batches(
            self.shard, self.images, self.rows_per_image, batch_size,
            shuffle_seed=shuffle_seed, rank=rank, world_size=world_size, select=views,
            buffer_rows=max(1, buffer_bytes // max(self.row_bytes, 1)),
            readers=READERS if is_remote(self.folder.uri) else _LOCAL_READERS,
        )  # fmt: skip

    def shard(self, number: int) -> Features:
        """All rows of one shard; its checksum is verified.

        Raises:
            FeatureStoreError: where it is damaged.
        """
        if self._kept is not None and number in self._kept:
            return self._kept[number]
        name, rows = (self.description["shards"][number][field] for field in ("file", "rows"))
        expected = {field: self.description[field] for field in ("version", "key", "grid_shape", "global_shape")}
        expected["shard"] = number
        try:
            features = read_shard(self.folder, name, rows, expected)
        except FileNotFoundError:
            raise FeatureStoreError(f"{self.folder.uri}/{name}: shard missing; {mend(self.folder)}") from None
        except DamagedShardError as error:
            raise FeatureStoreError(f"{self.folder.uri}/{name}: {error}; {mend(self.folder)}") from None
        if self._kept is not None:
            self._kept[number] = features
        return features

    def verify(self) -> None:
        """Read every shard, and look for files that do not belong here.

        Raises:
            FeatureStoreError: naming each damaged shard and each foreign file.
        """
        wrong = [str(error) for _, error in self._damages()]
        wrong += [f"{self.folder.uri}/{name}: foreign file; {mend(self.folder)}" for name in self._foreign()]
        if wrong:
            raise FeatureStoreError("\n".join(wrong))

    def prune(self) -> list[str]:
        """Remove damaged shards and foreign files, and return their names.

        Where a shard had to go the store is unfinished again, and preprocessing makes just that shard anew.
        """
        damaged = [self.description["shards"][number]["file"] for number, _ in self._damages()]
        removed = [*damaged, *self._foreign()]
        if damaged:
            removed.append(DESCRIPTION)
        there = self.folder.files()
        for name in removed:
            if name in there:
                self.folder.remove(name)
        return removed

    def _damages(self) -> Iterable[tuple[int, FeatureStoreError]]:
        for number in range(len(self.images)):
            try:
                self.shard(number)
            except FeatureStoreError as error:
                yield number, error

    def _foreign(self) -> list[str]:
        own = {shard["file"] for shard in self.description["shards"]} | {DESCRIPTION, LOCK}
        return sorted(set(self.folder.files()) - own)

    def _all_ids(self) -> list[list[str]]:
        """Of each shard, the ids of all its images."""
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._image_ids, range(len(self.images))))

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """Shard and number of each image that this object reads."""
        ids = self._all_ids()
        return {ids[shard][i]: (shard, i) for shard, chosen in enumerate(self.images) for i in chosen.tolist()}

    def _image_ids(self, number: int) -> list[str]:
        """Ids of a shard's images, without reading its features."""
        name = self.description["shards"][number]["file"]
        try:
            return read_image_ids(self.folder, name)[:: self.rows_per_image.total]
        except DamagedShardError as error:
            raise FeatureStoreError(f"{self.folder.uri}/{name}: {error}; {mend(self.folder)}") from None


def _read_description(folder: Folder) -> dict[str, Any]:
    """What ``store.json`` says of a store that is finished."""
    uri, files = folder.uri, folder.files()
    if DESCRIPTION not in files:
        raise FeatureStoreError(
            f"{uri}: no finished feature store here; `cprfl preprocess CONFIG` makes or finishes it"
        )
    try:
        description = dict(json.loads(folder.read(DESCRIPTION)))
    except (ValueError, TypeError) as error:
        raise FeatureStoreError(f"{uri}/{DESCRIPTION}: damaged ({error}); {mend(folder)}") from None
    if description.get("version") != VERSION:
        raise FeatureStoreError(
            f"{uri}: format version {description.get('version')}, this program reads {VERSION}; {mend(folder)}"
        )
    if description.pop("checksum", None) != fingerprint(description):
        raise FeatureStoreError(f"{uri}/{DESCRIPTION}: damaged (its content has changed); {mend(folder)}")
    for shard in description["shards"]:
        if shard["file"] not in files:
            raise FeatureStoreError(f"{uri}/{shard['file']}: shard missing; {mend(folder)}")
    return description


def _rows_per_image(description: dict[str, Any]) -> ImageRows:
    return ImageRows(description["views"], description.get("crops", 1))  # a store of before there were crops has none


def mend(folder: Folder) -> str:
    """What the user can do about damage in a store."""
    root = folder.uri.rpartition("/")[0]
    return f"`cprfl features prune --features {root}` removes what is damaged, `cprfl preprocess CONFIG` makes it anew"
