"""The experiment's registered model: which version is the champion, which one was before, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprfl import serving
from cprfl.data.files import fingerprint
from cprfl.errors import CheckpointError
from cprfl.experiment import Experiment
from cprfl.training.checkpoint import ENCODER
from pipelines.metrics_sink import client
from pipelines.preprocess import Prepared
from pipelines.sweep import SweepConfig
from pipelines.train import training_key

CHAMPION = "champion"
_KEY, _DECISION, _REASON, _PREVIOUS = "cprfl.request", "decision", "reason", "previous_champion"


@dataclass(frozen=True)
class RegisteredModel:
    """Files of one version.

    Attributes:
        version: its number.
        checkpoint: the trained model.
        encoder_weights: of its encoder; the checkpoint has its own where the encoder was fine-tuned.
    """

    version: str
    checkpoint: Path
    encoder_weights: Path | None


def request_key(experiment: Experiment, prepared: Prepared, sweep: SweepConfig | None = None) -> str:
    """Names what a version was trained and judged for: images, labels, configuration with its rules, and sweep."""
    rules = experiment.promotion.model_dump(mode="json")
    searched = sweep.model_dump(mode="json") if sweep else None
    return fingerprint([training_key(experiment, prepared), rules, searched])


def champion(name: str) -> str | None:
    """The version that is the champion."""
    aliases = next((dict(model.aliases) for model in client().search_registered_models(f"name = '{name}'")), {})
    return str(aliases[CHAMPION]) if CHAMPION in aliases else None


def fetch(name: str, version: str, folder: Path) -> RegisteredModel:
    """Download a version's files into a folder."""
    import mlflow
    from mlflow.models import Model

    local = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(folder)))
    data = local / Model.load(str(local)).flavors["python_function"]["data"]
    encoder = data / ENCODER
    return RegisteredModel(version, data / serving.CHECKPOINT, encoder if encoder.exists() else None)


def judged(name: str, key: str) -> Any | None:
    """The version that was trained for this request and judged, if there is one."""
    found = client().search_model_versions(f"name = '{name}' and tags.`{_KEY}` = '{key}'")
    return next((version for version in found if _DECISION in version.tags), None)


def accept_first(name: str, version: str, key: str) -> None:
    """Make the version champion if there is none; it is not compared with anything otherwise."""
    if champion(name) is None:
        promote(name, version, key, "the first version")
    else:
        _tag(name, version, {_KEY: key})


def promote(name: str, version: str, key: str, reason: str) -> None:
    """Move the alias to a version that was evaluated.

    The decision is written down last: a crash in between leaves the old champion, or the new one, and the next
    retraining finds no decision and judges anew.
    """
    previous = champion(name)
    _tag(name, version, {_KEY: key, _REASON: reason} | ({_PREVIOUS: previous} if previous else {}))
    client().set_registered_model_alias(name, CHAMPION, version)
    _tag(name, version, {_DECISION: "promoted"})


def keep(name: str, version: str, key: str, reason: str) -> None:
    """Write down that the version did not become the champion, and why."""
    _tag(name, version, {_KEY: key, _REASON: reason, _DECISION: "kept the champion"})


def rollback(name: str) -> tuple[str, str]:
    """Make the champion before the present one the champion again.

    Returns:
        The version that was champion, and the one that is now.

    Raises:
        CheckpointError: where there is no champion, or none before it.
    """
    present = champion(name)
    if present is None:
        raise CheckpointError(f"{name}: no champion is registered; `cprfl run CONFIG` makes the first")
    previous = client().get_model_version(name, present).tags.get(_PREVIOUS)
    if previous is None:
        raise CheckpointError(f"{name}: version {present} is the first champion, there is none to go back to")
    client().set_registered_model_alias(name, CHAMPION, previous)
    _tag(name, present, {_DECISION: f"rolled back to version {previous}"})
    return present, previous


def _tag(name: str, version: str, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        client().set_model_version_tag(name, version, key, value[:5000])
