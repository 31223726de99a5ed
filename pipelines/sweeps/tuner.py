"""The trials of a sweep on Ray Tune, each followed in MLflow and by a line on stderr."""

from __future__ import annotations

import logging
import os
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
from ray import tune as ray_tune

from cprfl.experiment import Experiment
from cprfl.preparation import Prepared
from cprfl.progress import say, span, stand
from cprfl.words import counted
from pipelines.cluster.abandoned import abandoned_workers_freed
from pipelines.cluster.connection import connect
from pipelines.cluster.shared import check_shared
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.search import scheduler, searcher, space
from pipelines.sweeps.trials import train_trial
from pipelines.tracking.sweeps import TrialRuns
from pipelines.tracking.titles import in_short

_SECONDS_BETWEEN_LINES = 15.0


def run_trials(
    experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, runs: TrialRuns
) -> ray_tune.ResultGrid:
    """Run the trials, going on with what is in ``folder``."""
    here = experiment.resources.in_this_process
    connect(dashboard=not here)
    check_shared(experiment.folder)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Ctrl-C is raised here
    runs.name_sweep(sweep.trials)
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
    with nullcontext() if here else abandoned_workers_freed(), runs.killed_with_the_sweep():
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
    """A child run in MLflow and lines on stderr for each trial."""

    def __init__(self, sweep: SweepConfig, runs: TrialRuns, epochs: int) -> None:
        self.sweep, self.runs, self.epochs = sweep, runs, epochs
        self.said = self.start = time.monotonic()
        self.part: dict[str, float] = {}  # of each trial, how much of it is done
        self.before: float | None = None  # how much was done in sum when this process saw a first trial
        self.best: tuple[float, str] | None = None

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run and say what it tries."""
        known = trial.trial_id in self.runs.runs
        self.runs.start(trial.trial_id, trial.config)
        if self.before is None:
            self._begin(trials)
        if not known:
            self._say(trials, trial, in_short(trial.config))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch's metrics, and say now and then how far the trial is."""
        metrics = {name: value for name, value in result.items() if name.startswith(("train/", "val/"))}
        if self.sweep.scheduler == "pbt":  # its settings change
            numbers = {name: value for name, value in trial.config.items() if isinstance(value, int | float)}
            metrics |= {f"settings/{name}": value for name, value in numbers.items()}
        self.runs.log(trial.trial_id, metrics, int(result["epoch"]))
        self.part[trial.trial_id] = int(result["epoch"]) / self._whole(trial)
        if time.monotonic() - self.said > _SECONDS_BETWEEN_LINES:
            found = result.get(self.sweep.metric)
            reached = f", {self._metric(found)}" if found is not None else ""
            self._say(trials, trial, f"epoch {result['epoch']} of {self._whole(trial)}{reached}{self._standing()}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's run and say what came of it."""
        last = trial.last_result
        pruned = int(last["epoch"]) < self._whole(trial)
        self.runs.end(trial.trial_id, "FINISHED", {"pruned": str(pruned).lower()})
        self._ended(trial)
        self.best = max(self.best or (-1.0, ""), (last[self.sweep.metric], self._number(trials, trial)))
        stopped = f", stopped after epoch {last['epoch']} of {self._whole(trial)}" if pruned else ""
        self._say(trials, trial, f"{self._metric(last[self.sweep.metric])}{stopped}{self._standing()}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's run; why it failed is known at the end."""
        self.runs.end(trial.trial_id, "FAILED", {})
        self._ended(trial)
        self._say(trials, trial, f"failed; {in_short(trial.config)}")

    def _begin(self, trials: list[Any]) -> None:
        """What an interrupted sweep has done already took no time of this process."""
        ended = [trial for trial in trials if trial.is_finished()]
        self.part = {trial.trial_id: 1.0 for trial in ended}
        found = [(trial.last_result.get(self.sweep.metric, -1.0), self._number(trials, trial)) for trial in ended]
        self.best = max(found, default=None)
        self.start, self.before = time.monotonic(), float(len(ended))
        self._stand()

    def _ended(self, trial: Any) -> None:
        self.part[trial.trial_id] = 1.0
        self._stand()

    def _stand(self) -> None:
        done = sum(part == 1.0 for part in self.part.values())
        stand(f"after {done} of {counted(self.sweep.trials, 'trial')}")

    def _whole(self, trial: Any) -> int:
        """Epochs of a trial that nothing stops."""
        return int(trial.config.get("train.epochs", self.epochs)) * (self.sweep.folds or 1)

    def _number(self, trials: list[Any], trial: Any) -> str:
        return str(trials.index(trial) + 1)

    def _metric(self, value: float) -> str:
        """``val mAP 61.2``."""
        return f"{self.sweep.metric.replace('/', ' ')} {value:.1f}"

    def _standing(self) -> str:
        """The best trial so far, and the time that is left."""
        best = f"; best {self.best[0]:.1f} (trial {self.best[1]})" if self.best else ""
        return best + self._left()

    def _left(self) -> str:
        """Time that what is left of the trials will take, if it takes as long as what was done in this process."""
        done = sum(self.part.values())
        since, left = done - (self.before or 0.0), self.sweep.trials - done
        return f"; {span((time.monotonic() - self.start) / since * left)} left" if left > 0 and since > 0 else ""

    def _say(self, trials: list[Any], trial: Any, what: str) -> None:
        self.said = time.monotonic()
        say(f"trial {self._number(trials, trial)} of {self.sweep.trials}: {what}")
