"""Scores of single images, by a checkpoint or a registered model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cprfl.data.images import open_image
from cprfl.errors import CheckpointError, UnreadableImageError
from cprfl.predictor import Predictor
from pipelines import tracking


def predict_images(model: str, images: Sequence[str], output_dir: Path) -> tuple[np.ndarray, Sequence[str]]:
    """Probabilities [n, c] of image files, and the class names.

    Args:
        model: a checkpoint's folder, or a ``models:/`` URI of MLflow.
        images: paths.
        output_dir: where the MLflow store is, unless ``MLFLOW_TRACKING_URI`` names one.

    Raises:
        CheckpointError: where there is no such model.
        UnreadableImageError: naming the first image that is missing or does not decode.
    """
    pictures = []
    for path in images:
        try:
            pictures.append(open_image(path))
        except UnreadableImageError as error:
            raise UnreadableImageError(f"{path}: {error}") from None
    if not model.startswith("models:/"):
        predictor = Predictor.load(Path(model))
        return predictor.predict(pictures), predictor.class_names
    import mlflow
    from mlflow.exceptions import MlflowException

    tracking.use_store(tracking.tracking_uri(str(output_dir)))
    try:
        loaded = mlflow.pyfunc.load_model(model)
    except MlflowException as error:
        raise CheckpointError(f"{model}: {str(error).splitlines()[0]}; `cprfl ui` shows what is registered") from None
    import pandas as pd

    frame = loaded.predict(pd.DataFrame({"image": list(images)}))
    return frame.to_numpy(), list(frame.columns)
