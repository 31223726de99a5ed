"""The data set of a run, as MLflow keeps it: name, digest, and how many images and classes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset import Dataset

from cprfl.data.manifest import Manifest
from cprfl.experiment import Experiment
from pipelines.tracking.store import once_more


class ManifestDataset(Dataset):
    """A manifest as MLflow's data set.

    Args:
        name: that people see.
        manifest: its images and labels.
        source: the settings by which it is read.
    """

    def __init__(self, name: str, manifest: Manifest, source: dict[str, Any]) -> None:
        self.manifest = manifest
        super().__init__(CodeDatasetSource(tags={"dataset": json.dumps(source)}), name, manifest.digest[:36])

    def _compute_digest(self) -> str:
        return self.manifest.digest[:36]

    @property
    def schema(self) -> None:
        """None: images have no columns."""
        return None

    @property
    def profile(self) -> dict[str, Any]:
        """Images of each split, labels and classes."""
        images = Counter(self.manifest.splits)
        labels = sum(map(len, self.manifest.labels))
        return {"images": dict(images), "labels": labels, "classes": len(self.manifest.class_names)}

    def to_dict(self) -> dict[str, str]:
        """As MLflow stores it."""
        return {**super().to_dict(), "schema": "null", "profile": json.dumps(self.profile)}


def log_data_set(experiment: Experiment, manifest: Manifest) -> None:
    """Log the data set as the active run's input."""
    place = "" if experiment.dataset.name == "synthetic" else f" {Path(experiment.data_root).name}"
    source = experiment.dataset.model_dump(mode="json", exclude_defaults=True) | {"data_root": experiment.data_root}
    name = f"{experiment.dataset.name}{place}"
    data_set = ManifestDataset(name, manifest, source)
    once_more(lambda: mlflow.log_input(data_set, context="training and test"))
