"""Features of a data set's images: found again where they are cached, encoded where they are missing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from cprfl.data.ahead import read_ahead
from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import StoreInProgress, StoreKey
from cprfl.data.feature_store.shards import shard_name, write_shard
from cprfl.data.images import BadImage, report_bad_images
from cprfl.data.manifest import Manifest
from cprfl.data.storage import Folder
from cprfl.encoders.base import ImageEncoder
from cprfl.encoders.rows import Decoded, decode, encode
from cprfl.experiment import Experiment
from cprfl.progress import progress, say
from cprfl.words import counted

_BYTES_AHEAD = 512 * 2**20  # of decoded pixels that wait for the encoder


class ShardJob(NamedTuple):
    """A shard of a feature store that is to be made: its number and its images."""

    number: int
    image_ids: list[str]
    uris: list[str]


class ShardDone(NamedTuple):
    """What came of a shard: its images, how many were encoded just now, and those that cannot be used."""

    images: int
    encoded: int
    bad: list[BadImage]


Fill = Callable[[Sequence[ShardJob], Experiment, ImageEncoder, Folder], Iterator[ShardDone]]
"""Makes shards in a store's folder, here or elsewhere; gives them as they are done."""


def find_or_encode(
    manifest: Manifest, experiment: Experiment, encoder: ImageEncoder, key: StoreKey, fill: Fill, report: Path
) -> tuple[FeatureStore, dict[str, float]]:
    """Features of every image of ``manifest``: found again where they are, computed where they are missing.

    Two calls for the same store, on one machine or on two, share the work.

    Returns:
        The finished store, and ``extraction/images`` that this call encoded, ``/images_per_second``, ``/bad_images``.

    Raises:
        BadImagesError: for ``dataset.on_bad_image: error``, once all images have been tried; ``report`` lists them.
        NonFiniteError: where the encoder gives NaN or infinity for an image.
        StorageError: where images or store cannot be reached.
    """
    description = encoder.config.model_dump(mode="json") | {"transform": encoder.transform_description}
    target = StoreInProgress(experiment.feature_root, key, description)
    started, encoded = time.monotonic(), 0
    if target.finished:
        store = FeatureStore.open(target.folder.uri)
    else:
        jobs = [
            ShardJob(number, [manifest.image_ids[row] for row in rows], [manifest.uris[row] for row in rows])
            for number in target.missing()
            for rows in [key.shards()[number]]
        ]
        found: list[BadImage] = []
        total = sum(len(job.image_ids) for job in jobs)
        shards = fill(jobs, experiment, encoder, target.folder) if jobs else iter(())
        for done in progress(shards, total, "encoding images", size=lambda shard: shard.images):
            found += done.bad
            encoded += done.encoded
        if found and experiment.dataset.on_bad_image == "error":
            raise report_bad_images(found, len(manifest), report)
        store = target.finish()
    if store.bad_images:
        error = report_bad_images(store.bad_images, len(manifest), report)
        if experiment.dataset.on_bad_image == "error" or not store.num_images:
            raise error
    seconds = time.monotonic() - started
    metrics = {"extraction/images": float(encoded), "extraction/bad_images": float(len(store.bad_images))}
    if encoded:
        metrics["extraction/images_per_second"] = encoded / seconds
        say(f"encoded {counted(encoded, 'image')} in {seconds:.0f} s, {encoded / seconds:.1f}/s")
    return store, metrics


def fill_here(
    jobs: Sequence[ShardJob], experiment: Experiment, encoder: ImageEncoder, folder: Folder
) -> Iterator[ShardDone]:
    """Make shards in this process: images are decoded in threads while those before are encoded."""
    views, cpus = encoder.config.views, os.cpu_count() or 1
    image_bytes = encoder.config.rows_per_image.total * 3 * encoder.image_size**2
    shard_bytes = max(len(job.image_ids) for job in jobs) * image_bytes
    ahead = max(1, min(cpus, _BYTES_AHEAD // shard_bytes))
    skip_bad = experiment.dataset.on_bad_image == "skip"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def decoded(job: ShardJob) -> tuple[ShardJob, Decoded]:
        return job, decode(job.image_ids, job.uris, encoder.transform, views)

    with _on(device, encoder), closing(read_ahead(decoded, jobs, ahead, cpus)) as upcoming:
        for job, found in upcoming:
            if folder.exists(shard_name(job.number)):  # another run made it meanwhile
                yield ShardDone(len(job.image_ids), 0, [])
            elif found.bad and not skip_bad:
                yield ShardDone(len(job.image_ids), 0, found.bad)
            else:
                features = encode(found.image_ids, found.pixels_NK3HW, encoder)
                write_shard(folder, job.number, features, found.bad)
                yield ShardDone(len(job.image_ids), len(found.image_ids), found.bad)


@contextmanager
def _on(device: torch.device, encoder: ImageEncoder) -> Iterator[None]:
    """Have the encoder on a device while the block lasts."""
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to("cpu")
