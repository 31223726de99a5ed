"""The registered model, as MLflow loads it: this file's text is stored with the model instead of a pickle.

It needs nothing of `pipelines`, and the library travels with the model.
"""

import io
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext


class ImageClassifier(PythonModel):
    """Takes a column ``image`` of encoded image bytes or of paths; gives one column of probabilities per class."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load checkpoint and encoder from the model's artifacts."""
        from cprfl.predictor import Predictor

        artifacts = {name: Path(path) for name, path in context.artifacts.items()}
        self._predictor = Predictor.load(artifacts["checkpoint"], artifacts["encoder"])

    def predict(self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Probabilities of each class, one row per image."""
        from PIL import Image

        from cprfl.data.images import open_image, to_rgb

        values = model_input["image"] if isinstance(model_input, pd.DataFrame) else model_input
        images = [
            to_rgb(Image.open(io.BytesIO(value))) if isinstance(value, bytes | bytearray) else open_image(str(value))
            for value in values
        ]
        return pd.DataFrame(self._predictor.predict(images), columns=list(self._predictor.class_names))


mlflow.models.set_model(ImageClassifier())
