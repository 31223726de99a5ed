"""Which images an epoch is made of, where it is not each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from cprfl.errors import DatasetError

Sampler = Literal["uniform", "class_aware"]


def class_aware_rows(labels: Sequence[Sequence[int]], seed: int) -> np.ndarray:
    """Rows of the images that an epoch draws, class by class, as often as there are images (Shen et al., ECCV 2016).

    Each draw takes the next of the classes that have images, which are shuffled anew for every round, and one of its
    images at random; none of them comes again through this class before all of them have come. An image without a class
    is never drawn.

    Args:
        labels: the classes of each of the n images.
        seed: decides all of it.

    Returns:
        int64 [n], in the order of drawing.

    Raises:
        DatasetError: where no image shows a class.
    """
    rng = np.random.default_rng([seed, len(labels)])
    images: dict[int, list[int]] = {}
    for row, classes in enumerate(labels):
        for label in classes:
            images.setdefault(label, []).append(row)
    if not images:
        raise DatasetError("train.sampler=class_aware: no training image shows a class; set it to uniform")
    members = [np.array(images[label]) for label in sorted(images)]
    rounds = -(-len(labels) // len(members))
    turns = rng.permuted(np.tile(np.arange(len(members)), (rounds, 1)), axis=1).reshape(-1)[: len(labels)]
    rows = np.empty(len(labels), dtype=np.int64)
    for number, own in enumerate(members):
        places = np.flatnonzero(turns == number)
        passes = -(-len(places) // len(own))
        rows[places] = rng.permuted(np.tile(own, (passes, 1)), axis=1).reshape(-1)[: len(places)]
    return rows


def occurrences(rows: np.ndarray) -> np.ndarray:
    """How often each row came before, int64 [n]."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(rows)])
    found = np.empty(len(rows), dtype=np.int64)
    found[order] = np.arange(len(rows)) - np.repeat(starts, lengths)
    return found
