"""From an experiment to its data: annotations to a manifest, class names to embeddings, images to cached features."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cprfl.data.checks import missing_images, where_it_may_be
from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import StoreKey
from cprfl.data.files import fingerprint, read_record, write_aside, write_record
from cprfl.data.images import image_stamps
from cprfl.data.long_tail import hold_out
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from cprfl.data.stratify import stratify
from cprfl.encoders.adapters import load_moved_state
from cprfl.encoders.base import ImageEncoder
from cprfl.encoders.rows import check_images
from cprfl.encoders.text import TextEmbeddings
from cprfl.errors import CheckpointError, DatasetError
from cprfl.experiment import Experiment, experiment_of
from cprfl.feature_cache import Fill, fill_here, find_or_encode
from cprfl.progress import say
from cprfl.reading import read_data
from cprfl.training.checkpoint import load_info, load_tower
from cprfl.words import counted

PREPARED, MANIFEST, CHECKPOINT = "prepared.json", "manifest.parquet", "checkpoint"
BAD_IMAGES = "bad_images.csv"


class EncoderOnce:
    """An experiment's image encoder as it is before its training, built and hashed once; it is not to be changed."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._build = functools.cache(functools.partial(build_encoder, experiment))

    def __call__(self) -> ImageEncoder:
        """The encoder, frozen, on the CPU."""
        return self._build()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of its settings, transform and weights."""
        return self().fingerprint()

    def serves(self, other: Experiment) -> bool:
        """Whether another experiment starts from the same encoder."""
        mine = self.experiment
        same = mine.encoder == other.encoder and mine.cache_dir == other.cache_dir
        return same and mine.first_experiment is None and other.first_experiment is None


@dataclass(frozen=True)
class Prepared:
    """An experiment's data, ready to train and evaluate on.

    Attributes:
        manifest: the images that can be used, with what is held out for validation.
        text: one embedding per class.
        store: cached features of all images; none where the image tower moves.
        encoder: gives the image encoder.
        record: where all this lies, and what images and encoder are named by, for another process (`read_prepared`).
        metrics: what extracting the features took.
    """

    manifest: Manifest
    text: TextEmbeddings
    store: FeatureStore | None
    encoder: EncoderOnce
    record: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def encoder_fingerprint(self) -> str:
        """Of the encoder as it is before this experiment's training."""
        return str(self.record["encoder_fingerprint"])

    @functools.cached_property
    def data_fingerprint(self) -> str:
        """Of images, labels, encoder and text embeddings."""
        return fingerprint([self.record["images"], self.manifest.digest, self.text.fingerprint])

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
    encoder: EncoderOnce | None = None,
    fill: Fill | None = None,
) -> Prepared:
    """Prepare an experiment's data; what is cached is found again.

    What can be known before images are encoded is said before.

    Args:
        experiment: names the data and what is made of them.
        manifest: what the data set says, where it has been read already.
        needs: splits that must have images that show a class, beside those that the training itself needs.
        encoder: of an experiment before; it is taken where it serves this one.
        fill: encodes what is missing; in this process unless given.

    Raises:
        UserError: for annotations, images, weights or embeddings that the user can mend.
    """
    manifest = read_data(experiment) if manifest is None else manifest
    needs = {*needs, TRAIN, *_selection_splits(experiment)}
    split = _split(manifest, experiment)
    _check_splits(split, needs, experiment)
    say(f"{experiment.name}: looking for {counted(len(manifest), 'image')}")
    stamps = image_stamps(manifest.uris)
    _check_files(manifest, stamps, experiment)
    say(f"{experiment.name}: names of {counted(len(manifest.class_names), 'class')} ({experiment.text_encoder.name})")
    text, text_path = experiment.text_encoder.find_or_embed(manifest.class_names, experiment.cache_dir)
    encoder = encoder if encoder is not None and encoder.serves(experiment) else EncoderOnce(experiment)
    say(f"{experiment.name}: loading the encoder ({_named(experiment)})")
    report, store, metrics = experiment.folder / BAD_IMAGES, None, dict[str, float]()
    if experiment.train.moves_tower:
        bad = check_images(
            manifest, on_bad_image=experiment.dataset.on_bad_image, report=report, reading=experiment.encoder.reading
        )
        images: object = [encoder.fingerprint, stamps]
    else:
        key = StoreKey(
            tuple(zip(manifest.image_ids, manifest.uris, stamps, strict=True)), encoder.fingerprint,
            experiment.encoder.views, experiment.encoder.crops, experiment.encoder.max_pixels,
        )  # fmt: skip
        store, metrics = find_or_encode(manifest, experiment, encoder(), key, fill or fill_here, report)
        bad, images = store.bad_images, store.description["key"]
    if bad:
        print(f"{counted(len(bad), 'image')} skipped: {report}", file=sys.stderr)
        skipped = {item.image_id for item in bad}
        manifest = manifest.select([row for row, image in enumerate(manifest.image_ids) if image not in skipped])
        split = _split(manifest, experiment)
        _check_splits(split, needs, experiment)
    manifest = split
    manifest.write(experiment.folder / MANIFEST)
    # Workers read a copy that is named by what it says: the next command may overwrite the experiment's.
    copy = experiment.cache_dir / "manifests" / f"{manifest.digest}.parquet"
    with write_aside(copy) as aside:  # one that is there may be damaged
        shutil.copyfile(experiment.folder / MANIFEST, aside)
    record = {
        "manifest": str(copy),
        "features": store.folder.uri if store is not None else None,
        "text_embeddings": str(text_path),
        "encoder_fingerprint": encoder.fingerprint,
        "images": images,
    }
    if store is not None and not metrics["extraction/images"]:
        metrics = _earlier_metrics(experiment, store)
    write_record(experiment.folder / PREPARED, record | {"metrics": metrics})
    return Prepared(manifest, text, store, encoder, record, metrics)


