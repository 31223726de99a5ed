"""Iterative stratification: splits of multi-label data that keep every class's share (Sechidis et al., 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratify(targets: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Assign each image to one of ``len(shares)`` parts.

    The rarest remaining class is dealt out first: each of its images goes to the part that still wants most images of
    that class, then to the one that wants most images at all, then at random.

    Args:
        targets: multi-hot [n, c].
        shares: of the parts; they add up to 1.
        seed: of ties.

    Returns:
        The part of each image, int64 [n].
    """
    targets = np.asarray(targets) > 0
    rng = np.random.default_rng(seed)
    wanted = np.array(shares, dtype=float)
    wanted_images = wanted * len(targets)
    wanted_labels = wanted[:, None] * targets.sum(axis=0)
    part = np.full(len(targets), -1, dtype=np.int64)
    order = rng.permutation(len(targets))

    def assign(image: int, keys: np.ndarray) -> None:
        best = np.flatnonzero(keys == keys.max())
        best = best[wanted_images[best] == wanted_images[best].max()]
        chosen = rng.choice(best)
        part[image] = chosen
        wanted_images[chosen] -= 1
        wanted_labels[chosen, targets[image]] -= 1

    while True:
        remaining = targets[part < 0].sum(axis=0)
        if not remaining.any():
            break
        label = int(np.argmin(np.where(remaining > 0, remaining, len(targets) + 1)))
        for image in order[(part[order] < 0) & targets[order, label]]:
            assign(image, wanted_labels[:, label])
    for image in order[part[order] < 0]:
        assign(image, wanted_images)
    return part
