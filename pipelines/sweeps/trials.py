"""What runs in a trial of a sweep: the training of `cprfl train`, whole, once per fold, or in turns."""

from __future__ import annotations

import os
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray.tune
from ray.train import ScalingConfig
from ray.tune.integration.ray_train import TuneReportCallback

from cprfl.environment import mendable
from cprfl.experiment import Experiment
from cprfl.preparation import Prepared, read_prepared
from cprfl.recipe import Epoch, latest_in, local_worker, run_training, train_in
from cprfl.training.checkpoint import load_info
from pipelines.cluster.resources import scaling
from pipelines.cluster.trainer import fit_trainer, torch_trainer
from pipelines.sweeps.config import SweepConfig, trial_experiment
from pipelines.sweeps.search import CHECKPOINT, MISTAKE, NUMBER

Report = Callable[[dict[str, float]], None]


def train_trial(params: dict[str, Any], context: dict[str, Any]) -> None:
    """One trial: a training whose epochs Tune hears of, or one for each fold.

    Whatever a training raises fails this trial and no other. It is told as a result: Tune starts a trial anew only
    where its process died, and an exception would be pickled.
    """
    try:
        _train_as_asked({name: value for name, value in params.items() if name != NUMBER}, context)
    except Exception as error:
        known = mendable(error)
        reason = f"{type(known or error).__name__}: {known or error}"
        if known is None:  # ours
            reason = f"{reason}\n{traceback.format_exc()}"
        ray.tune.report({MISTAKE: reason, "epoch": 0})


def _train_as_asked(settings: dict[str, Any], context: dict[str, Any]) -> None:
    sweep = SweepConfig.model_validate(context["sweep"])
    experiment = trial_experiment(Experiment.model_validate(context["experiment"]), sweep, settings)
    parts = [read_prepared(experiment, record) for record in context["parts"]]
    if any(setting.startswith("text_encoder.") for setting in settings):
        text, path = experiment.text_encoder.find_or_embed(parts[0].manifest.class_names, experiment.cache_dir)
        parts = [part.with_text(text, path) for part in parts]
    number = ray.tune.get_context().get_trial_name()
    folder, earlier = Path(context["storage"]) / number, context["checkpoints"].get(number)
    here = experiment.resources.in_this_process
    if sweep.scheduler == "pbt" and here:
        _train_with_exchange(experiment, parts[0], sweep.perturb_epochs, folder, earlier)
    elif sweep.scheduler == "pbt":
        scaled = scaling(experiment.resources, share=sweep.max_concurrent)
        _train_in_turns(experiment, parts[0], sweep.perturb_epochs, scaled, folder, earlier)
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

    def tell(epoch: Epoch) -> None:
        if report is not None:
            report({**epoch.metrics, "epoch": epoch.number})

    saved = latest_in(folder)
    if report is not None and saved is not None:  # by a process that was lost, maybe before anybody heard of it
        last = load_info(saved)
        report({**last.metrics, "epoch": last.epoch})
    return load_info(train_in(folder, experiment, part, tell)).metrics


def _train_on_folds(experiment: Experiment, parts: list[Prepared], sweep: SweepConfig, folder: Path) -> None:
    """Train once for each fold; Tune hears of the mean so far."""
    found: list[dict[str, float]] = []
    for number, part in enumerate(parts):
        metrics = _train(experiment, part, sweep, folder / str(number), None)
        found.append({key: value for key, value in metrics.items() if key.startswith("val/")})
        mean = {key: float(np.mean([fold[key] for fold in found if key in fold])) for key in found[-1]}
        ray.tune.report({**mean, "epoch": experiment.train.epochs * len(found)})


def _train_with_exchange(
    experiment: Experiment, prepared: Prepared, turn: int, folder: Path, earlier: str | None
) -> None:
    """Train in this process; after every turn Tune may put other weights and settings in our place."""
    start = _start(earlier)
    if start and (last := load_info(start)).epoch == experiment.epochs:  # there is nothing left to train
        _tell_checkpoint({**last.metrics, "epoch": last.epoch}, start)
        return

    def tell(epoch: Epoch) -> None:
        if epoch.number % turn and epoch.number != experiment.epochs:
            return
        saved = folder / f"{epoch.number}-{uuid.uuid4().hex[:8]}"
        epoch.save(saved)
        _tell_checkpoint({**epoch.metrics, "epoch": epoch.number}, saved)

    run_training(experiment, prepared, local_worker(experiment.resources), tell, resume=start)


def _start(earlier: str | None) -> Path | None:
    """Where to go on from: what Tune gives, or what an earlier process had told."""
    given = ray.tune.get_checkpoint()
    path = given.path if given is not None else earlier
    return Path(path) if path else None


def _tell_checkpoint(metrics: dict[str, Any], saved: Path) -> None:
    """Tell Tune, which copies the checkpoint for the others; ours is what a later process goes on from."""
    ray.tune.report({**metrics, CHECKPOINT: str(saved)}, checkpoint=ray.tune.Checkpoint(str(saved)))


def _train_in_turns(
    experiment: Experiment, prepared: Prepared, turn: int, scaled: ScalingConfig, folder: Path, earlier: str | None
) -> None:
    """Train some epochs at a time on Ray Train; between two turns Tune may put other weights in our place."""
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "86400"  # the others of the population have their turns
    epochs, start = experiment.train.epochs, _start(earlier)
    done = load_info(start).epoch if start else 0
    for last in range(min(done + turn, epochs), epochs + turn, turn):
        ends = min(last, epochs)
        settings = {"train.epochs": ends, "train.schedule_epochs": experiment.train.schedule_epochs or epochs}
        name = f"{ends}-{uuid.uuid4().hex[:8]}"
        turned = experiment.changed(settings)
        trainer = torch_trainer(turned, prepared, None, scaled, str(folder), name, start=str(start) if start else None)
        result = fit_trainer(trainer, folder / name)
        assert result.checkpoint is not None
        start = Path(result.checkpoint.path)
        _tell_checkpoint(result.metrics or {}, start)
        if ends == epochs:
            return
