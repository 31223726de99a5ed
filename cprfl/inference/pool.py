"""Images without labels, seen once: what a model thinks of them, and features to compare them by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cprfl.data.ahead import read_ahead
from cprfl.data.images import BadImage
from cprfl.encoders.rows import Decoded, decode
from cprfl.inference.predictor import Predictor
from cprfl.models.pooled import pooled
from cprfl.progress import progress

_AHEAD = 2  # batches that are decoded while one is encoded


@dataclass(frozen=True)
class Pool:
    """What was seen of N images; F features of each are all that is kept of it.

    Attributes:
        uris: of the images that can be read.
        probability_NC: calibrated.
        features_NF: mean and maximum over the cells of the plain view, float16.
        bad: images that cannot be read.
    """

    uris: tuple[str, ...]
    probability_NC: np.ndarray
    features_NF: np.ndarray
    bad: tuple[BadImage, ...]


def encode_pool(predictor: Predictor, uris: Sequence[str]) -> Pool:
    """Encode images once, three batches of pixels in memory at most.

    Args:
        predictor: encodes and scores them.
        uris: paths or URIs.

    Raises:
        StorageError: where a storage cannot be reached.
    """
    size = predictor.batch_size
    batches = [uris[start : start + size] for start in range(0, len(uris), size)]
    read, bad = list[str](), list[BadImage]()
    logits, features = [np.empty((0, len(predictor.class_names)))], list[np.ndarray]()
    transform = predictor.encoder.transform

    def decoded(batch: Sequence[str]) -> Decoded:
        return decode(batch, batch, transform, views=1)

    shown = read_ahead(decoded, batches, _AHEAD, min(_AHEAD, os.cpu_count() or 1))
    for batch in progress(shown, len(uris), "encoding the pool", size=lambda b: len(b.image_ids) + len(b.bad)):
        bad += batch.bad
        if not batch.image_ids:
            continue
        logits_NC, features_NF = _look(predictor, torch.from_numpy(batch.pixels_NK3HW))
        read += batch.image_ids
        logits.append(logits_NC)
        features.append(features_NF)
    probability_NC = predictor.decisions.probabilities(np.concatenate(logits))
    return Pool(tuple(read), probability_NC, np.concatenate(features) if features else np.empty((0, 0)), tuple(bad))


@torch.inference_mode()
def _look(predictor: Predictor, pixels_NK3HW: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, C], the mean over the rows that are scored, and features [N, F] of the plain view."""
    num_images, num_rows = pixels_NK3HW.shape[:2]
    encoded = predictor.encode(pixels_NK3HW.flatten(0, 1))
    logits_NKC = predictor.method(*encoded).float().cpu().unflatten(0, (num_images, num_rows))
    grid_NKVD = encoded.grid_BVD.unflatten(0, (num_images, num_rows))
    scored = predictor.encoder.transform.crops
    return logits_NKC[:, -scored:].mean(dim=1).numpy(), pooled(grid_NKVD[:, 0]).half().cpu().numpy()
