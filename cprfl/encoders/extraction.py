"""Fills a feature store with what an encoder makes of a manifest's images."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from cprfl.data.feature_store import Features, FeatureStore, FeatureStoreWriter, StoreKey
from cprfl.data.images import BadImage, image_stamp, open_image, report_bad_images
from cprfl.data.manifest import Manifest
from cprfl.encoders.image import ImageEncoder
from cprfl.errors import NonFiniteError, UnreadableImageError
from cprfl.progress import progress


def extract(manifest: Manifest, encoder: ImageEncoder, root: Path, *, on_bad_image: str, report: Path) -> FeatureStore:
    """Features of every image of ``manifest``: found again where they are, computed where they are missing.

    Args:
        manifest: the images.
        encoder: the frozen encoder.
        root: the folder that holds one store per key.
        on_bad_image: ``error`` or ``skip`` (their rows are left out and named in the store).
        report: CSV file that lists the images that cannot be used, if there are any.

    Raises:
        BadImagesError: for ``error``, once all images have been tried.
        NonFiniteError: where the encoder gives NaN or infinity for an image.
    """
    stamps = [tuple(image_stamp(uri)) for uri in manifest.uris]
    images = tuple(zip(manifest.image_ids, manifest.uris, stamps, strict=True))
    key = StoreKey(images, encoder.fingerprint(), encoder.config.views)
    description = encoder.config.model_dump(mode="json") | {"transform": encoder.transform_description}
    writer = FeatureStoreWriter(root, key, description)
    if writer.finished:
        store = FeatureStore.open(str(writer.path))
    else:
        shards, missing = writer.shards(), writer.missing()
        found: list[BadImage] = []
        encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu")
        for number in progress(missing, total=len(missing), what="encoding images (shards)"):
            part = manifest.select(shards[number])
            features, bad = _encode_shard(part, encoder, decode_only=bool(found) and on_bad_image == "error")
            found += bad
            if not found or on_bad_image == "skip":
                assert features is not None
                writer.write(number, features, bad)
        if found and on_bad_image == "error":
            raise report_bad_images(found, len(manifest), report)
        store = writer.finish()
    if store.bad_images:
        error = report_bad_images(store.bad_images, len(manifest), report)
        if on_bad_image == "error":
            raise error
    return store


def check_images(manifest: Manifest, *, on_bad_image: str, report: Path) -> list[BadImage]:
    """Decode every image once, where no features are extracted that would find the bad ones.

    Raises:
        BadImagesError: for ``on_bad_image="error"``, where there are any.
    """
    bad: list[BadImage] = []
    listed = zip(manifest.image_ids, manifest.uris, strict=True)
    for image_id, uri in progress(listed, total=len(manifest), what="checking images"):
        try:
            open_image(uri)
        except UnreadableImageError as unreadable:
            bad.append(BadImage(image_id, uri, str(unreadable)))
    if bad:
        error = report_bad_images(bad, len(manifest), report)
        if on_bad_image == "error":
            raise error
    return bad


def _encode_shard(part: Manifest, encoder: ImageEncoder, decode_only: bool) -> tuple[Features | None, list[BadImage]]:
    """Features of the images that decode (image by image, view by view), and those that do not."""
    device = encoder.mean.device
    bad: list[BadImage] = []
    ids: list[str] = []
    pending: list[torch.Tensor] = []
    grids: list[np.ndarray] = []
    globals_: list[np.ndarray] = []
    views = encoder.config.views

    def encode_pending() -> None:
        with torch.inference_mode():
            encoded = encoder(torch.stack(pending).to(device))
        pending.clear()
        grids.append(encoded.grid_BVD.half().cpu().numpy())
        globals_.append(encoded.global_BE.half().cpu().numpy())

    for image_id, uri in zip(part.image_ids, part.uris, strict=True):
        try:
            image = open_image(uri)
        except UnreadableImageError as error:
            bad.append(BadImage(image_id, uri, str(error)))
            continue
        if decode_only:
            continue
        ids.append(image_id)
        seed = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:4])
        pending += [encoder.transform(image, view, seed) for view in range(views)]
        if len(pending) >= encoder.config.batch_size:
            encode_pending()
    if decode_only:
        return None, bad
    if pending or not grids:
        if not pending:  # every image of the shard is bad: an empty shard still needs its shapes
            pending.append(torch.zeros(3, encoder.image_size, encoder.image_size))
        encode_pending()
    count = len(ids) * views
    grid, global_features = np.concatenate(grids)[:count], np.concatenate(globals_)[:count]
    finite = np.isfinite(grid).all(axis=(1, 2)) & np.isfinite(global_features).all(axis=1)
    if not finite.all():
        image_id = ids[int(np.flatnonzero(~finite)[0]) // views]
        raise NonFiniteError(
            f"image {image_id}: the encoder {encoder.config.model_dump()['model']} gives NaN or infinity in float16; "
            "check its weights and the normalize setting"
        )
    return Features(tuple(np.repeat(ids, views)), np.tile(np.arange(views, dtype=np.int8), len(ids)),
                    grid, global_features), bad  # fmt: skip
