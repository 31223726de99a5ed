"""What runs in a trial of a sweep: the training of `cprfl train`, whole, once per fold, or in turns."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
from ray.train import ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from cprfl.experiment import Experiment
from cprfl.preparation import Prepared, read_prepared
from cprfl.recipe import Epoch, local_worker, run_training, train_in
from cprfl.training.checkpoint import load_info
from pipelines.cluster.resources import scaling
from pipelines.cluster.trainer import fit_trainer, torch_trainer
from pipelines.sweeps.config import SweepConfig, trial_experiment

Report = Callable[[dict[str, float]], None]


def train_trial(params: dict[str, Any], context: dict[str, Any]) -> None:
    """One trial: a training whose epochs Tune hears of, or one for each fold."""
    sweep = SweepConfig.model_validate(context["sweep"])
    experiment = trial_experiment(Experiment.model_validate(context["experiment"]), sweep, params)
    parts = [read_prepared(experiment, record) for record in context["parts"]]
    if any(setting.startswith("text_encoder.") for setting in params):
        text, path = experiment.text_encoder.find_or_embed(parts[0].manifest.class_names, experiment.cache_dir)
        parts = [part.with_text(text, path) for part in parts]
    folder = Path(context["storage"]) / ray.tune.get_context().get_trial_id()
    here = experiment.resources.in_this_process
    if sweep.scheduler == "pbt" and here:
        _train_with_exchange(experiment, parts[0], sweep.perturb_epochs, folder)
    elif sweep.scheduler == "pbt":
        scaled = scaling(experiment.resources, share=sweep.max_concurrent)
        _train_in_turns(experiment, parts[0], sweep.perturb_epochs, scaled, folder)
    elif sweep.folds is None:
        _train(experiment, parts[0], sweep, folder, ray.tune.report)
    else:
        _train_on_folds(experiment, parts, sweep, folder)


def _train(
    experiment: Experiment, part: Prepared, sweep: SweepConfig, folder: Path, report: Report | None
) -> dict[str, float]:
    """Train in this process or on Ray Train's workers, and give the last epoch's metrics."""
    if not experiment.resources.in_this_process:
        scaled = scaling(experiment.resources, share=sweep.max_concurrent)
        callbacks = [TuneReportCallback()] if report else []
        trainer = torch_trainer(experiment, part, None, scaled, str(folder.parent), folder.name, callbacks)
        return fit_trainer(trainer, folder).metrics or {}

    told: list[int] = []

    def tell(epoch: Epoch) -> None:
        told.append(epoch.number)
        if report is not None:
            report({**epoch.metrics, "epoch": epoch.number})

    last = load_info(train_in(folder, experiment, part, tell))
    if report is not None and not told:  # it was killed before anybody heard of the last epoch
        report({**last.metrics, "epoch": last.epoch})
    return last.metrics


def _train_on_folds(experiment: Experiment, parts: list[Prepared], sweep: SweepConfig, folder: Path) -> None:
    """Train once for each fold; Tune hears of the mean so far."""
    found: list[dict[str, float]] = []
    for number, part in enumerate(parts):
        metrics = _train(experiment, part, sweep, folder / str(number), None)
        found.append({key: value for key, value in metrics.items() if key.startswith("val/")})
        mean = {key: float(np.mean([fold[key] for fold in found if key in fold])) for key in found[-1]}
        ray.tune.report({**mean, "epoch": experiment.train.epochs * len(found)})


def _train_with_exchange(experiment: Experiment, prepared: Prepared, turn: int, folder: Path) -> None:
    """Train in this process; after every turn Tune may put other weights and settings in our place."""
    earlier = ray.tune.get_checkpoint()
    if earlier and (last := load_info(Path(earlier.path))).epoch == experiment.epochs:  # there is nothing left to train
        ray.tune.report({**last.metrics, "epoch": last.epoch}, checkpoint=earlier)
        return

    def tell(epoch: Epoch) -> None:
        metrics = {**epoch.metrics, "epoch": epoch.number}
        if epoch.number % turn and epoch.number != experiment.epochs:
            return
        saved = folder / f"{epoch.number}-{uuid.uuid4().hex[:8]}"
        epoch.save(saved)
        ray.tune.report(metrics, checkpoint=ray.tune.Checkpoint(str(saved)))

    run_training(
        experiment, prepared, local_worker(experiment.resources), tell, resume=Path(earlier.path) if earlier else None
    )


def _train_in_turns(experiment: Experiment, prepared: Prepared, turn: int, scaled: ScalingConfig, folder: Path) -> None:
    """Train some epochs at a time on Ray Train; between two turns Tune may put other weights in our place."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "86400"  # the others of the population have their turns
    epochs, start, done = experiment.train.epochs, None, 0
    if (checkpoint := ray.tune.get_checkpoint()) is not None:
        start = checkpoint.path
        done = load_info(Path(start)).epoch
    for last in range(min(done + turn, epochs), epochs + turn, turn):
        ends = min(last, epochs)
        settings = {"train.epochs": ends, "train.schedule_epochs": experiment.train.schedule_epochs or epochs}
        name = f"{ends}-{uuid.uuid4().hex[:8]}"
        trainer = torch_trainer(experiment.changed(settings), prepared, None, scaled, str(folder), name, start=start)
        result = fit_trainer(trainer, folder / name)
        assert result.checkpoint is not None
        start = result.checkpoint.path
        ray.tune.report(result.metrics or {}, checkpoint=ray.tune.Checkpoint(start))
        if ends == epochs:
            return
