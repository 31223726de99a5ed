"""Batches of a sharded store: in order, or shuffled within a bounded buffer, the same for the same seed."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cprfl.data.feature_store.shards import ROWS_PER_SHARD, Features, ImageRows

Views = Literal["all", "plain", "random", "scored"]
_AHEAD = 3  # shards that are read while the present ones are consumed, however large they are


class Batch(NamedTuple):
    """Rows of a store as tensors.

    Attributes:
        image_ids: id of each of the B rows.
        views_B: int8; 0 is the plain view.
        grid_BVD: float16.
        global_BE: float16.
    """

    image_ids: tuple[str, ...]
    views_B: Tensor
    grid_BVD: Tensor
    global_BE: Tensor


class _Part(NamedTuple):
    """Features of one shard that one reader takes."""

    shard: int
    rows: np.ndarray


def read_in_batches(
    read: Callable[[int], Features],
    images: Sequence[np.ndarray],
    per_image: ImageRows,
    batch_size: int,
    *,
    shuffle_seed: int | None,
    rank: int,
    world_size: int,
    select: Views,
    buffer_rows: int,
    readers: int,
) -> Iterator[Batch]:
    """Batches of the chosen images of a store, for which so many threads read shards ahead.

    The other arguments are those of `FeatureStore.iter_batches`.
    """
    parts = _own_parts(images, per_image, shuffle_seed, rank, world_size, select)
    rng = None if shuffle_seed is None else np.random.default_rng([shuffle_seed, rank])
    carried: Batch | None = None
    # No more is read ahead than fits into the buffer; with a shuffle, that is the window after the present one.
    ahead = max(_AHEAD, buffer_rows // ROWS_PER_SHARD)
    if rng is None:
        ahead = min(ahead, readers)
    for window in _windows(_read_ahead(read, parts, ahead, readers), 1 if rng is None else buffer_rows):
        slots = np.repeat(np.arange(len(window)), [len(rows) for _, rows in window])
        rows = np.concatenate([rows for _, rows in window])
        order = np.arange(len(rows)) if rng is None else rng.permutation(len(rows))
        shards = [shard for shard, _ in window]
        first = batch_size - (len(carried.image_ids) if carried else 0)
        for start in (0, *range(first, len(rows), batch_size)):
            chosen = order[start : start + (first if start == 0 else batch_size)]
            batch = _gather(shards, slots[chosen], rows[chosen])
            batch = _join(carried, batch) if carried else batch
            carried = None
            if len(batch.image_ids) < batch_size:
                carried = batch
            else:
                yield batch
        del window, shards  # or they would stay in memory until the window after the next is there
    if carried:
        yield carried


def _own_parts(
    images: Sequence[np.ndarray], per_image: ImageRows, seed: int | None, rank: int, world_size: int, select: Views
) -> list[_Part]:
    """This reader's rows of each shard, in the order in which it reads the shards."""
    order = np.array([shard for shard, chosen in enumerate(images) if len(chosen)], dtype=np.int64)
    rows = {}
    for shard in order.tolist():
        chosen = images[shard][:, None] * per_image.total
        if select == "all":
            chosen = chosen + np.arange(per_image.total)
        elif select == "scored":
            chosen = chosen + np.array(per_image.scored)
        elif select == "random":
            chosen = chosen + np.random.default_rng([seed or 0, shard]).integers(per_image.views, size=(len(chosen), 1))
        rows[shard] = chosen.reshape(-1)
        if seed is not None:  # a shard may be cut between two readers: not always at the same rows
            np.random.default_rng([seed, shard, 1]).shuffle(rows[shard])
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    total = sum(map(len, rows.values()))
    start, stop = total * rank // world_size, total * (rank + 1) // world_size
    if seed is not None:
        length = -(-total // world_size)
        start, stop = rank * length, (rank + 1) * length
    parts: list[_Part] = []
    position = 0
    if not total:
        return parts
    for shard in itertools.chain.from_iterable(itertools.repeat(order.tolist())):
        if position >= stop:
            return parts
        own = rows[shard][max(start - position, 0) : stop - position]
        if len(own):
            parts.append(_Part(shard, own))
        position += len(rows[shard])
    return parts


def _read_ahead(
    read: Callable[[int], Features], parts: Sequence[_Part], ahead: int, readers: int
) -> Iterator[tuple[Features, np.ndarray]]:
    """Shards with the rows wanted of them, the next ones being read meanwhile."""
    pending: deque[tuple[Future[Features], np.ndarray]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for shard, rows in parts:
                pending.append((pool.submit(read, shard), rows))
                if len(pending) > ahead:
                    future, wanted = pending.popleft()
                    yield future.result(), wanted
            while pending:
                future, wanted = pending.popleft()
                yield future.result(), wanted
        finally:
            for future, _ in pending:
                future.cancel()


def _windows(
    shards: Iterator[tuple[Features, np.ndarray]], buffer_rows: int
) -> Iterator[list[tuple[Features, np.ndarray]]]:
    """As many shards at a time as fit into the buffer, and one at least."""
    window: list[tuple[Features, np.ndarray]] = []
    held = 0
    for shard, rows in shards:
        if window and held + len(shard.image_ids) > buffer_rows:
            yield window
            window, held = [], 0
        window.append((shard, rows))
        held += len(shard.image_ids)
    if window:
        yield window


def _gather(shards: Sequence[Features], slots: np.ndarray, rows: np.ndarray) -> Batch:
    """The rows ``rows`` of the shards ``slots``; evenly spaced rows of one shard are not copied."""
    first = shards[slots[0]]
    step = int(rows[1] - rows[0]) if len(rows) > 1 else 1
    if step > 0 and (slots == slots[0]).all() and (np.diff(rows) == step).all():
        chosen = slice(int(rows[0]), int(rows[-1]) + 1, step)
        views, grid, global_features = (a[chosen] for a in (first.views, first.grid, first.global_features))
        return Batch(first.image_ids[chosen], *map(_tensor, (views, grid, global_features)))
    views = np.empty(len(rows), np.int8)
    grid = np.empty((len(rows), *first.grid.shape[1:]), np.float16)
    global_features = np.empty((len(rows), *first.global_features.shape[1:]), np.float16)
    places = list(zip(slots.tolist(), rows.tolist(), strict=True))
    for position, (slot, row) in enumerate(places):  # row by row: indexing by an array would copy everything twice
        shard = shards[slot]
        grid[position], global_features[position] = shard.grid[row], shard.global_features[row]
        views[position] = shard.views[row]
    ids = tuple(shards[slot].image_ids[row] for slot, row in places)
    return Batch(ids, torch.from_numpy(views), torch.from_numpy(grid), torch.from_numpy(global_features))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _join(first: Batch, second: Batch) -> Batch:
    tensors = (torch.cat(pair) for pair in zip(first[1:], second[1:], strict=True))
    return Batch(first.image_ids + second.image_ids, *tensors)
