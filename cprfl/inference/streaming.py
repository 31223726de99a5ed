"""Any number of images scored one batch after the other, while threads read the next ones."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cprfl.data.ahead import read_ahead
from cprfl.data.filesystems import is_remote
from cprfl.data.images import BadImage, open_image
from cprfl.encoders.base import Transform
from cprfl.errors import StorageError, UnreadableImageError
from cprfl.inference.attention import Part, on_grid, part_seen
from cprfl.inference.predictor import Predictor

_AHEAD = 2  # batches that are read while one is encoded
_REMOTE_READERS = 16  # threads, where reading is waiting
_SHOWN = 1024  # longest side of a picture that is kept to be drawn on


@dataclass(frozen=True)
class Look:
    """Where the method looks in an image, and what there is to see.

    Attributes:
        picture: the image, no larger than 1024 pixels.
        weights_CHW: of the cells, for each class.
        seen: the part of it that the cells cover.
    """

    picture: Image.Image
    weights_CHW: np.ndarray
    seen: Part


@dataclass(frozen=True)
class ScoredImage:
    """An image's scores.

    Attributes:
        uri: its path or URI.
        probability_C: calibrated.
        look: where it was asked for and the method tells cells apart.
    """

    uri: str
    probability_C: np.ndarray
    look: Look | None = None


@dataclass(frozen=True)
class _ReadImage:
    """An image as the encoder takes it: the rows that are scored, and where it is to be drawn on the plain view."""

    uri: str
    pixels_K3HW: Tensor
    plain_3HW: Tensor | None = None
    picture: Image.Image | None = None
    seen: Part | None = None


def stream_scores(
    predictor: Predictor, uris: Sequence[str], *, looks: bool = False, readers: int | None = None
) -> Iterator[list[ScoredImage | BadImage]]:
    """Score images in their order, a batch at a time; one that cannot be read stands among the others with the reason.

    Not more than three batches are in memory. Reading is done by threads, since Pillow lets other threads run while it
    decodes and resizes.

    Args:
        predictor: scores them.
        uris: paths or URIs.
        looks: give pictures and where the method looks too.
        readers: threads; unless given one per CPU, and 16 where images are remote.
    """
    read = functools.partial(_read, transform=predictor.encoder.transform, keep=looks)
    if readers is None:
        readers = _REMOTE_READERS if any(map(is_remote, uris)) else os.cpu_count() or 1
    batch: list[_ReadImage | BadImage] = []
    for image in read_ahead(read, uris, _AHEAD * predictor.batch_size, readers):
        batch.append(image)
        if len(batch) == predictor.batch_size:
            yield _scored(predictor, batch)
            batch = []
    if batch:
        yield _scored(predictor, batch)


def _read(uri: str, transform: Transform, keep: bool) -> _ReadImage | BadImage:
    try:
        image = open_image(uri, transform.reading)
    except (UnreadableImageError, StorageError) as error:  # one dead web server says nothing about the next image
        return BadImage(uri, uri, str(error))
    pixels_K3HW = transform.scored(image)
    if not keep:
        return _ReadImage(uri, pixels_K3HW)
    plain_3HW = pixels_K3HW[0] if transform.crops == 1 else transform(image)
    seen = part_seen(transform, *image.size)
    image.thumbnail((_SHOWN, _SHOWN))
    return _ReadImage(uri, pixels_K3HW, plain_3HW, image, seen)


def _scored(predictor: Predictor, batch: Sequence[_ReadImage | BadImage]) -> list[ScoredImage | BadImage]:
    read = [image for image in batch if isinstance(image, _ReadImage)]
    if not read:
        return list(batch)  # type: ignore[arg-type]
    probability_NC = predictor.probabilities(torch.stack([image.pixels_K3HW for image in read]))
    looks = _looks(predictor, read)
    scored = iter(
        ScoredImage(image.uri, probability_C, look)
        for image, probability_C, look in zip(read, probability_NC, looks, strict=True)
    )
    return [next(scored) if isinstance(image, _ReadImage) else image for image in batch]


def _looks(predictor: Predictor, read: Sequence[_ReadImage]) -> list[Look | None]:
    plain = [image.plain_3HW for image in read if image.plain_3HW is not None]
    weights_NCV = predictor.attention(torch.stack(plain)) if plain else None
    if weights_NCV is None:
        return [None] * len(read)
    found: list[Look | None] = []
    for image, weights_CHW in zip(read, on_grid(weights_NCV), strict=True):
        assert image.picture is not None and image.seen is not None
        found.append(Look(image.picture, weights_CHW, image.seen))
    return found
