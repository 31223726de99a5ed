"""From an experiment to its data: annotations to a manifest, class names to embeddings, images to cached features."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import StoreKey
from cprfl.data.files import fingerprint, write_json
from cprfl.data.images import image_stamps
from cprfl.data.long_tail import hold_out
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from cprfl.data.stratify import stratify
from cprfl.encoders.adapters import load_moved_state
from cprfl.encoders.base import ImageEncoder
from cprfl.encoders.rows import check_images
from cprfl.encoders.text import TextEmbeddings
from cprfl.errors import CheckpointError, DatasetError
from cprfl.experiment import Experiment
from cprfl.feature_cache import Fill, fill_here, find_or_encode
from cprfl.training.checkpoint import load_info, load_tower

PREPARED, CHECKPOINT = "prepared.json", "checkpoint"


@dataclass(frozen=True)
class Prepared:
    """An experiment's data, ready to train and evaluate on.

    Attributes:
        manifest: the images that can be used, with what is held out for validation.
        text: one embedding per class.
        store: cached features of all images; none where the image tower moves.
        encoder: gives the image encoder as it is before this experiment's training, built once; not to be changed.
        encoder_fingerprint: its fingerprint.
        data_fingerprint: of images, labels, encoder and text embeddings.
        record: where all this lies, for another process (`read_prepared`).
        metrics: what extracting the features took.
    """

    manifest: Manifest
    text: TextEmbeddings
    store: FeatureStore | None
    encoder: Callable[[], ImageEncoder]
    encoder_fingerprint: str
    data_fingerprint: str
    record: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)

    def training_key(self, experiment: Experiment) -> str:
        """Names one training: interrupted, it is gone on with under this key; a changed one starts anew."""
        return fingerprint([experiment.training_fingerprint, self.data_fingerprint])

    def with_manifest(self, manifest: Manifest, path: Path) -> Prepared:
        """The same data, split in another way; the manifest is written to ``path``."""
        manifest.write(path)
        return replace(self, manifest=manifest, record=self.record | {"manifest": str(path)})

    def with_text(self, text: TextEmbeddings, path: Path) -> Prepared:
        """The same data with other text embeddings."""
        return replace(self, text=text, record=self.record | {"text_embeddings": str(path)})


def prepare(
    experiment: Experiment,
    *,
    manifest: Manifest | None = None,
    needs: Collection[str] = (),
    fill: Fill | None = None,
) -> Prepared:
    """Prepare an experiment's data; what is cached is found again.

    What can be known before images are encoded is said before.

    Args:
        experiment: names the data and what is made of them.
        manifest: what the data set says, where it has been read already.
        needs: splits that must have images that show a class, beside those that the training itself needs.
        fill: encodes what is missing; in this process unless given.

    Raises:
        UserError: for annotations, images, weights or embeddings that the user can mend.
    """
    manifest = experiment.dataset.read() if manifest is None else manifest
    needs = {*needs, TRAIN, *_selection_splits(experiment)}
    _check_splits(_split(manifest, experiment), needs, experiment)
    text, text_path = experiment.text_encoder.find_or_embed(manifest.class_names, experiment.cache_dir)
    encoder = functools.cache(functools.partial(build_encoder, experiment))
    encoder_fingerprint = encoder().fingerprint()
    report, store, metrics = experiment.folder / "bad_images.csv", None, dict[str, float]()
    report.unlink(missing_ok=True)  # of an earlier preparation
    stamps = image_stamps(manifest.uris)
    if experiment.train.moves_tower:
        bad = check_images(manifest, on_bad_image=experiment.dataset.on_bad_image, report=report)
        images: object = [encoder_fingerprint, stamps]
    else:
        key = StoreKey(
            tuple(zip(manifest.image_ids, manifest.uris, stamps, strict=True)), encoder_fingerprint,
            experiment.encoder.views,
        )  # fmt: skip
        store, metrics = find_or_encode(manifest, experiment, encoder(), key, fill or fill_here, report)
        bad, images = store.bad_images, store.description["key"]
    if bad:
        print(f"{len(bad)} images skipped: {report}", file=sys.stderr)
        skipped = {item.image_id for item in bad}
        manifest = manifest.select([row for row, image in enumerate(manifest.image_ids) if image not in skipped])
    manifest = _split(manifest, experiment)
    if bad:
        _check_splits(manifest, needs, experiment)
    path = experiment.folder / "manifest.parquet"
    manifest.write(path)
    record = {
        "manifest": str(path),
        "features": store and store.folder.uri,
        "text_embeddings": str(text_path),
        "encoder_fingerprint": encoder_fingerprint,
        "data_fingerprint": fingerprint([images, manifest.digest, text.fingerprint]),
    }
    if store is not None and not metrics["extraction/images"]:
        metrics = _earlier_metrics(experiment, store)
    write_json(experiment.folder / PREPARED, record | {"metrics": metrics})
    return Prepared(
        manifest, text, store, encoder, encoder_fingerprint, str(record["data_fingerprint"]), record, metrics
    )


def read_prepared(experiment: Experiment, record: dict[str, Any]) -> Prepared:
    """What another process prepared, from the record of where it lies."""
    features = record["features"]
    return Prepared(
        Manifest.read(Path(record["manifest"])),
        TextEmbeddings.read(Path(record["text_embeddings"])),
        FeatureStore.open(features) if features else None,
        functools.cache(functools.partial(build_encoder, experiment)),
        record["encoder_fingerprint"],
        record["data_fingerprint"],
        record,
    )


def build_encoder(experiment: Experiment) -> ImageEncoder:
    """The image encoder as it is before this experiment's training: the configured one, or what the first made of it.

    Raises:
        CheckpointError: where the first experiment is not trained.
        WeightsError: where weights cannot be had.
    """
    encoder = experiment.encoder.build(experiment.cache_dir)
    before, training = experiment.first_experiment, experiment.tower_training
    if before is not None and training is not None:
        folder = before.folder / CHECKPOINT
        if not load_info(folder).holds_tower:
            raise CheckpointError(f"{folder}: holds no image tower; `cprfl run CONFIG` trains it")
        state = load_tower(folder)
        load_moved_state(encoder, training.backbone, training.finetune.adapter_width, state, str(folder))
    return encoder


def selection_split(experiment: Experiment) -> str:
    """The split whose metrics are taken after each epoch."""
    return TEST if experiment.protocol == "published" else VALIDATION


def _selection_splits(experiment: Experiment) -> set[str]:
    selects = experiment.train.validation > 0 or experiment.protocol == "published"
    return {selection_split(experiment)} if selects else set()


def _split(manifest: Manifest, experiment: Experiment) -> Manifest:
    """Hold a stratified share of the training images out for validation, where that is asked for."""
    share = experiment.train.validation
    if share == 0:
        return manifest
    part = stratify(manifest.split(TRAIN).targets(), [1 - share, share], experiment.seed)
    return hold_out(manifest, part == 1)


def _check_splits(manifest: Manifest, needs: Collection[str], experiment: Experiment) -> None:
    """Refuse splits that nothing can be learned from or measured on, with their names."""
    for name in sorted(needs):
        split = manifest.split(name)
        held_out = name == VALIDATION and experiment.train.validation > 0
        mend = f"raise train.validation ({experiment.train.validation:g})" if held_out else f"dataset.splits.{name}"
        if not len(split):
            raise DatasetError(f"split {name}: no image that can be used; {'' if held_out else 'give '}{mend}")
        if not any(split.labels):
            raise DatasetError(
                f"split {name}: none of its {len(split)} images shows a class; {'' if held_out else 'see '}{mend}"
            )
    training, workers = len(manifest.split(TRAIN)), experiment.resources.world_size
    if workers > training:
        raise DatasetError(f"split train: {training} images for {workers} workers; lower resources.num_workers")


def _earlier_metrics(experiment: Experiment, store: FeatureStore) -> dict[str, float]:
    """What extracting these features took when it was done, if that was for this experiment."""
    record = experiment.folder / PREPARED
    before = json.loads(record.read_text()) if record.exists() else {}
    nothing = {"extraction/images": 0.0, "extraction/bad_images": float(len(store.bad_images))}
    return dict(before["metrics"]) if before.get("features") == store.folder.uri else nothing
