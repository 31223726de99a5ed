"""The registered model, as MLflow loads it: it calls `_load_pyfunc` of this module, which travels with the model.

Nothing is pickled, and MLflow itself is not needed here.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from cprfl.data.images import open_image, to_rgb
from cprfl.errors import UnreadableImageError
from cprfl.predictor import Predictor
from cprfl.training.checkpoint import ENCODER

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT = "checkpoint"


class ImageClassifier:
    """Takes a column ``image`` of encoded image bytes or of paths; gives one column of probabilities per class."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: pd.DataFrame | Iterable[bytes | str]) -> pd.DataFrame:
        """Probabilities of each class, one row per image.

        Raises:
            UnreadableImageError: where a value is neither an image, nor the path of one, nor base64 of one.
        """
        import pandas as pd

        values = model_input["image"] if isinstance(model_input, pd.DataFrame) else model_input
        scores = self.predictor.predict([_image(value) for value in values])
        return pd.DataFrame(scores, columns=list(self.predictor.class_names))


def _load_pyfunc(data_path: str) -> ImageClassifier:
    folder = Path(data_path)
    return ImageClassifier(Predictor.load(folder / CHECKPOINT, folder / ENCODER))


def _image(value: bytes | str) -> Image.Image:
    """An image of its encoded bytes, of a path, or of base64 (what bytes become in a JSON request)."""
    if isinstance(value, str):
        if len(value) < 4096 and Path(value).is_file():
            return open_image(value)
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except binascii.Error:
            raise UnreadableImageError(f"{value[:80]!r}: neither an image file nor base64 of one") from None
    try:
        return to_rgb(Image.open(io.BytesIO(value)))
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImageError(f"{len(value)} bytes that do not decode as an image: {error}") from None
