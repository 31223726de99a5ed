"""The trials of a sweep on Ray Tune."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from cprfl.experiment import Experiment
from cprfl.preparation import Prepared
from pipelines.cluster.abandoned import abandoned_workers_freed
from pipelines.cluster.connection import connect
from pipelines.cluster.shared import check_shared
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.follow import FollowTrials
from pipelines.sweeps.record import Trials
from pipelines.sweeps.search import NUMBER, Asked, begin_next, name_of, proposals_after, scheduler, space
from pipelines.sweeps.trials import train_trial
from pipelines.tracking.sweeps import TrialRuns


def run_trials(
    experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, trials: Trials, runs: TrialRuns
) -> None:
    """Run the trials that are left to run.

    What Tune itself writes lies in a place of this process's own, and is never read by another: it is pickled, and
    whoever may write into the folder could put code there. What is known of the trials is in ``trials``.
    """
    here, population = experiment.resources.in_this_process, sweep.scheduler == "pbt"
    connect(dashboard=not here)
    check_shared(experiment.folder)
    _set_tune_up()
    stops = scheduler(sweep, experiment.train.epochs, trials)
    proposals = proposals_after(sweep, trials)  # after those that the scheduler was to stop are stopped
    while population and len(trials) < sweep.trials:  # it begins all at once
        begin_next(trials, proposals)
    asked: Any = _population(trials) if population else Asked(sweep, trials, proposals)
    left = sweep.trials - sum(trial.status != "running" for trial in trials)
    if left == 0:
        return
    place = folder / "tune"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier process
    follow = FollowTrials(sweep, trials, runs, experiment.epochs)

    def fit() -> None:
        context = _context(experiment, sweep, parts, folder, trials)
        share = _resources_per_trial(sweep, here, experiment.resources.gpu)
        trainable = ray_tune.with_resources(ray_tune.with_parameters(train_trial, context=context), share)
        with nullcontext() if here else abandoned_workers_freed():
            _tuner(trainable, experiment, sweep, asked, stops, left, place, follow).fit()

    follow.run(fit)
    shutil.rmtree(place, ignore_errors=True)


def _tuner(
    trainable: Any, experiment: Experiment, sweep: SweepConfig, asked: Any, stops: Any, left: int, place: Path,
    follow: FollowTrials,
) -> ray_tune.Tuner:  # fmt: skip
    population = sweep.scheduler == "pbt"
    return ray_tune.Tuner(
        trainable,
        param_space={**space(sweep), NUMBER: ray_tune.choice([0])} if population else None,
        tune_config=ray_tune.TuneConfig(
            num_samples=left, search_alg=asked, scheduler=stops,
            max_concurrent_trials=None if population else sweep.max_concurrent,
            # Starting a process, which imports torch, takes longer than a small training. A training of Ray Train's
            # that is stopped ends with the process that waits for it, except between the turns of a population.
            reuse_actors=experiment.resources.in_this_process or population,
            trial_name_creator=name_of, trial_dirname_creator=name_of,
        ),
        run_config=ray_tune.RunConfig(
            name=uuid.uuid4().hex, storage_path=str(place), verbose=0, progress_reporter=None,
            failure_config=ray_tune.FailureConfig(max_failures=experiment.resources.max_failures),
            callbacks=[follow],
        ),
    )  # fmt: skip


def _set_tune_up() -> None:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial that failed says so in place of a metric
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "86400"  # of what nobody reads
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are told by our callback


def _context(
    experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, trials: Trials
) -> dict[str, Any]:
    """What every trial gets, as JSON-like values."""
    # In a trial's process an address of Ray is set whether the user named one or not.
    workers = 0 if experiment.resources.in_this_process else experiment.resources.world_size
    settled = experiment.resources.model_copy(update={"num_workers": workers})
    saved = {str(trial.number): trial.reports[-1].checkpoint for trial in trials if trial.reports}
    return {
        "experiment": experiment.model_copy(update={"resources": settled}).model_dump(mode="json"),
        "sweep": sweep.model_dump(mode="json"),
        "parts": [part.record for part in parts],
        "storage": str(folder / "trials"),
        "checkpoints": saved,
    }


def _population(trials: Trials) -> BasicVariantGenerator:
    """Gives Tune the trials that are left, all at once: it lets nothing else choose a population's settings."""
    points = [{**trial.settings, NUMBER: trial.number} for trial in trials if trial.status == "running"]
    return BasicVariantGenerator(points_to_evaluate=points)


def _resources_per_trial(sweep: SweepConfig, here: bool, gpu: str) -> ray_tune.PlacementGroupFactory:
    """A trial's fair share of the CPUs, where it trains in its own process.

    Where Ray Train's workers train, the trial only waits for them: something it must ask for, and a CPU would be
    missing to them.
    """
    if not here:
        return ray_tune.PlacementGroupFactory([{"memory": 1}])
    trials = sweep.trials if sweep.scheduler == "pbt" else sweep.max_concurrent  # a population trains all at once
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    with_gpu = [node for node in nodes if node.get("GPU")] if gpu != "never" else []
    cpus = max(node["CPU"] for node in with_gpu or nodes)
    share: dict[str, float] = {"CPU": cpus // trials or cpus / trials}
    if with_gpu:
        share["GPU"] = min(1.0, sum(node["GPU"] for node in with_gpu) / trials)
    return ray_tune.PlacementGroupFactory([share])
