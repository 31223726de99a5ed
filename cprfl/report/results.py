"""A trained model's results, as they lie in its folder: what every report, check and comparison starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cprfl.config import validate
from cprfl.data.feature_store import FeatureStore
from cprfl.data.files import read_record
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.errors import CheckpointError
from cprfl.evaluation.decisions import Decisions, DecisionsConfig
from cprfl.evaluation.metrics import EVALUATE_AGAIN, Evaluation, read_predictions
from cprfl.experiment import Experiment, experiment_of
from cprfl.inference.scoring import EVALUATION, PREDICTIONS, decided_by
from cprfl.preparation import CHECKPOINT, MANIFEST, PREPARED, read_preparation
from cprfl.training.checkpoint import CheckpointInfo, load_info

BASELINES = "baselines"
"""Folder beside the checkpoint: one ``<name>.parquet`` of test logits for each model that this one is compared with."""


@dataclass(frozen=True)
class Results:
    """One model and what it scored.

    Attributes:
        folder: ``outputs/<name>``, or a place below it.
        experiment: that trained it.
        info: the checkpoint's description.
        manifest: its images.
        evaluation: test metrics, percent.
    """

    folder: Path
    experiment: Experiment
    info: CheckpointInfo
    manifest: Manifest
    evaluation: Evaluation

    @classmethod
    def read(cls, folder: Path) -> Results:
        """What lies in a model's folder.

        Raises:
            CheckpointError: where nothing is trained or evaluated there, or what lies there is damaged or not of one
                model.
            DatasetError: where the manifest is damaged.
        """
        info = load_info(folder / CHECKPOINT)
        if not (folder / EVALUATION).exists():
            raise CheckpointError(f"{folder}: trained, but not evaluated; `cprfl evaluate CONFIG` does it")
        evaluation, manifest = Evaluation.read(folder / EVALUATION), Manifest.read(folder / MANIFEST)
        said = read_record(folder / EVALUATION, CheckpointError, EVALUATE_AGAIN)
        if said.get("training_key") != info.training_key or said.get("manifest") != manifest.digest:
            raise CheckpointError(
                f"{folder}: {EVALUATION} is of another training, or of other labels, than what lies beside it; "
                "`cprfl evaluate CONFIG` evaluates anew"
            )
        return cls(folder, experiment_of(info, folder), info, manifest, evaluation)

    @property
    def checkpoint(self) -> Path:
        """The trained model."""
        return self.folder / CHECKPOINT

    @cached_property
    def test(self) -> Manifest:
        """The test images."""
        return self.manifest.split(TEST)

    @cached_property
    def training(self) -> Manifest:
        """The training images, without what was held out of them."""
        return self.manifest.split(TRAIN)

    @cached_property
    def logits(self) -> np.ndarray:
        """Logits [N, C] of the test images."""
        return read_predictions(self.folder / PREDICTIONS, self.test.image_ids)

    @cached_property
    def decisions(self) -> Decisions:
        """Calibration and thresholds of the model."""
        return Decisions.read(self.checkpoint, self.info.class_names)

    @cached_property
    def decisions_config(self) -> DecisionsConfig:
        """By which they were fitted: those of the last evaluation, which may be others than those of the training.

        Raises:
            ConfigError: where another version wrote settings that are no longer known.
        """
        path = self.folder / EVALUATION
        found = decided_by(path)
        return self.experiment.decisions if found is None else validate(DecisionsConfig, found, source=str(path))

    @cached_property
    def baselines(self) -> dict[str, np.ndarray]:
        """Logits [N, C] of the test images by the models that this one is compared with, by their names."""
        files = sorted((self.folder / BASELINES).glob("*.parquet"))
        return {path.stem: read_predictions(path, self.test.image_ids) for path in files}

    @cached_property
    def store(self) -> FeatureStore | None:
        """Cached features of the images; none where the image tower moved."""
        features = read_preparation(self.folder / PREPARED)["features"]
        return FeatureStore.open(features) if features else None
