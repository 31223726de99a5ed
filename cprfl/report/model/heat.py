"""Where a method looks, as a small picture that a page lays over an image: the same as `cprfl.inference.overlay`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from cprfl.encoders.base import Transform
from cprfl.inference.attention import WHOLE, Part, on_grid, part_seen
from cprfl.inference.predictor import load_method
from cprfl.report.results import Results

_ORANGE = (255, 106, 0)
_LEVELS = 16  # of opacity: four bits a cell, so that thousands of them weigh little
_STRONGEST = 0.9
_FULL = 3.0  # times the weight of every cell where all weigh alike, at which the colour is full at the earliest
_VALUES = 2**23  # weights of a head that are held at once: a class looks at the cells and, maybe, at every other class


@torch.inference_mode()
def heat_of(results: Results, pairs: Sequence[tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Where the model looks in test images for a class, PNG as base64, a pixel for each cell.

    Args:
        results: of the model.
        pairs: row of a test image, label of a class.

    Returns:
        By pair; nothing where the method does not tell cells apart, or there are no cached features.
    """
    if results.store is None or not pairs:
        return {}
    method, _ = load_method(results.checkpoint)
    ids, labels = results.test.image_ids, dict[str, list[tuple[int, int]]]()
    for row, label in pairs:
        labels.setdefault(ids[row], []).append((row, label))
    found = dict[tuple[int, int], str]()
    cells, num_classes = results.store.grid_shape[0], len(results.manifest.class_names)
    at_a_time = max(1, _VALUES // ((cells + num_classes) * num_classes))
    for batch in results.store.subset(list(labels)).iter_batches(at_a_time, views="plain"):
        weights_BCV = method.attention(batch.grid_BVD.float(), batch.global_BE.float())
        if weights_BCV is None:
            return {}
        for image_id, weights_CHW in zip(batch.image_ids, on_grid(weights_BCV), strict=True):
            found.update({(row, label): picture(weights_CHW[label]) for row, label in labels[image_id]})
    return found


def picture(weights_HW: np.ndarray) -> str:
    """Weights of cells, of sum 1, as orange of more or less opacity: PNG as base64."""
    strength_HW = weights_HW / max(float(weights_HW.max()), _FULL / weights_HW.size)
    level_HW = (strength_HW.clip(0, 1) * (_LEVELS - 1)).round().astype(np.uint8)
    image = Image.fromarray(level_HW)
    image.putpalette(_ORANGE * _LEVELS)
    opacity = bytes(round(255 * _STRONGEST * level / (_LEVELS - 1)) for level in range(_LEVELS))
    file = io.BytesIO()
    image.save(file, "PNG", bits=4, transparency=opacity, optimize=False)
    return base64.b64encode(file.getvalue()).decode()


def transform_of(results: Results) -> Transform | None:
    """How the encoder sees an image; none where it sees all of it."""
    config = results.experiment.encoder
    if config.resize == "squash":
        return None
    return config.build(results.experiment.cache_dir, loaded=False).transform


def seen(transform: Transform | None, width: int, height: int) -> Part:
    """The part of an image of this size that the cells cover."""
    return WHOLE if transform is None else part_seen(transform, width, height)
