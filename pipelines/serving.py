"""The registered model, as MLflow loads it: this file's text is stored with the model instead of a pickle.

It needs nothing of `pipelines`, and the library travels with the model.
"""

import base64
import binascii
import io
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext
from PIL import Image


class ImageClassifier(PythonModel):
    """Takes a column ``image`` of encoded image bytes or of paths; gives one column of probabilities per class."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load checkpoint and encoder from the model's artifacts."""
        from cprfl.predictor import Predictor

        artifacts = {name: Path(path) for name, path in context.artifacts.items()}
        self._predictor = Predictor.load(artifacts["checkpoint"], artifacts["encoder"])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads type hints
        """Probabilities of each class, one row per image."""
        values = model_input["image"] if isinstance(model_input, pd.DataFrame) else model_input
        scores = self._predictor.predict([_image(value) for value in values])
        return pd.DataFrame(scores, columns=list(self._predictor.class_names))


def _image(value: bytes | str) -> Image.Image:
    """An image of its encoded bytes, of a path, or of base64 (what bytes become in a JSON request)."""
    from cprfl.data.images import open_image, to_rgb

    if isinstance(value, str):
        if len(value) < 4096 and Path(value).is_file():
            return open_image(value)
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except binascii.Error:
            raise ValueError(f"{value[:80]!r}: neither an image file nor base64 of one") from None
    return to_rgb(Image.open(io.BytesIO(value)))


mlflow.models.set_model(ImageClassifier())
