"""The experiment's registered model: its versions, which one is the champion, which one was before, and why."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, Schema

import cprfl
from cprfl.data.images import open_image
from cprfl.data.manifest import TEST
from cprfl.data.temporary import remove_abandoned, temporary_files_in, temporary_folder
from cprfl.data.tensor_files import write_tensors
from cprfl.errors import CheckpointError, TrackingError
from cprfl.experiment import Experiment
from cprfl.inference import pyfunc
from cprfl.inference.predictor import load_encoder
from cprfl.preparation import Prepared
from cprfl.training.checkpoint import load_info
from pipelines.tracking.store import Store, client, mlflow_mistakes, once_more, without_password

CHAMPION = "champion"
_KEY, DECISION, _REASON, _PREVIOUS = "cprfl.request", "decision", "reason", "previous_champion"
VERSION = "cprfl.version"  # of a run: what it became
_REQUIREMENTS = (
    "torch", "torchvision", "open_clip_torch", "timm", "safetensors", "numpy", "pillow", "pyarrow", "msgspec",
    "scikit-learn", "scipy", "pydantic", "omegaconf", "pandas", "xxhash", "boto3", "fsspec", "pyyaml", "mlflow",
)  # fmt: skip


@dataclass(frozen=True)
class RegisteredModel:
    """Files of one version.

    Attributes:
        version: its number.
        checkpoint: the trained model.
        encoder_weights: of its encoder.
    """

    version: str
    checkpoint: Path
    encoder_weights: Path


def register(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> str:
    """Log the model in the active MLflow run and register it under the experiment's name, without an alias.

    It is complete with its encoder: whoever loads it needs no other weights. Where the run was interrupted after this
    model had become a version, it is that version.

    Returns:
        The version.
    """
    remove_abandoned()  # with what a killed registration has copied
    run: Any = mlflow.active_run()
    registered = _version_of(experiment.name, run.info.run_id)
    if registered is None:
        _remove_unregistered(run.info)
        registered = _log_model(experiment, prepared, checkpoint)
    mlflow.set_tag(VERSION, f"{experiment.name}/{registered}")
    return registered


def _remove_unregistered(run: Any) -> None:
    """Delete what a killed registration left of a model: versions are made when all files are there."""
    ours = f"source_run_id = '{run.run_id}'"
    for model in client().search_logged_models([run.experiment_id], filter_string=ours):
        client().delete_logged_model(model.model_id)


def _log_model(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> str:
    test = prepared.manifest.split(TEST)
    picture = io.BytesIO()
    open_image(test.uris[0], experiment.encoder.reading).save(picture, format="PNG")
    signature = ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image")]),
        outputs=Schema([ColSpec("float", name) for name in test.class_names]),
    )
    moved = experiment.train.moves_tower
    encoder = load_encoder(checkpoint, load_info(checkpoint)) if moved else prepared.encoder()
    with temporary_folder() as place, temporary_files_in(place / "mlflow"):
        folder = place / "model"
        shutil.copytree(checkpoint, folder / pyfunc.CHECKPOINT)
        write_tensors(folder / pyfunc.ENCODER, encoder.state_dict())
        logged: Any = mlflow.pyfunc.log_model(
            name="model",
            loader_module=pyfunc.__name__,
            data_path=str(folder),
            code_paths=[str(Path(cprfl.__file__).parent)],
            pip_requirements=[f"{name}=={version(name)}" for name in _REQUIREMENTS],
            signature=signature,
            input_example=pd.DataFrame({"image": [picture.getvalue()]}),
            registered_model_name=experiment.name,
        )
    return str(logged.registered_model_version)


def load(model: str) -> Any:
    """A model by its ``models:/`` URI, as a pyfunc.

    Raises:
        CheckpointError: where there is no such model.
    """
    try:
        return mlflow.pyfunc.load_model(model)
    except MlflowException as error:
        raise CheckpointError(f"{model}: {str(error).splitlines()[0]}; `cprfl ui` shows what is registered") from None


def champion(store: Store, name: str) -> str | None:
    """The version that is the champion."""
    with mlflow_mistakes(store.uri):
        found = client().search_registered_models(f"name = '{name}'")
    aliases = next((dict(model.aliases) for model in found), {})
    return str(aliases[CHAMPION]) if CHAMPION in aliases else None


def fetch(store: Store, name: str, version: str, folder: Path) -> RegisteredModel:
    """Download a version's files into a folder.

    Raises:
        TrackingError: where they are no longer there.
    """
    with mlflow_mistakes(store.uri):
        try:
            local = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(folder)))
        except OSError as error:
            raise TrackingError(
                f"models:/{name}/{version}: its files are gone from {without_password(store.uri)} ({error}); delete "
                "that version in MLflow, or `cprfl rollback CONFIG`"
            ) from None
        data = local / Model.load(str(local)).flavors["python_function"]["data"]
    return RegisteredModel(version, data / pyfunc.CHECKPOINT, data / pyfunc.ENCODER)


def version_of_run(store: Store, name: str, run_id: str) -> str | None:
    """The version that a run was registered as, if it was and is still there."""
    with mlflow_mistakes(store.uri):
        return _version_of(name, run_id)


def _version_of(name: str, run_id: str) -> str | None:
    found = client().search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    return str(found[0].version) if found else None


def judged_version(store: Store, name: str, key: str) -> str | None:
    """The version that was trained for this request and judged, if there is one."""
    with mlflow_mistakes(store.uri):
        found = client().search_model_versions(f"name = '{name}' and tags.`{_KEY}` = '{key}'")
    return next((str(version.version) for version in found if DECISION in version.tags), None)


def accept_first(store: Store, name: str, version: str, key: str) -> None:
    """Make the version champion if there is none; it is not compared with anything otherwise."""
    if champion(store, name) in (None, version):  # the latter where making it so was interrupted
        promote(store, name, version, key, "the first version")
        mlflow.set_tags({DECISION: "promoted", _REASON: "the first version"})
    else:
        tag_version(store, name, version, {_KEY: key})


def promote(store: Store, name: str, version: str, key: str, reason: str) -> None:
    """Move the alias to a version that was evaluated.

    The decision is written down last: a crash in between leaves the old champion, or the new one, and the next
    retraining finds no decision and judges anew.
    """
    previous = champion(store, name)
    before = {} if previous in (None, version) else {_PREVIOUS: str(previous)}
    tag_version(store, name, version, {_KEY: key, _REASON: reason[:5000], **before})
    with mlflow_mistakes(store.uri):
        once_more(lambda: client().set_registered_model_alias(name, CHAMPION, version))
    tag_version(store, name, version, {DECISION: "promoted"})


def reject(store: Store, name: str, version: str, key: str, reason: str) -> None:
    """Write down that the version did not become the champion, and why."""
    tag_version(store, name, version, {_KEY: key, _REASON: reason[:5000], DECISION: "kept the champion"})


def rollback(store: Store, name: str) -> tuple[str, str]:
    """Make the champion before the present one the champion again.

    Returns:
        The version that was champion, and the one that is now.

    Raises:
        CheckpointError: where there is no champion, or none before it.
        TrackingError: where the one before was deleted.
    """
    present = champion(store, name)
    if present is None:
        raise CheckpointError(f"{name}: no champion is registered; `cprfl run CONFIG` makes the first")
    with mlflow_mistakes(store.uri):
        previous = client().get_model_version(name, present).tags.get(_PREVIOUS)
        if previous is None:
            raise CheckpointError(f"{name}: version {present} is the first champion, there is none to go back to")
        if not client().search_model_versions(f"name = '{name}' and version_number = {previous}"):
            raise TrackingError(
                f"{name}: version {previous}, the champion before version {present}, was deleted in MLflow; set the "
                f"alias {CHAMPION} on another version in `cprfl ui`"
            )
        client().set_registered_model_alias(name, CHAMPION, previous)
        described = client().get_model_version(name, present).description or ""
        client().update_model_version(name, present, f"{described}\n\nrolled back to version {previous}".strip())
    tag_version(store, name, present, {DECISION: f"rolled back to version {previous}"})
    return present, previous


def tag_version(store: Store, name: str, version: str, tags: dict[str, str]) -> None:
    """Tag a version; MLflow takes 5,000 characters a tag."""
    with mlflow_mistakes(store.uri):
        for key, value in tags.items():
            once_more(partial(client().set_model_version_tag, name, version, key, value))
