"""From what a request sent to what the encoder takes, in threads beside the event loop."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image

from cprfl.data.images import TooManyPixelsError
from cprfl.errors import UnreadableImageError
from cprfl.inference.attention import on_grid, part_seen
from cprfl.inference.overlay import overlay
from cprfl.inference.predictor import Predictor
from cprfl.inference.pyfunc import Content, decode_image
from pipelines.serving.batching import Batcher
from pipelines.serving.limits import RefusedError

_THREADS = 4  # Pillow lets other threads run while it decodes and resizes
_SHOWN, _QUALITY = 1024, 85  # longest side and JPEG quality of a picture of where the method looks


class Reader:
    """Reads images and hands them to the batcher.

    Args:
        batcher: scores them.
        pixels: of the largest image that is decoded.
    """

    def __init__(self, batcher: Batcher, pixels: int) -> None:
        self._batcher, self._pixels = batcher, pixels
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="reading")

    async def probabilities(self, predictor: Predictor, images: Sequence[Content]) -> np.ndarray:
        """Calibrated probabilities [N, C] of a request's images.

        Raises:
            RefusedError: 400, naming the first that is no image; 413, where one has too many pixels.
        """
        loop = asyncio.get_running_loop()

        async def one(number: int, image: Content) -> np.ndarray:
            try:
                return await asyncio.wrap_future(
                    await loop.run_in_executor(
                        self._threads,
                        lambda: self._batcher.ask(
                            predictor, predictor.encoder.transform.scored(self._open(predictor, image))
                        ),
                    )
                )
            except UnreadableImageError as error:
                which = f"image {number} of {len(images)}: " if len(images) > 1 else ""
                raise _refusal(error, which) from None

        found = await asyncio.gather(
            *(one(number, image) for number, image in enumerate(images, 1)), return_exceptions=True
        )
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return np.stack(found)  # type: ignore[arg-type]

    async def looks(self, predictor: Predictor, image: Content, class_name: str) -> bytes:
        """The image with where the method looks for a class drawn over it, as JPEG.

        Raises:
            RefusedError: where there is no such class or image, or the method does not tell the parts of it apart.
        """
        if class_name not in predictor.class_names:
            raise RefusedError(422, f"no class {class_name[:80]!r}; /health names them")
        number = predictor.class_names.index(class_name)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._drawn, predictor, image, number)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _open(self, predictor: Predictor, image: Content) -> Image.Image:
        reading = predictor.encoder.transform.reading
        return decode_image(image, replace(reading, max_pixels=min(reading.max_pixels, self._pixels)))

    def _drawn(self, predictor: Predictor, image: Content, number: int) -> bytes:
        try:
            picture = self._open(predictor, image)
        except UnreadableImageError as error:
            raise _refusal(error) from None
        transform = predictor.encoder.transform
        weights_1CV = predictor.attention(transform(picture)[None])
        if weights_1CV is None:
            raise RefusedError(404, "this model does not tell the parts of an image apart")
        seen = part_seen(transform, *picture.size)
        picture.thumbnail((_SHOWN, _SHOWN))
        file = io.BytesIO()
        overlay(picture, on_grid(weights_1CV)[0, number], seen).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


def _refusal(error: UnreadableImageError, which: str = "") -> RefusedError:
    """The answer to an image that is not read."""
    if isinstance(error, TooManyPixelsError):
        return RefusedError(
            413, f"{which}{error.width} x {error.height} pixels are more than {error.limit:,}; send less"
        )
    return RefusedError(400, f"{which}{error}")
