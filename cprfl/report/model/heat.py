"""Where a method looks, as a small picture that a page lays over an image: the same as `cprfl.inference.overlay`."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from cprfl.encoders.base import Transform
from cprfl.inference.attention import WHOLE, Part, attention_of_method, part_seen
from cprfl.inference.predictor import load_method
from cprfl.report.results import Results

_ORANGE = (255, 106, 0)
_LEVELS = 16  # of opacity: four bits a cell, so that thousands of them weigh little
_STRONGEST = 0.9
_FULL = 3.0  # times the weight of every cell where all weigh alike, at which the colour is full at the earliest
_VALUES = 2**26  # weights that are held at once


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
    labels: dict[int, list[int]] = {}
    for row, label in pairs:
        labels.setdefault(row, []).append(label)
    rows, found = sorted(labels), dict[tuple[int, int], str]()
    cells, num_classes = results.store.grid_shape[0], len(results.manifest.class_names)
    step = max(1, _VALUES // (cells * num_classes))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        weights_nCHW = attention_of_method(method, results.store, [results.test.image_ids[row] for row in part])
        if weights_nCHW is None:
            return {}
        for row, weights_CHW in zip(part, weights_nCHW, strict=True):
            found.update({(row, label): picture(weights_CHW[label]) for label in labels[row]})
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
