"""Registered models by the names under which people know them, in the store that MLflow points at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException

from cprfl.data.temporary import temporary_folder
from cprfl.errors import CheckpointError
from cprfl.inference.predictor import Predictor
from pipelines.tracking import registry
from pipelines.tracking.registry import RegisteredModel
from pipelines.tracking.store import Store, answers, client, open_existing_store, unreachable

SCHEME = "models:/"


def resolve(model: str) -> tuple[str, str]:
    """Name and version that ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS`` stands for at this moment.

    Raises:
        CheckpointError: where there is no such model, version or alias.
        TrackingError: where the store no longer answers.
    """
    written = model.removeprefix(SCHEME)
    separator = "@" if "@" in written else "/"
    name, _, wanted = written.rpartition(separator)
    if not name or not wanted:
        raise CheckpointError(f"{model}: names no version; write models:/NAME@champion or models:/NAME/VERSION")
    try:
        if separator == "@":
            return name, str(client().get_model_version_by_alias(name, wanted).version)
        return name, str(client().get_model_version(name, wanted).version)
    except MlflowException as error:
        uri = mlflow.get_tracking_uri()
        if not answers(uri):
            raise unreachable(uri, "stopped answering") from None
        raise CheckpointError(f"{model}: {str(error).splitlines()[0]}; `cprfl ui` shows what is registered") from None


def fetch_model(model: str, folder: Path) -> RegisteredModel:
    """Download a registered model's files into a folder, from where `Predictor.load` takes them.

    Args:
        model: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        folder: to download into.

    Raises:
        CheckpointError: where there is no such model.
        TrackingError: where its files are no longer there.
    """
    return registry.fetch(Store(mlflow.get_tracking_uri(), None), *resolve(model), folder)


@contextmanager
def opened_predictor(model: str, output_dir: Path) -> Iterator[Predictor]:
    """The predictor of a registered model, complete with its own encoder.

    Args:
        model: as `fetch_model` takes it.
        output_dir: where the MLflow store is, unless ``MLFLOW_TRACKING_URI`` names one.

    Raises:
        CheckpointError: where there is no such model.
        TrackingError: where there is no store, or the model's files are no longer there.
    """
    open_existing_store(str(output_dir))
    with temporary_folder() as folder:
        files = fetch_model(model, folder)
        yield Predictor.load(files.checkpoint, files.encoder_weights)
