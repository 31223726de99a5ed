"""What people call a model: a checkpoint's folder, a registered model, an experiment by its file or its name."""

from __future__ import annotations

from pathlib import Path

from cprfl.errors import CheckpointError, TrackingError
from cprfl.experiment import load
from cprfl.preparation import CHECKPOINT
from cprfl.training.checkpoint import is_checkpoint, load_info
from pipelines.tracking import registry
from pipelines.tracking.models import SCHEME
from pipelines.tracking.store import open_existing_store


def find_model(model: str, output_dir: Path) -> str:
    """The checkpoint's folder, or the ``models:/`` name, that somebody means; the store is open where it is the latter.

    Of an experiment, by its YAML file or its name, it is the champion; where none is registered, the checkpoint in its
    folder.

    Args:
        model: as it was given.
        output_dir: the experiments' output folder; a YAML file says its own.

    Raises:
        CheckpointError: where there is no such model.
        TrackingError: where it is a registered one, and there is no MLflow store.
    """
    if model.startswith(SCHEME):
        open_existing_store(str(output_dir))
        return model
    folder = Path(model)
    inside = folder if is_checkpoint(folder) else folder / CHECKPOINT
    # A folder without a checkpoint, such as the images', does not hide the experiment of its name.
    names_experiment = folder.name == model and (output_dir / model).is_dir()
    if folder.is_dir() and (inside.exists() or not names_experiment):
        load_info(inside)
        return str(inside)
    if folder.suffix in (".yaml", ".yml"):
        experiment = load(folder, [])
        return _of_experiment(experiment.name, Path(experiment.output_dir))
    return _of_experiment(model, output_dir)


def _of_experiment(name: str, output_dir: Path) -> str:
    try:
        champion = registry.champion(open_existing_store(str(output_dir)), name)
    except TrackingError:
        champion = None  # the checkpoint is a file, and needs no store
    if champion is not None:
        return f"{SCHEME}{name}@{registry.CHAMPION}"
    folder = output_dir / name / CHECKPOINT
    if not folder.is_dir():
        raise CheckpointError(
            f"{name}: no champion is registered, and {folder} is no checkpoint; `cprfl run CONFIG` trains one, "
            "--output-dir names another place"
        )
    return str(folder)
