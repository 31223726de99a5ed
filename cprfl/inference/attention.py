"""Where a trained method looks for each class, as cells of an image, and which part of the image these cover.

Shapes: N images, C classes, V cells in h rows of w.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cprfl.data.feature_store import FeatureStore
from cprfl.encoders.base import Transform
from cprfl.inference.predictor import load_method

_BATCH = 64


class Part(NamedTuple):
    """A rectangle of an image, in shares of its width and height from its left upper corner."""

    left: float
    top: float
    right: float
    bottom: float


WHOLE = Part(0.0, 0.0, 1.0, 1.0)


def part_seen(transform: Transform, width: int, height: int) -> Part:
    """What of an upright image of this size the encoder sees in its plain view, which its grid covers evenly.

    With ``resize: squash`` it is all of it; with ``crop`` the centre of it.
    """
    if transform.resize == "squash":
        return WHOLE
    size = transform.size
    side = math.floor(size / transform.own.crop)
    scale = side / min(width, height)
    resized = [max(side, round(own * scale)) for own in (width, height)]
    left, top = (round((length - size) / 2.0) / length for length in resized)
    across, down = (size / length for length in resized)
    return Part(left, top, left + across, top + down)


def on_grid(weights_NCV: Tensor) -> np.ndarray:
    """Weights of cells [N, C, V] as they lie in the encoder's square input, float32 [N, C, h, w]."""
    side = math.isqrt(weights_NCV.shape[2])
    assert side * side == weights_NCV.shape[2], "encoders take squares and give as many rows as columns"
    values: np.ndarray = weights_NCV.float().cpu().unflatten(2, (side, side)).numpy()
    return values


@torch.inference_mode()
def attention_of(checkpoint: Path, store: FeatureStore, image_ids: Sequence[str]) -> np.ndarray | None:
    """Where a checkpoint looks for each class in these images' plain views, by their cached features.

    Args:
        checkpoint: of a method trained on features of the store's encoder.
        store: has features of all of the images.
        image_ids: in any order.

    Returns:
        Weights of sum 1, float32 [n, C, h, w]; none where the method does not tell cells apart.

    Raises:
        CheckpointError: where there is no checkpoint.
        FeatureStoreError: where an image has no features.
    """
    method, _ = load_method(checkpoint)
    found: dict[str, np.ndarray] = {}
    for batch in store.subset(image_ids).iter_batches(_BATCH, views="plain"):
        weights_BCV = method.attention(batch.grid_BVD.float(), batch.global_BE.float())
        if weights_BCV is None:
            return None
        found.update(zip(batch.image_ids, on_grid(weights_BCV), strict=True))
    return np.stack([found[image_id] for image_id in image_ids]) if image_ids else None
