"""`cprfl features`: what is cached, whether it is sound, and what may go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import prune_unfinished
from cprfl.data.filesystems import is_remote
from cprfl.data.storage import Folder
from cprfl.errors import FeatureStoreError
from cprfl.preparation import PREPARED


@dataclass(frozen=True)
class Cached:
    """One folder under the root of the feature stores.

    Attributes:
        folder: where it is.
        num_bytes: of all its files.
        store: the opened store, or why it does not open.
        experiments: names of those that use it.
    """

    folder: Folder
    num_bytes: int
    store: FeatureStore | FeatureStoreError
    experiments: Sequence[str]

    @property
    def key(self) -> str:
        """The folder's name."""
        return self.folder.uri.rpartition("/")[2]


def cached(root: str, output_dir: Path) -> list[Cached]:
    """All folders under ``root``, with the experiments under ``output_dir`` that use them."""
    users: dict[str, list[str]] = {}
    for file in sorted(output_dir.glob(f"*/**/{PREPARED}")):  # a challenger lies below its experiment's folder
        features = json.loads(file.read_text())["features"]
        if features:  # by the store's name: the folder of all of them may have been moved
            users.setdefault(features.rpartition("/")[2], []).append(file.relative_to(output_dir).parts[0])
    return list(_cached(Folder(root), users))


def _cached(root: Folder, users: dict[str, list[str]]) -> Iterator[Cached]:
    for name in root.folders():
        folder = root / name
        opened: FeatureStore | FeatureStoreError
        try:
            opened = FeatureStore.open(folder.uri)
        except FeatureStoreError as error:
            opened = error
        yield Cached(folder, sum(folder.files().values()), opened, users.get(name, []))


def verify(stores: Sequence[Cached]) -> None:
    """Read every shard of the stores.

    Raises:
        FeatureStoreError: naming all that is wrong.
    """
    wrong = []
    for item in stores:
        try:
            if isinstance(item.store, FeatureStoreError):
                raise item.store
            item.store.verify()
        except FeatureStoreError as error:
            wrong.append(str(error))
    if wrong:
        raise FeatureStoreError("\n".join(wrong))


def prune(stores: Sequence[Cached], unused: bool) -> list[str]:
    """Remove damaged shards, foreign files and stores that do not open; with ``unused`` also those nobody uses.

    Shards of a store that is not finished are kept: preprocessing goes on with them. Who uses a store on a remote
    filesystem is not known here.

    Returns:
        What was removed.
    """
    removed = []
    for item in stores:
        if unused and is_remote(item.folder.uri):
            raise FeatureStoreError(f"{item.folder.uri}: others may use it; remove what nobody needs by hand")
        if unused and not item.experiments:
            item.folder.remove_all()
            removed.append(item.folder.uri)
        elif isinstance(item.store, FeatureStore):
            removed += [f"{item.folder.uri}/{name}" for name in item.store.prune()]
        else:
            removed += [f"{item.folder.uri}/{name}" for name in prune_unfinished(item.folder)]
    return removed
