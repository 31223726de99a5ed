"""`cprfl features`: what is cached, whether it is sound, and what may go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import prune_unfinished
from cprfl.data.feature_store.shards import shard_numbers, share
from cprfl.data.filesystems import is_remote
from cprfl.data.locks import Lock
from cprfl.data.storage import Folder
from cprfl.errors import DatasetError, FeatureStoreError
from cprfl.preparation import CHECKPOINT, MANIFEST, PREPARED, read_preparation
from cprfl.words import counted


@dataclass(frozen=True)
class Cached:
    """One folder under the root of the feature stores.

    Attributes:
        folder: where it is.
        num_bytes: of all its files.
        store: the opened store, or why it does not open.
        experiments: names of those that use it.
        lock: a share of its lock; none on a remote filesystem, and where the storage knows no locks.
    """

    folder: Folder
    num_bytes: int
    store: FeatureStore | FeatureStoreError
    experiments: Sequence[str]
    lock: Lock | None

    @property
    def key(self) -> str:
        """The folder's name."""
        return self.folder.uri.rpartition("/")[2]


@dataclass(frozen=True)
class Cache:
    """All folders under the root of the feature stores.

    Attributes:
        root: path or URI.
        stores: one for each folder.
        unknown: for each experiment of which it is not known which store it uses, why.
    """

    root: str
    stores: list[Cached]
    unknown: list[str]

    def chosen(self, keys: Collection[str]) -> list[Cached]:
        """The stores of these names, or all of them where none are given.

        Raises:
            FeatureStoreError: where there is no such store.
        """
        absent = set(keys) - {item.key for item in self.stores}
        if absent:
            raise FeatureStoreError(f"{self.root}: no store {min(absent)!r} here; `cprfl features ls` lists them")
        return [item for item in self.stores if not keys or item.key in keys]


@dataclass(frozen=True)
class Pruned:
    """What came of pruning.

    Attributes:
        removed: paths of files and folders.
        kept: paths of folders that might have gone, each with the reason why it stays.
    """

    removed: list[str]
    kept: list[str]


def cached(root: str, output_dir: Path) -> Cache:
    """All folders under ``root``, with the experiments under ``output_dir`` that use them."""
    users: dict[str, list[str]] = {}
    unknown = []
    for folder in _model_folders(output_dir):
        try:
            features = read_preparation(folder / PREPARED)["features"]
        except DatasetError as error:
            unknown.append(str(error))
            continue
        if features:  # by the store's name: the folder of all of them may have been moved
            users.setdefault(features.rpartition("/")[2], []).append(folder.relative_to(output_dir).parts[0])
    return Cache(root, list(_cached(Folder(root), users)), unknown)


def verify(cache: Cache, keys: Collection[str] = ()) -> int:
    """Read every shard of the stores of these names, or of all.

    Returns:
        How many stores are sound.

    Raises:
        FeatureStoreError: naming all that is wrong, or where there is no store.
    """
    wrong, stores = [], cache.chosen(keys)
    if not stores:
        raise FeatureStoreError(f"{cache.root}: no feature store here; --features names another place")
    for item in stores:
        try:
            if isinstance(item.store, FeatureStoreError):
                raise item.store
            item.store.verify()
        except FeatureStoreError as error:
            wrong.append(str(error))
    sound = len(stores) - len(wrong)
    if wrong:
        others = [f"{counted(sound, 'other store')} {'is' if sound == 1 else 'are'} sound"] if sound else []
        raise FeatureStoreError("\n".join([*wrong, *others]))
    return sound


def prune(cache: Cache, keys: Collection[str] = (), *, unused: bool = False) -> Pruned:
    """Remove damaged shards, foreign files and what is no store; with ``unused`` also stores that nobody uses.

    A folder without a whole shard is no store. A store that another process fills or reads stays as it is. Shards of
    one that is not finished are kept: preprocessing goes on with them. Whether nobody uses a store can not be known
    where it is not finished, or where an experiment does not say which it uses; such a one goes only where it is named.

    Args:
        cache: what there is.
        keys: names of stores; all unless given.
        unused: whether stores that no experiment uses go, too.

    Raises:
        FeatureStoreError: where stores on a remote filesystem are to go: who uses them is not known here.
    """
    result = Pruned([], [])
    for item in cache.chosen(keys):
        if unused and is_remote(item.folder.uri):
            raise FeatureStoreError(f"{item.folder.uri}: others may use it; remove what nobody needs by hand")
        if item.lock is not None and not item.lock.alone():
            result.kept.append(f"{item.folder.uri}: another process fills or reads it now")
            continue
        goes = unused and not item.experiments
        doubt = _doubt(item, cache, named=bool(keys)) if goes else None
        try:
            if goes and doubt is None:
                item.folder.remove_all()
                result.removed.append(item.folder.uri)
                continue
            result.removed.extend(_pruned(item))
        finally:
            if item.lock is not None:
                item.lock.share()
        if doubt is not None:
            result.kept.append(f"{item.folder.uri}: {doubt}")
    return result


def _pruned(item: Cached) -> list[str]:
    """Remove what is no part of a store, and the folder where no shard is left; a storage without locks may be filled.

    Returns:
        The paths of what is removed.
    """
    opened = isinstance(item.store, FeatureStore)
    names = item.store.prune() if isinstance(item.store, FeatureStore) else prune_unfinished(item.folder)
    if opened or item.lock is None or shard_numbers(item.folder):
        return [f"{item.folder.uri}/{name}" for name in names]
    item.folder.remove_all()
    return [item.folder.uri]


def _doubt(item: Cached, cache: Cache, *, named: bool) -> str | None:
    """Why it cannot be known that nobody uses a store of which no experiment says that it does."""
    if item.lock is None:
        return "this storage knows no locks, so a process may fill or read it; remove it by hand"
    if named:
        return None
    if cache.unknown:
        return f"it may be used, for {cache.unknown[0]}; name its key to remove it nevertheless"
    if isinstance(item.store, FeatureStoreError) and shard_numbers(item.folder):
        return "not finished, and preprocessing goes on with it; name its key to remove it nevertheless"
    return None


def _model_folders(output_dir: Path) -> list[Path]:
    """Folders under ``output_dir`` in which an experiment, or a model of it, was prepared or trained.

    A challenger lies below its experiment's folder.
    """
    signs = (PREPARED, MANIFEST, CHECKPOINT)
    found = {path.parent for sign in signs for path in output_dir.glob(f"*/**/{sign}")}
    return sorted(folder for folder in found if folder.relative_to(output_dir).parts[0] not in ("cache", "mlflow"))


def _cached(root: Folder, users: dict[str, list[str]]) -> Iterator[Cached]:
    for name in root.folders():
        folder = root / name
        lock = share(folder)
        opened: FeatureStore | FeatureStoreError
        try:
            opened = FeatureStore.open(folder.uri)
        except FeatureStoreError as error:
            opened = error.with_traceback(None)  # whose frames would keep the lock
        else:
            lock = opened.lock  # of the two, which could not both become the only one
        yield Cached(folder, sum(folder.files().values()), opened, users.get(name, []), lock)
