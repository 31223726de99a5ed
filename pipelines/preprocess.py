"""Stage 1: annotations to a manifest, class names to text embeddings, images to cached features."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from cprfl.data.feature_store import FeatureStore
from cprfl.data.files import fingerprint, write_json
from cprfl.data.images import image_stamps
from cprfl.data.manifest import TRAIN, Manifest
from cprfl.data.stratify import stratify
from cprfl.encoders.extraction import check_images
from cprfl.encoders.text import TextEmbeddings
from cprfl.experiment import Experiment
from pipelines.extraction import extract

VALIDATION = "val"
PREPARED = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """Where the next stages find their input.

    Attributes:
        manifest: path of the images that can be used.
        features: path or URI of their store; empty where the encoder is fine-tuned.
        text_embeddings: path of one embedding per class.
        encoder_fingerprint: of the encoder as it was before any fine-tuning.
        data_fingerprint: of images, labels, encoder and text embeddings.
        metrics: what extracting the features took.
    """

    manifest: str
    features: str
    text_embeddings: str
    encoder_fingerprint: str
    data_fingerprint: str
    metrics: dict[str, float] = field(default_factory=dict)

    def read_manifest(self) -> Manifest:
        """The manifest of the images that have features."""
        return Manifest.read(Path(self.manifest))

    def open_features(self) -> FeatureStore:
        """The feature store."""
        return FeatureStore.open(self.features)

    def read_text_embeddings(self) -> TextEmbeddings:
        """One embedding per class."""
        return TextEmbeddings.read(Path(self.text_embeddings))


def preprocess(experiment: Experiment) -> Prepared:
    """Prepare an experiment's data; what is cached is found again.

    Raises:
        UserError: for annotations, images, weights or embeddings that the user can mend.
    """
    manifest = experiment.dataset.read()
    if experiment.train.validation > 0:
        manifest = _hold_out(manifest, experiment.train.validation, experiment.seed)
    text = embed_class_names(experiment, manifest.class_names)
    metrics: dict[str, float] = {}
    report, on_bad_image = experiment.folder / "bad_images.csv", experiment.dataset.on_bad_image
    if experiment.train.backbone == "finetune":
        features, found = "", check_images(manifest, on_bad_image=on_bad_image, report=report)
        encoder = experiment.encoder.build(experiment.cache_dir).fingerprint()
        images: object = [encoder, image_stamps(manifest.uris)]
    else:
        extraction = extract(manifest, experiment, report=report)
        features, found = extraction.store.folder.uri, extraction.store.bad_images
        encoder = str(extraction.store.description["encoder_fingerprint"])
        images = extraction.store.description["key"]  # says which images and which encoder
        metrics = (
            extraction.metrics if extraction.metrics["extraction/images"] else _earlier_metrics(experiment, features)
        )
    if found:
        bad = {item.image_id for item in found}
        print(f"{len(bad)} images skipped: {report}", file=sys.stderr)
        manifest = manifest.select([row for row, image_id in enumerate(manifest.image_ids) if image_id not in bad])
    path = experiment.folder / "manifest.parquet"
    manifest.write(path)
    data = fingerprint([images, manifest.digest, text.stem])
    prepared = Prepared(str(path), features, str(text), encoder, data, metrics)
    write_json(experiment.folder / PREPARED, asdict(prepared))
    return prepared


def _earlier_metrics(experiment: Experiment, features: str) -> dict[str, float]:
    """What extracting these features took when it was done, if that was for this experiment."""
    record = experiment.folder / PREPARED
    before = json.loads(record.read_text()) if record.exists() else {}
    return dict(before["metrics"]) if before.get("features") == features else {}


def _hold_out(manifest: Manifest, share: float, seed: int) -> Manifest:
    """Move a stratified share of the training images to the validation split."""
    splits = np.array(manifest.splits, dtype=object)
    rows = np.flatnonzero(splits == TRAIN)
    part = stratify(manifest.split(TRAIN).targets(), [1 - share, share], seed)
    splits[rows[part == 1]] = VALIDATION
    return replace(manifest, splits=tuple(splits))


def embed_class_names(experiment: Experiment, class_names: tuple[str, ...]) -> Path:
    """The cached embeddings' file; files given by the user are read anew, they may have changed."""
    config = experiment.text_encoder
    text = config.embed(class_names, experiment.cache_dir)
    key = fingerprint([config.model_dump(mode="json"), text.fingerprint])
    path = experiment.cache_dir / "text" / f"{key}.safetensors"
    if not path.exists():
        text.write(path)
    return path