def read_preparation(path: Path) -> dict[str, Any]:
    """What ``prepared.json`` says: the record that `read_prepared` takes, and what extracting the features took.

    Raises:
        DatasetError: where the file is missing or damaged.
    """
    return read_record(path, DatasetError, "`cprfl preprocess CONFIG` writes it anew")


def read_prepared(experiment: Experiment, record: dict[str, Any]) -> Prepared:
    """What another process prepared, from the record of where it lies."""
    features = record["features"]
    return Prepared(
        Manifest.read(Path(record["manifest"])),
        TextEmbeddings.read(Path(record["text_embeddings"])),
        FeatureStore.open(features) if features else None,
        EncoderOnce(experiment),
        record,
    )


def build_encoder(experiment: Experiment) -> ImageEncoder:
    """The image encoder as it is before this experiment's training: the configured one, or what the first made of it.

    torch's random state stays as it is, whatever is drawn on the way.

    Raises:
        CheckpointError: where the first experiment is not trained, or was trained with other settings.
        WeightsError: where weights cannot be had.
    """
    before, training = experiment.first_experiment, experiment.tower_training
    with torch.random.fork_rng(devices=[]):
        encoder = experiment.encoder.build(experiment.cache_dir)
        if before is None or training is None:
            return encoder
        folder = before.folder / CHECKPOINT
        info = load_info(folder)
        if experiment_of(info, folder).training_fingerprint != before.training_fingerprint:
            raise CheckpointError(
                f"{folder}: trained with other settings than `first` has now; `cprfl run CONFIG` trains it"
            )
        state = load_tower(folder)
        load_moved_state(encoder, training.backbone, training.finetune.adapter_width, state, str(folder))
    return encoder


def selection_split(experiment: Experiment) -> str:
    """The split whose metrics are taken after each epoch."""
    return TEST if experiment.protocol == "published" else VALIDATION


def _named(experiment: Experiment) -> str:
    return f"{experiment.encoder.name} {experiment.encoder.model}"


def _selection_splits(experiment: Experiment) -> set[str]:
    selects = experiment.train.validation > 0 or experiment.selects == "best" or experiment.protocol == "published"
    return {selection_split(experiment)} if selects else set()


def _split(manifest: Manifest, experiment: Experiment) -> Manifest:
    """Hold a stratified share of the training images out for validation, where that is asked for."""
    share = experiment.train.validation
    if share == 0:
        return manifest
    part = stratify(manifest.split(TRAIN).labels, [1 - share, share], experiment.seed)
    return hold_out(manifest, part == 1)


def _check_splits(manifest: Manifest, needs: Collection[str], experiment: Experiment) -> None:
    """Refuse splits that nothing can be learned from or measured on, with their names."""
    for name in sorted(needs):
        split = manifest.split(name)
        held_out = name == VALIDATION and experiment.train.validation > 0
        mend = f"raise train.validation ({experiment.train.validation:g})" if held_out else f"dataset.splits.{name}"
        if not len(split):
            dealt = "" if held_out or name == TRAIN else f", or let dataset.split.{name}: 0.2 make one"
            raise DatasetError(f"split {name}: no image that can be used; {'' if held_out else 'give '}{mend}{dealt}")
        if not any(split.labels):
            raise DatasetError(
                f"split {name}: none of its {len(split)} images shows a class; {'' if held_out else 'see '}{mend}"
            )
    if manifest.unknown and not manifest.split(TRAIN).any_absent:
        raise DatasetError(
            "split train: of no image and class is it known that the image does not show it, so nothing can be told "
            "apart; see dataset.uncertain and dataset.unmentioned"
        )
    training, workers = len(manifest.split(TRAIN)), experiment.resources.world_size
    if workers > training:
        raise DatasetError(f"split train: {training} images for {workers} workers; lower resources.num_workers")


def _check_files(manifest: Manifest, stamps: Sequence[tuple[int, ...]], experiment: Experiment) -> None:
    """Refuse images before any is encoded where some are not there."""
    report = experiment.folder / BAD_IMAGES
    report.unlink(missing_ok=True)  # of an earlier preparation
    missing = missing_images(manifest, stamps)
    if len(missing) == len(manifest):
        guess = where_it_may_be(missing[0].uri, experiment.data_root)
        none = "the only image is not" if len(missing) == 1 else f"none of the {len(missing)} images is"
        raise DatasetError(f"{none} there, the first of them {missing[0].uri}; {guess}")
    if missing and experiment.dataset.on_bad_image == "error":
        there = "image is" if len(missing) == 1 else "images are"
        print(f"{len(missing)} {there} not there; looking for others that cannot be read", file=sys.stderr)
        check_images(manifest, on_bad_image="error", report=report, reading=experiment.encoder.reading)


def _earlier_metrics(experiment: Experiment, store: FeatureStore) -> dict[str, float]:
    """What extracting these features took when it was done, if that was for this experiment."""
    record, before = experiment.folder / PREPARED, dict[str, Any]()
    if record.exists():
        try:
            before = read_preparation(record)
        except DatasetError as error:
            print(error, file=sys.stderr)
    nothing = {"extraction/images": 0.0, "extraction/bad_images": float(len(store.bad_images))}
    return dict(before["metrics"]) if before.get("features") == store.folder.uri else nothing
