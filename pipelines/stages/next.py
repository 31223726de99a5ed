"""`cprfl next`: which images of a pool to label next, by a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cprfl.data.checks import copies_of
from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.images import BadImage
from cprfl.data.long_tail import class_counts
from cprfl.errors import DatasetError
from cprfl.experiment import Experiment
from cprfl.inference.pool import encode_pool
from cprfl.inference.predictor import Predictor
from cprfl.inference.sources import find_images
from cprfl.models.pooled import pooled
from cprfl.report.findings.label_next import Next, label_next, standardised
from cprfl.report.results import Results

_BATCH = 256


@dataclass(frozen=True)
class FoundNext:
    """What to label next, and what became of the rest.

    Attributes:
        found: the chosen images.
        num_pool: images of the pool that were looked at.
        num_known: files of the pool that the data set has already, under whatever name.
        bad: images of the pool that cannot be read.
    """

    found: Next
    num_pool: int
    num_known: int
    bad: tuple[BadImage, ...]


def next_images(experiment: Experiment, pool: Sequence[str], count: int) -> FoundNext:
    """Choose images of a pool by the trained model of an experiment.

    Args:
        experiment: is trained and evaluated.
        pool: folders, patterns, lists and files, see `cprfl.inference.sources.find_images`.
        count: how many to choose.

    Raises:
        CheckpointError: where nothing is trained.
        DatasetError: where the pool has no image that is not in the data set already.
        StorageError: where a storage cannot be reached.
    """
    results = Results.read(experiment.folder)
    everything = find_images(pool)
    known = {_place(uri) for uri in results.manifest.uris}
    elsewhere = [uri for uri in everything if _place(uri) not in known]
    copies = copies_of(results.manifest, elsewhere)
    uris = [uri for uri in elsewhere if uri not in copies]
    if not uris:
        raise DatasetError(f"{', '.join(pool)}: all {len(everything)} images are in the data set already")
    predictor = Predictor.load(results.checkpoint)
    seen = encode_pool(predictor, uris)
    features_NF, labelled_MF = standardised(seen.features_NF, _training_features(results, seen.features_NF.shape[1]))
    counts_C = class_counts(results.manifest)
    chosen = label_next(seen.probability_NC, features_NF, labelled_MF, counts_C, count)
    rows = [item.row for item in chosen]
    probability_NC = seen.probability_NC[rows]
    found = Next(
        tuple(seen.uris[row] for row in rows),
        tuple(chosen),
        probability_NC,
        probability_NC >= predictor.decisions.threshold_C.astype(np.float32),
        predictor.class_names,
    )
    return FoundNext(found, len(uris), len(everything) - len(uris), seen.bad)


def _place(uri: str) -> str:
    return uri if is_remote(uri) else str(local_path(uri).resolve())


def _training_features(results: Results, width: int) -> np.ndarray:
    """Features [M, F] of the training images, as `encode_pool` makes them; none where the image tower moved."""
    if results.store is None:
        return np.empty((0, width), dtype=np.float16)
    batches = results.store.subset(results.training.image_ids).iter_batches(_BATCH, views="plain")
    return np.concatenate([pooled(batch.grid_BVD.float()).half().numpy() for batch in batches])
