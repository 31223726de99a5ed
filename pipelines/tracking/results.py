"""A run's results, as files: found in the output folder, or fetched from MLflow."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import mlflow

from cprfl.data.files import read_record, write_record
from cprfl.data.manifest import Manifest
from cprfl.errors import CheckpointError
from cprfl.inference.scoring import EVALUATION, PREDICTIONS
from cprfl.preparation import CHECKPOINT, MANIFEST
from pipelines.tracking.store import Store, client, mlflow_mistakes

RUN = "run.json"
"""In a folder of results: the run that made them."""


def write_run(record: Path, run_id: str) -> None:
    """Write down which run made the results in a folder."""
    write_record(record, {"run_id": run_id})


def read_run(record: Path) -> str:
    """The run that `write_run` wrote down.

    Raises:
        CheckpointError: where the file is missing or damaged.
    """
    return str(read_record(record, CheckpointError, "remove it, and `cprfl run CONFIG` trains again")["run_id"])


def is_run_id(word: str) -> bool:
    """Whether this looks like a run's id."""
    return re.fullmatch(r"[0-9a-f]{32}", word) is not None


def local_results(run_id: str, output_dir: Path) -> Path | None:
    """The folder in which a run left its results, if they still lie there; it is said which folders cannot tell."""
    for record in sorted([*output_dir.glob(f"*/{RUN}"), *output_dir.glob(f"*/*/{RUN}")]):
        try:
            if read_run(record) == run_id:
                return record.parent
        except CheckpointError as error:  # MLflow has the results too
            print(error, file=sys.stderr)
    return None


def fetch_results(store: Store, run_id: str, output_dir: Path, folder: Path) -> Path:
    """The folder with a run's results: where it left them if they still lie there, or else fetched into ``folder``.

    Args:
        store: that has the run.
        run_id: of an evaluated training.
        output_dir: where the experiments' folders are, and the manifests by their digests.
        folder: to fetch into.

    Raises:
        CheckpointError: where the run has no results, or its images are not known here.
        TrackingError: where there is no such run.
    """
    if (here := local_results(run_id, output_dir)) is not None:
        return here
    with mlflow_mistakes(store.uri):
        tags = client().get_run(run_id).data.tags
        there = {file.path for file in client().list_artifacts(run_id)}
        for name in (EVALUATION, PREDICTIONS, CHECKPOINT):
            if name not in there:
                raise CheckpointError(f"MLflow run {run_id}: no {name}; only a run that ended well can be compared")
            mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder))
    manifest = output_dir / "cache" / "manifests" / f"{tags.get('dataset_digest')}.parquet"
    if not manifest.exists():
        raise CheckpointError(f"MLflow run {run_id}: its images are not known here ({manifest}); see --output-dir")
    Manifest.read(manifest).write(folder / MANIFEST)
    return folder
