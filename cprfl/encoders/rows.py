"""From images to the rows of one shard of a feature store, in steps that may run in different processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cprfl.data.feature_store.shards import Features, ImageRows
from cprfl.data.images import DEFAULT_READING, BadImage, Reading, open_image, report_bad_images
from cprfl.data.manifest import Manifest
from cprfl.encoders.base import ImageEncoder, Transform
from cprfl.errors import NonFiniteError, UnreadableImageError
from cprfl.progress import progress


class Decoded(NamedTuple):
    """The views of a shard's images, ready for the encoder.

    Attributes:
        image_ids: the n images that decode.
        pixels_NK3HW: uint8, K rows each (`ImageRows`).
        bad: the images that do not.
    """

    image_ids: list[str]
    pixels_NK3HW: np.ndarray
    bad: list[BadImage]


def decode(image_ids: Sequence[str], uris: Sequence[str], transform: Transform, views: int) -> Decoded:
    """Open images and make the encoder's input of them: so many views, and crops where those are scored.

    Augmented views follow from the image's id alone.
    """
    rows = ImageRows(views, transform.crops)
    found: list[str] = []
    bad: list[BadImage] = []
    pixels_NK3HW = np.empty((len(image_ids), rows.total, 3, transform.size, transform.size), dtype=np.uint8)
    for image_id, uri in zip(image_ids, uris, strict=True):
        try:
            image = open_image(uri, transform.reading)
        except UnreadableImageError as error:
            bad.append(BadImage(image_id, uri, str(error)))
            continue
        seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4])
        for view in range(views):
            pixels_NK3HW[len(found), view] = transform(image, view, seed).numpy()
        if rows.total > views:
            pixels_NK3HW[len(found), views:] = transform.scored(image).numpy()
        found.append(image_id)
    return Decoded(found, pixels_NK3HW[: len(found)], bad)


@torch.inference_mode()
def encode(image_ids: Sequence[str], pixels_NK3HW: np.ndarray, encoder: ImageEncoder) -> Features:
    """Features of decoded images, encoded in batches that do not depend on what other shards there are.

    Raises:
        NonFiniteError: where the encoder gives NaN or infinity for an image.
    """
    rows = encoder.config.rows_per_image.total
    pixels = torch.from_numpy(pixels_NK3HW).flatten(0, 1)
    if not len(pixels):  # every image of the shard is bad: an empty shard still needs its shapes
        pixels = torch.zeros(1, 3, encoder.image_size, encoder.image_size, dtype=torch.uint8)
    batches = [encoder(batch.to(encoder.mean.device)) for batch in pixels.split(encoder.config.batch_size)]
    grid, global_features = (
        torch.cat([part.half().cpu() for part in parts])[: len(image_ids) * rows].numpy()
        for parts in zip(*batches, strict=True)
    )
    finite = np.isfinite(grid).all(axis=(1, 2)) & np.isfinite(global_features).all(axis=1)
    if not finite.all():
        image_id = image_ids[int(np.flatnonzero(~finite)[0]) // rows]
        raise NonFiniteError(
            f"image {image_id}: the encoder {encoder.config.model_dump()['model']} gives NaN or infinity in float16; "
            "check its weights and the normalize setting"
        )
    ids, numbers = np.repeat(list(image_ids), rows), np.tile(np.arange(rows, dtype=np.int8), len(image_ids))
    return Features(tuple(ids.tolist()), numbers, grid, global_features)


def check_images(
    manifest: Manifest, *, on_bad_image: str, report: Path, reading: Reading = DEFAULT_READING
) -> list[BadImage]:
    """Decode every image once, where no features are extracted that would find the bad ones.

    Args:
        manifest: the images.
        on_bad_image: ``error`` or ``skip``.
        report: CSV file that the bad ones are written to.
        reading: how image files are read.

    Raises:
        BadImagesError: for ``on_bad_image="error"``, where there are any.
    """
    bad: list[BadImage] = []
    listed = zip(manifest.image_ids, manifest.uris, strict=True)
    for image_id, uri in progress(listed, total=len(manifest), what="checking images"):
        try:
            open_image(uri, reading)
        except UnreadableImageError as unreadable:
            bad.append(BadImage(image_id, uri, str(unreadable)))
    if bad:
        error = report_bad_images(bad, len(manifest), report)
        if on_bad_image == "error":
            raise error
    return bad
