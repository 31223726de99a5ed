"""The trials of a sweep on Ray Tune, each followed in MLflow and by a line on stderr."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune

from cprfl.experiment import Experiment
from cprfl.preparation import Prepared
from pipelines.cluster.abandoned import abandoned_workers_freed
from pipelines.cluster.connection import connect
from pipelines.cluster.shared import check_shared
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.search import scheduler, searcher, space
from pipelines.sweeps.trials import train_trial
from pipelines.tracking.sweeps import TrialRuns


def run_trials(
    experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, runs: TrialRuns
) -> ray_tune.ResultGrid:
    """Run the trials, going on with what is in ``folder``."""
    here = experiment.resources.in_this_process
    connect(dashboard=not here)
    check_shared(experiment.folder)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are told by our callback
    settled = experiment.resources.model_copy(update={"num_workers": 0 if here else experiment.resources.world_size})
    context = {
        # In a trial's process an address of Ray is set whether the user named one or not.
        "experiment": experiment.model_copy(update={"resources": settled}).model_dump(mode="json"),
        "sweep": sweep.model_dump(mode="json"),
        "parts": [part.record for part in parts],
        "storage": str(folder / "trials"),
    }
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(train_trial, context=context),
        _resources_per_trial(sweep, here, experiment.resources.gpu),
    )
    drawn = sweep.search == "random" or sweep.scheduler == "pbt"
    param_space = space(sweep) if drawn else None  # Optuna's searcher has its own
    if (folder / "tune" / "tuner.pkl").exists():
        tuner = ray_tune.Tuner.restore(str(folder / "tune"), trainable, param_space=param_space)
    else:
        tuner = ray_tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=ray_tune.TuneConfig(
                metric=sweep.metric, mode="max", num_samples=sweep.trials,
                max_concurrent_trials=None if sweep.scheduler == "pbt" else sweep.max_concurrent,
                search_alg=searcher(sweep), scheduler=scheduler(sweep, experiment.train.epochs),
                trial_name_creator=lambda trial: str(trial.trial_id),
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray_tune.RunConfig(
                name="tune", storage_path=str(folder), verbose=0,
                callbacks=[FollowTrials(sweep, runs, experiment.epochs)], progress_reporter=None,
            ),
        )  # fmt: skip
    with nullcontext() if here else abandoned_workers_freed():
        results = tuner.fit()
    for result in results:
        if result.error is not None:  # which the callback is not told
            error = str(result.error)
            reason = next((line for line in reversed(error.splitlines()) if "cprfl.errors" in line), error[-300:])
            runs.end(Path(result.path).name, "FAILED", {"error": reason.strip()})
    return results


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


class FollowTrials(ray_tune.Callback):
    """A child run in MLflow and a line on stderr for each trial."""

    def __init__(self, sweep: SweepConfig, runs: TrialRuns, epochs: int) -> None:
        self.sweep, self.runs, self.epochs = sweep, runs, epochs

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run."""
        self.runs.start(trial.trial_id, trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch's metrics."""
        metrics = {name: value for name, value in result.items() if name.startswith(("train/", "val/"))}
        if self.sweep.scheduler == "pbt":  # its settings change
            numbers = {name: value for name, value in trial.config.items() if isinstance(value, int | float)}
            metrics |= {f"settings/{name}": value for name, value in numbers.items()}
        self.runs.log(trial.trial_id, metrics, int(result["epoch"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's run and say what came of it."""
        last = trial.last_result
        whole = int(trial.config.get("train.epochs", self.epochs)) * (self.sweep.folds or 1)
        pruned = int(last["epoch"]) < whole
        self.runs.end(trial.trial_id, "FINISHED", {"pruned": str(pruned).lower()})
        stopped = f", stopped after epoch {last['epoch']}" if pruned else ""
        metric = self.sweep.metric
        self._say(trials, f": {metric} {last[metric]:.2f}{stopped}  {trial.config}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's run; why it failed is known at the end."""
        self.runs.end(trial.trial_id, "FAILED", {})
        self._say(trials, f" failed  {trial.config}")

    def _say(self, trials: list[Any], what: str) -> None:
        print(f"trial {len(trials)} of {self.sweep.trials}{what}", file=sys.stderr, flush=True)
