"""Stage 1: annotations to a manifest, class names to text embeddings, images to cached features."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cprfl.data.feature_store import FeatureStore
from cprfl.data.files import fingerprint
from cprfl.data.manifest import TRAIN, Manifest
from cprfl.data.stratify import stratify
from cprfl.encoders.extraction import check_images, extract
from cprfl.encoders.text import TextEmbeddings
from cprfl.experiment import Experiment

VALIDATION = "val"


@dataclass(frozen=True)
class Prepared:
    """Where the next stages find their input; ``features`` is empty where the encoder is fine-tuned."""

    manifest: str
    features: str
    text_embeddings: str

    def read_manifest(self) -> Manifest:
        """The manifest of the images that have features."""
        return Manifest.read(Path(self.manifest))

    def open_features(self) -> FeatureStore:
        """The feature store."""
        return FeatureStore.open(self.features)

    def encoder_fingerprint(self, experiment: Experiment) -> str:
        """Of the encoder as it was before any fine-tuning."""
        if self.features:
            return str(self.open_features().description["encoder_fingerprint"])
        return experiment.encoder.build(experiment.cache_dir).fingerprint()

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
    text = _text_embeddings(experiment, manifest.class_names)
    report, on_bad_image = experiment.folder / "bad_images.csv", experiment.dataset.on_bad_image
    if experiment.train.backbone == "finetune":
        features, found = "", check_images(manifest, on_bad_image=on_bad_image, report=report)
    else:
        encoder = experiment.encoder.build(experiment.cache_dir)
        root = experiment.cache_dir / "features"
        store = extract(manifest, encoder, root, on_bad_image=on_bad_image, report=report)
        features, found = str(store.path), store.bad_images
    if found:
        bad = {item.image_id for item in found}
        print(f"{len(bad)} images skipped: {report}", file=sys.stderr)
        manifest = manifest.select([row for row, image_id in enumerate(manifest.image_ids) if image_id not in bad])
    path = experiment.folder / "manifest.parquet"
    manifest.write(path)
    return Prepared(str(path), features, str(text))


def _hold_out(manifest: Manifest, share: float, seed: int) -> Manifest:
    """Move a stratified share of the training images to the validation split."""
    splits = np.array(manifest.splits, dtype=object)
    rows = np.flatnonzero(splits == TRAIN)
    part = stratify(manifest.split(TRAIN).targets(), [1 - share, share], seed)
    splits[rows[part == 1]] = VALIDATION
    return replace(manifest, splits=tuple(splits))


def _text_embeddings(experiment: Experiment, class_names: tuple[str, ...]) -> Path:
    """The cached embeddings' file; files given by the user are read anew, they may have changed."""
    config = experiment.text_encoder
    text = config.embed(class_names, experiment.cache_dir)
    key = fingerprint([config.model_dump(mode="json"), text.fingerprint])
    path = experiment.cache_dir / "text" / f"{key}.safetensors"
    if not path.exists():
        text.write(path)
    return path
