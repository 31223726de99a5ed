"""The registered model, as MLflow loads it: it calls `_load_pyfunc` of this module, which travels with the model.

Nothing is pickled, and MLflow itself is not needed here.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image, UnidentifiedImageError

from cprfl.data.images import DEFAULT_READING, FORMATS, Reading, to_rgb
from cprfl.errors import UnreadableImageError
from cprfl.inference.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT, ENCODER = "checkpoint", "encoder.safetensors"
COLUMN = "image"


Content = bytes | str
ModelInput: TypeAlias = "pd.DataFrame | Mapping[str, Any] | Iterable[Any]"
"""What MLflow and its scoring server hand on: a table, a column, or JSON of either."""


class ImageClassifier:
    """Takes a column ``image`` of encoded image bytes, or base64 of them; gives one column of probabilities per class.

    No value is taken for a path: whoever may ask for scores may not read the server's files.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: ModelInput) -> pd.DataFrame:
        """Calibrated probabilities of each class, one row per image.

        Raises:
            UnreadableImageError: where a value is neither an image nor base64 of one, or there is no column of images.
        """
        import pandas as pd  # which comes with MLflow; the library does without it

        reading = self.predictor.encoder.transform.reading
        scores = self.predictor.predict([decode_image(value, reading) for value in images_of(model_input)])
        return pd.DataFrame(scores, columns=list(self.predictor.class_names))


def images_of(model_input: Any) -> list[Any]:
    """The values that should be images, one after the other.

    Args:
        model_input: a table or a mapping with the column ``image``, a list of its rows or of images, or one image.

    Raises:
        UnreadableImageError: where there is no such column.
    """
    if isinstance(model_input, Content) or not isinstance(model_input, Iterable):
        return [model_input]
    if isinstance(model_input, Mapping) or hasattr(model_input, "columns"):
        table: Any = model_input
        names = [str(name) for name in table]
        if COLUMN not in names:
            raise UnreadableImageError(f'no column "{COLUMN}" among {names}; name the one that holds the images so')
        if names.count(COLUMN) > 1:  # which a table may have; it would be this table again
            raise UnreadableImageError(f'{names.count(COLUMN)} columns are called "{COLUMN}"; give one')
        return images_of(table[COLUMN])
    return [image for value in model_input for image in images_of(value)]  # rows as JSON has them, or images


def decode_image(value: Content, reading: Reading = DEFAULT_READING) -> Image.Image:
    """An image of its encoded bytes, or of their base64, which is what bytes become in a JSON request.

    Raises:
        UnreadableImageError: where it is neither, or none that ``reading`` says how to read.
    """
    if not isinstance(value, Content):
        raise UnreadableImageError(f"{type(value).__name__}: no image; send its bytes, or base64 of them")
    if isinstance(value, str):
        try:
            value = base64.b64decode("".join(value.split()), validate=True)
        except ValueError:  # of base64, or of letters beyond ASCII
            raise UnreadableImageError(
                f"{value[:80]!r}: not base64 of an image; send its bytes, not its path"
            ) from None
    try:
        return to_rgb(Image.open(io.BytesIO(value), formats=FORMATS), reading)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:  # whose message names the object in memory
        raise UnreadableImageError(f"{len(value)} bytes that are no image that Pillow can read") from None
    except Exception as error:  # Pillow's decoders and its reader of EXIF raise whatever a flipped bit leads them to
        raise UnreadableImageError(f"{len(value)} bytes that do not decode as an image: {error}") from None


def _load_pyfunc(data_path: str) -> ImageClassifier:
    folder = Path(data_path)
    return ImageClassifier(Predictor.load(folder / CHECKPOINT, folder / ENCODER))
