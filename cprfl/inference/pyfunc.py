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

from cprfl.data.images import DEFAULT_READING, Reading, to_rgb
from cprfl.errors import UnreadableImageError
from cprfl.inference.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT, ENCODER = "checkpoint", "encoder.safetensors"


class ImageClassifier:
    """Takes a column ``image`` of encoded image bytes, or base64 of them; gives one column of probabilities per class.

    No value is taken for a path: whoever may ask for scores may not read the server's files.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: pd.DataFrame | Iterable[bytes | str]) -> pd.DataFrame:
        """Probabilities of each class, one row per image.

        Raises:
            UnreadableImageError: where a value is neither an image nor base64 of one.
        """
        import pandas as pd  # which comes with MLflow; the library does without it

        reading = self.predictor.encoder.transform.reading
        values = model_input["image"] if isinstance(model_input, pd.DataFrame) else model_input
        scores = self.predictor.predict([decode_image(value, reading) for value in values])
        return pd.DataFrame(scores, columns=list(self.predictor.class_names))


def decode_image(value: bytes | str, reading: Reading = DEFAULT_READING) -> Image.Image:
    """An image of its encoded bytes, or of their base64, which is what bytes become in a JSON request.

    Raises:
        UnreadableImageError: where it is neither.
    """
    if isinstance(value, str):
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except binascii.Error:
            raise UnreadableImageError(
                f"{value[:80]!r}: not base64 of an image; send its bytes, not its path"
            ) from None
    try:
        return to_rgb(Image.open(io.BytesIO(value)), reading)
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImageError(f"{len(value)} bytes that do not decode as an image: {error}") from None


def _load_pyfunc(data_path: str) -> ImageClassifier:
    folder = Path(data_path)
    return ImageClassifier(Predictor.load(folder / CHECKPOINT, folder / ENCODER))
