"""Scores of single images, by a checkpoint or a registered model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from cprfl.data.checks import MISSING
from cprfl.data.images import DEFAULT_READING, Reading, image_stamps, open_image
from cprfl.errors import UnreadableImageError
from cprfl.inference.predictor import Predictor
from pipelines.tracking import registry
from pipelines.tracking.store import open_existing_store


def predict_images(model: str, images: Sequence[str], output_dir: Path) -> tuple[np.ndarray, Sequence[str]]:
    """Probabilities [n, c] of image files, and the class names.

    Args:
        model: a checkpoint's folder, or a ``models:/`` URI of MLflow.
        images: paths or URIs.
        output_dir: where the MLflow store is, unless ``MLFLOW_TRACKING_URI`` names one.

    Raises:
        CheckpointError: where there is no such model.
        UnreadableImageError: naming the first image that is missing or does not decode.
    """
    for path, stamp in zip(images, image_stamps(images), strict=True):
        if stamp == MISSING:  # which is better known before a model is loaded
            raise UnreadableImageError(f"{path}: file not found")
    if not model.startswith("models:/"):
        predictor = Predictor.load(Path(model))
        return predictor.predict(_open(images, predictor.encoder.transform.reading)), predictor.class_names
    open_existing_store(str(output_dir))
    encoded = []
    for picture in _open(images, DEFAULT_READING):  # a model takes bytes, never a path
        content = io.BytesIO()
        picture.save(content, format="PNG")
        encoded.append(content.getvalue())
    frame = registry.load(model).predict(pd.DataFrame({"image": encoded}))
    return frame.to_numpy(), list(frame.columns)


def _open(images: Sequence[str], reading: Reading) -> list[Image.Image]:
    pictures = []
    for path in images:
        try:
            pictures.append(open_image(path, reading))
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{path}: {error}") from None
    return pictures
