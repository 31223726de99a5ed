"""Every loss with its variants, class counts, and targets some of which nobody knows."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from cprfl.losses import (
    CONFIGS,
    LOSSES,
)

IMAGES, CLASSES, NUM_IMAGES = 12, 6, 60
COUNTS = np.array([40, 20, 7, 3, 1, 0])
COUNTED = np.maximum(COUNTS, 1).astype(float)


def built(name: str, **settings: Any) -> nn.Module:
    return CONFIGS[name](name=name, **settings).build(COUNTS, NUM_IMAGES)


# With an exponent below 1 the focal factor has an infinite slope where the probability is 0.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LOSSES),
    ("db_star", {"pos_scale": 10.0, "focal": True, "gamma": 0.5}),
    ("distribution_balanced", {"focal": False}),
    ("distribution_balanced", {"gamma": 0.5}),
    ("focal", {"gamma": 0.5}),
    ("asymmetric", {"gamma_neg": 0.5, "gamma_pos": 0.5, "detach_focal_weight": False}),
    ("balanced_asymmetric", {"gamma_neg": 0.5, "gamma_pos": 0.5, "clip": 0.0}),
    ("balanced_asymmetric", {"divide_by_max": True}),
    ("ldam", {"scale": 30.0}),
]


def drawn(seed: int, images: int = IMAGES, share: float = 0.3) -> np.ndarray:
    """Multi-hot targets, a share of them unknown; of the last class, and of the last image, nothing is known."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, CLASSES)) < 0.4).astype(np.float64)
    targets[rng.random(targets.shape) < share] = np.nan
    targets[-1], targets[:, -1] = np.nan, np.nan
    return targets
