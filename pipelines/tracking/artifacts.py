"""Files that a run has logged."""

from __future__ import annotations

from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from cprfl.errors import TrackingError
from pipelines.tracking.store import Store, mlflow_mistakes, without_password


def download_artifact(store: Store, run_id: str, name: str, folder: Path) -> Path:
    """Download a file of a run into a folder.

    Raises:
        TrackingError: where the store has no such run, or the run no such file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mlflow_mistakes(store.uri):
        try:
            return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder)))
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise TrackingError(
                f"run {run_id}: no {name} in {without_password(store.uri)} ({reason}); `cprfl evaluate CONFIG` makes it"
            ) from None
