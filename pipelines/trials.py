"""What runs in a trial of a sweep: the training of `cprfl train`, whole, once per fold, or in turns."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cprfl.experiment import Experiment
from cprfl.training.checkpoint import load_info
from pipelines import cluster
from pipelines.preprocess import Prepared, embed_class_names
from pipelines.sweep import SweepConfig, trial_experiment
from pipelines.train import fit_trainer, torch_trainer

if TYPE_CHECKING:
    from ray.train import ScalingConfig


def train_trial(params: dict[str, Any], context: dict[str, Any]) -> None:
    """One trial: the training of `cprfl train`, whose epochs Tune hears of, or one for each fold."""
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    sweep = SweepConfig.model_validate(context["sweep"])
    experiment = trial_experiment(Experiment.model_validate(context["experiment"]), sweep, params)
    parts = [Prepared(**part) for part in context["parts"]]
    if any(setting.startswith("text_encoder.") for setting in params):
        text = embed_class_names(experiment, parts[0].read_manifest().class_names)
        parts = [replace(part, text_embeddings=str(text)) for part in parts]
    scaling = cluster.scaling(experiment.resources, share=sweep.max_concurrent)
    name, storage = ray.tune.get_context().get_trial_id(), context["storage"]
    if sweep.scheduler == "pbt":
        _train_in_turns(experiment, parts[0], sweep.perturb_epochs, scaling, Path(storage) / name)
    elif sweep.folds is None:
        trainer = torch_trainer(experiment, parts[0], None, scaling, storage, name, [TuneReportCallback()])
        fit_trainer(trainer, Path(storage) / name)
    else:
        _train_on_folds(experiment, parts, scaling, Path(storage) / name)


def _train_on_folds(experiment: Experiment, parts: list[Prepared], scaling: ScalingConfig, folder: Path) -> None:
    """Train once for each fold; Tune hears of the mean so far."""
    import ray.tune

    found: list[dict[str, float]] = []
    for number, part in enumerate(parts):
        trainer = torch_trainer(experiment, part, None, scaling, str(folder), str(number))
        metrics = fit_trainer(trainer, folder / str(number)).metrics or {}
        found.append({key: value for key, value in metrics.items() if key.startswith("val/")})
        mean = {key: float(np.mean([fold[key] for fold in found if key in fold])) for key in found[-1]}
        ray.tune.report({**mean, "epoch": experiment.train.epochs * len(found)})


def _train_in_turns(
    experiment: Experiment, prepared: Prepared, turn: int, scaling: ScalingConfig, folder: Path
) -> None:
    """Train some epochs at a time; between two turns Tune may put other weights and settings in our place."""
    import ray.tune

    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "86400"  # the others of the population have their turns
    epochs, start, done = experiment.train.epochs, None, 0
    if (checkpoint := ray.tune.get_checkpoint()) is not None:
        start = checkpoint.path
        done = load_info(Path(start)).epoch
    for last in range(min(done + turn, epochs), epochs + turn, turn):
        ends = min(last, epochs)
        settings = {"train.epochs": ends, "train.schedule_epochs": experiment.train.schedule_epochs or epochs}
        name = f"{ends}-{uuid.uuid4().hex[:8]}"
        trainer = torch_trainer(experiment.changed(settings), prepared, None, scaling, str(folder), name, start=start)
        result = fit_trainer(trainer, folder / name)
        assert result.checkpoint is not None
        start = result.checkpoint.path
        ray.tune.report(result.metrics or {}, checkpoint=ray.tune.Checkpoint(start))
        if ends == epochs:
            return
