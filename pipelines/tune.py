"""`cprfl tune`: search settings with Ray Tune on held-out training images, then train and test the winner once."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from cprfl.data.files import write_aside, write_json
from cprfl.data.manifest import TRAIN
from cprfl.data.stratify import stratify
from cprfl.errors import SweepError
from cprfl.evaluation import Evaluation
from cprfl.experiment import Experiment
from pipelines import cluster, tracking
from pipelines.preprocess import VALIDATION, Prepared, preprocess
from pipelines.run import run_one
from pipelines.search import scheduler, searcher, space
from pipelines.sweep import SweepConfig, trial_experiment
from pipelines.tracking_sweeps import TrialRuns, log_sweep
from pipelines.trials import train_trial

if TYPE_CHECKING:
    from ray.tune import Callback, ResultGrid

BEST, _PARENT_RUN, _TRIAL_RUNS, _SWEEP, _DONE = "best.yaml", "run.json", "trial_runs.json", "sweep.yaml", "done"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        settings: of the winner.
        value: its validation metric.
        evaluation: of the winner, trained on all training images, on the test images.
    """

    settings: dict[str, Any]
    value: float
    evaluation: Evaluation


def tune(experiment: Experiment, sweep: SweepConfig, *, resume: bool = False) -> SweepResult:
    """Search, then train the winner on all training images and look at the test images for the first time.

    Args:
        experiment: what is varied.
        sweep: how.
        resume: go on with the newest sweep of this experiment that did not end; finished trials are not repeated.

    Raises:
        SweepError: where there is nothing to resume, or no trial succeeded.
    """
    settings, value = search(experiment, sweep.around(experiment), resume=resume)
    winner = experiment.changed(settings)
    print(f"{experiment.name}: best {sweep.metric} {value:.2f} with {settings}", file=sys.stderr)
    evaluation = run_one(winner, registered=True, tags={"sweep": "winner"})
    finish(experiment)
    return SweepResult(settings, value, evaluation)


def finish(experiment: Experiment) -> None:
    """Write down that the newest sweep's winner is trained, so that nothing goes on with the sweep."""
    (_newest(experiment) / _DONE).touch()


def search(experiment: Experiment, sweep: SweepConfig, *, resume: bool = False) -> tuple[dict[str, Any], float]:
    """Only search.

    Returns:
        The best settings, and their validation metric.

    Raises:
        SweepError: where there is nothing to resume, or no trial succeeded.
    """
    tracking.open_store(experiment)
    folder = _folder(experiment, sweep, resume)
    if (folder / BEST).exists():  # only the winner's training was interrupted
        best = yaml.safe_load((folder / BEST).read_text())
        return best["settings"], best["value"]
    cluster.connect(dashboard=True)
    cluster.check_shared(experiment.folder)
    prepared = preprocess(trial_experiment(experiment, sweep, {}))  # once, before the trials
    parts = _folds(prepared, sweep.folds, experiment.seed, folder) if sweep.folds else [prepared]
    earlier = tracking.read_run_id(folder / _PARENT_RUN)
    with tracking.run(experiment, run_id=earlier, tags={"sweep": folder.name}, own_metrics=False) as sink:
        write_json(folder / _PARENT_RUN, {"run_id": sink.run_id})
        tracking.log_json(sweep.model_dump(mode="json", exclude_none=True), "sweep.yaml")
        runs = TrialRuns(sink, folder / _TRIAL_RUNS)
        runs.flush()
        results = _search(experiment, sweep, parts, folder, runs)
        if not len(results) or all(result.error for result in results):
            raise SweepError(f"{folder}: no trial succeeded; MLflow has the error of each (tag error)")
        best = results.get_best_result(sweep.metric, "max", scope="last")
        settings, value = dict(best.config or {}), float((best.metrics or {})[sweep.metric])
        log_sweep(sweep.metric, _trials(results, sweep), settings, value)
        with write_aside(folder / BEST) as aside:
            aside.write_text(yaml.safe_dump({"settings": settings, "value": value}))
    return settings, value


def _folds(prepared: Prepared, folds: int, seed: int, folder: Path) -> list[Prepared]:
    """The training images cut into folds, each time another one held out."""
    manifest = prepared.read_manifest()
    rows = np.flatnonzero(np.array(manifest.splits) == TRAIN)
    fold = stratify(manifest.split(TRAIN).targets(), [1 / folds] * folds, seed)
    found = []
    for held_out in range(folds):
        splits = np.array(manifest.splits, dtype=object)
        splits[rows[fold == held_out]] = VALIDATION
        path = folder / f"fold-{held_out}.parquet"
        replace(manifest, splits=tuple(splits)).write(path)
        found.append(replace(prepared, manifest=str(path)))
    return found


