"""A feature store while it is filled: its key, which shards are missing, how it becomes a finished one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cprfl.data.feature_store.shards import (
    LOCK,
    ROWS_PER_SHARD,
    VERSION,
    DamagedShardError,
    ImageRows,
    is_whole,
    read_footer,
    shard_name,
    shard_numbers,
    share,
)  # fmt: skip
from cprfl.data.feature_store.store import DESCRIPTION, READERS, FeatureStore, mend
from cprfl.data.files import fingerprint
from cprfl.data.images import Reading
from cprfl.data.locks import Lock
from cprfl.data.storage import Folder
from cprfl.data.temporary import remove_asides
from cprfl.errors import FeatureStoreError


@dataclass(frozen=True)
class StoreKey:
    """All that determines the bytes of a store.

    ``images`` holds (id, URI, size and time) of each image, in order; ``encoder`` is its fingerprint, which covers
    weights and transform; ``views`` and ``crops`` are those of `ImageRows`. ``max_pixels`` decides which images are
    bad.
    """

    images: tuple[tuple[str, str, tuple[int, ...]], ...]
    encoder: str
    views: int
    crops: int = 1
    max_pixels: int = Reading.max_pixels

    @property
    def fingerprint(self) -> str:
        """The name of the store's folder."""
        parts: list[object] = [VERSION, ROWS_PER_SHARD, self.images, self.encoder, self.views]
        # A store without crops, and with the usual limit, keeps the name that it had before there were any.
        parts += [] if self.crops == 1 else [self.crops]
        parts += [] if self.max_pixels == Reading.max_pixels else [["max_pixels", self.max_pixels]]
        return fingerprint(parts)

    @property
    def rows(self) -> ImageRows:
        """The rows of each image."""
        return ImageRows(self.views, self.crops)

    @property
    def image_list_digest(self) -> str:
        """Fingerprint of the image list alone."""
        return fingerprint(self.images)

    def shards(self) -> list[range]:
        """The images of each shard: as many as make `ROWS_PER_SHARD` rows, and one at least."""
        size, count = max(1, ROWS_PER_SHARD // self.rows.total), len(self.images)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]


class StoreInProgress:
    """The folder of one key while it is filled, by one process or by many.

    From `missing` on, and as long as this object is there, nobody prunes a local one.

    Args:
        root: URI of the folder that holds one folder per key.
        key: what is to be stored.
        encoder: a description of the encoder for whoever reads ``store.json``.
    """

    def __init__(self, root: str, key: StoreKey, encoder: dict[str, Any]) -> None:
        self.folder = Folder(root) / key.fingerprint
        self.key, self.encoder = key, encoder
        self._lock: Lock | None = None

    @property
    def finished(self) -> bool:
        """Whether the store is complete."""
        return self.folder.exists(DESCRIPTION)

    def missing(self) -> list[int]:
        """Numbers of the shards that are yet to be written."""
        self._lock = share(self.folder, make=True)
        if self._lock is not None and self._lock.alone():
            remove_asides(self._lock.path.parent)  # which a killed process was writing
            self._lock.share()
        there = shard_numbers(self.folder)
        return [number for number in range(len(self.key.shards())) if number not in there]

    def finish(self) -> FeatureStore:
        """Describe the store, all of whose shards are there, and open it."""
        names = [shard_name(number) for number in range(len(self.key.shards()))]
        with ThreadPoolExecutor(READERS) as pool:
            footers = list(pool.map(self._footer, names))
        metadata = footers[0][1]
        description = {
            "version": VERSION,
            "key": self.key.fingerprint,
            "image_list": self.key.image_list_digest,
            "encoder_fingerprint": self.key.encoder,
            "encoder": self.encoder,
            "views": self.key.views,
            "crops": self.key.crops,
            "dtype": metadata["dtype"],
            "grid_shape": metadata["grid_shape"],
            "global_shape": metadata["global_shape"],
            "bad_images": [bad for _, footer in footers for bad in footer["bad_images"]],
            "shards": [{"file": name, "rows": rows} for name, (rows, _) in zip(names, footers, strict=True)],
        }
        description["checksum"] = fingerprint(description)
        self.folder.write(DESCRIPTION, (json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())
        return FeatureStore.open(self.folder.uri)

    def _footer(self, name: str) -> tuple[int, dict[str, Any]]:
        try:
            return read_footer(self.folder, name)
        except DamagedShardError as error:
            raise FeatureStoreError(f"{self.folder.uri}/{name}: {error}; {mend(self.folder)}") from None


def prune_unfinished(folder: Folder) -> list[str]:
    """Remove all but whole shards of this version from a store that does not open, and return the names."""
    removed = []
    for name in folder.files().keys() - {LOCK}:
        if not is_whole(folder, name):
            folder.remove(name)
            removed.append(name)
    return sorted(removed)
