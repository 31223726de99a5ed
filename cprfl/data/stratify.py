"""Iterative stratification (Sechidis et al., 2011) as a stream: each class keeps its share in every part."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np


def deal(
    ids: Sequence[str],
    groups: Sequence[str],
    labels: Sequence[Sequence[int]],
    shares: Mapping[str, float],
    seed: int,
    earlier: Mapping[str, str],
) -> list[str]:
    """Deal images out to splits, group by group in the order in which they are listed.

    What has been dealt out ``earlier`` stays. Each further group goes to the split that falls furthest behind its
    share of the group's classes, counted over the images up to this one, a rare class's image weighing as much as all
    of a frequent one's: iterative stratification (Sechidis et al., 2011) as a stream. So images that are added behind
    the others move none of those, even where nothing is known of ``earlier``.

    Args:
        ids: of the n images.
        groups: what each image belongs together with; images of one group are in one split.
        labels: class indices of each image.
        shares: of the splits, by name; they add up to 1.
        seed: of ties, which fall by seed and id.
        earlier: splits by image id; other names than those of ``shares`` are passed over.

    Returns:
        The split of each image.
    """
    names = list(shares)
    share_S = np.array([shares[name] for name in names])
    num_classes = 1 + max((label for own in labels for label in own), default=-1)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    held_SC = np.zeros((len(names), num_classes + 1))  # the last column counts images
    part: dict[str, int] = {}
    for group, rows in members.items():
        before = [earlier[ids[row]] for row in rows if earlier.get(ids[row]) in shares]
        if before:
            part[group] = names.index(before[0])
            classes, added = _counts(rows, labels, num_classes)
            held_SC[part[group], classes] += added
    for group, rows in members.items():
        if group in part:
            continue
        classes, added = _counts(rows, labels, num_classes)
        held = held_SC[:, classes]
        behind_SC = share_S[:, None] - held / (held.sum(axis=0) + added)
        behind_S = behind_SC.sum(axis=1)
        best = np.flatnonzero(behind_S >= behind_S.max() - 1e-12)
        chosen = best[_draw(seed, group) % len(best)]
        part[group] = int(chosen)
        held_SC[chosen, classes] += added
    return [names[part[group]] for group in groups]


def stratify(labels: Sequence[Sequence[int]], shares: Sequence[float], seed: int) -> np.ndarray:
    """The part of each image, int64 [n]: those of the rarest class are dealt out first, those without any last.

    Args:
        labels: class indices of each of the n images.
        shares: of the parts; they add up to 1.
        seed: of the order among those whose rarest class is equally rare.
    """
    count = Counter(chain.from_iterable(labels))
    rarest_N = np.array([min((count[label] for label in own), default=len(labels) + 1) for own in labels], dtype=int)
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(rarest_N[order], kind="stable")]
    keys = [str(row) for row in order]
    named = {str(number): share for number, share in enumerate(shares)}
    dealt = deal(keys, keys, [labels[row] for row in order], named, seed, {})
    part = np.empty(len(labels), dtype=np.int64)
    part[order] = [int(name) for name in dealt]
    return part


def _counts(rows: Sequence[int], labels: Sequence[Sequence[int]], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The classes that these rows show, and in how many; behind the last class, how many rows there are.

    Only what is there is counted: with a row for all classes, dealing would take images times classes.
    """
    shown = [label for row in rows for label in {*labels[row], num_classes}]
    return np.unique(shown, return_counts=True)


def _draw(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big")