def interrupted(experiment: Experiment, sweep: SweepConfig) -> bool:
    """Whether the newest sweep of the experiment has no trained winner, and is this one with these settings."""
    found = _newest_open(experiment)
    return found is not None and (found / _SWEEP).read_text() == _described(experiment, sweep)


def _newest(experiment: Experiment) -> Path:
    return max((experiment.folder / "sweeps").glob("*"))


def _newest_open(experiment: Experiment) -> Path | None:
    """The folder of the newest sweep, if trials of it were started and its winner is not trained."""
    newest = max((experiment.folder / "sweeps").glob("*"), default=None)
    started = newest is not None and (newest / "tune" / "tuner.pkl").exists() and not (newest / _DONE).exists()
    return newest if started else None


def _described(experiment: Experiment, sweep: SweepConfig) -> str:
    return yaml.safe_dump({"experiment": experiment.training_fingerprint, **sweep.model_dump(mode="json")})


def _folder(experiment: Experiment, sweep: SweepConfig, resume: bool) -> Path:
    """A new sweep's folder, or the newest one's that is not done."""
    root = experiment.folder / "sweeps"
    if not resume:
        folder = root / time.strftime("%Y%m%d-%H%M%S")
        folder.mkdir(parents=True)
        (folder / _SWEEP).write_text(_described(experiment, sweep))
        return folder
    found = _newest_open(experiment)
    if found is None:
        raise SweepError(f"{root}: no interrupted sweep here; run `cprfl tune` without --resume")
    if not interrupted(experiment, sweep):
        raise SweepError(
            f"{found / _SWEEP}: the interrupted sweep was another one, or of another configuration; give that, or "
            "start anew without --resume"
        )
    return found


def _search(
    experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, runs: TrialRuns
) -> ResultGrid:
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    from ray import tune as ray_tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are told by our callback
    context = {
        "experiment": experiment.model_dump(mode="json"),
        "sweep": sweep.model_dump(mode="json"),
        "parts": [asdict(part) for part in parts],
        "storage": str(folder / "trials"),
    }
    # A trial only waits for its workers; something it must ask for, and a CPU would be missing to them.
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(train_trial, context=context), ray_tune.PlacementGroupFactory([{"memory": 1}])
    )
    callback = _progress_callback(sweep, runs, experiment.train.epochs)
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
                name="tune", storage_path=str(folder), verbose=0, callbacks=[callback],
                progress_reporter=None,
            ),
        )  # fmt: skip
    with cluster.abandoned_workers_freed():
        results = tuner.fit()
    for result in results:
        if result.error is not None:  # which the callback is not told
            error = str(result.error)
            reason = next((line for line in reversed(error.splitlines()) if "cprfl.errors" in line), error[-300:])
            runs.end(Path(result.path).name, "FAILED", {"error": reason.strip()})
    return results


def _progress_callback(sweep: SweepConfig, runs: TrialRuns, epochs: int) -> Callback:
    """Follows the trials: a child run in MLflow and a line on stderr for each."""
    from ray.tune import Callback

    class Follow(Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            runs.start(trial.trial_id, trial.config)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            metrics = {name: value for name, value in result.items() if name.startswith(("train/", "val/"))}
            if sweep.scheduler == "pbt":  # its settings change
                numbers = {name: value for name, value in trial.config.items() if isinstance(value, int | float)}
                metrics |= {f"settings/{name}": value for name, value in numbers.items()}
            runs.log(trial.trial_id, metrics, int(result["epoch"]))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            last = trial.last_result
            pruned = int(last["epoch"]) < int(trial.config.get("train.epochs", epochs)) * (sweep.folds or 1)
            runs.end(trial.trial_id, "FINISHED", {"pruned": str(pruned).lower()})
            stopped = f", stopped after epoch {last['epoch']}" if pruned else ""
            print(f"trial {len(trials)} of {sweep.trials}: {sweep.metric} {last[sweep.metric]:.2f}{stopped}  "
                  f"{trial.config}", file=sys.stderr, flush=True)  # fmt: skip

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            runs.end(trial.trial_id, "FAILED", {})
            print(f"trial {len(trials)} of {sweep.trials} failed  {trial.config}", file=sys.stderr, flush=True)

    return Follow()


def _trials(results: ResultGrid, sweep: SweepConfig) -> list[tuple[dict[str, Any], float]]:
    """Settings and last validation metric of each trial that has one."""
    found = []
    for result in results:
        if result.metrics and result.config and sweep.metric in result.metrics:
            found.append((dict(result.config), float(result.metrics[sweep.metric])))
    return found
