"""`cprfl tune`: search settings on held-out training images, then train and test the winner once."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cprfl.data.files import fingerprint, write_aside, write_json
from cprfl.data.long_tail import hold_out
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from cprfl.data.stratify import stratify
from cprfl.errors import DatasetError, SweepError
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.preparation import Prepared
from cprfl.progress import go_on_with, say
from cprfl.reading import read_data
from pipelines.request import request_key
from pipelines.stages.champion import Standing, check_champion, stand_beside_champion
from pipelines.stages.places import TUNED, begin
from pipelines.stages.report import write_report
from pipelines.stages.train import evaluate, prepare_chain, read_run_id, train, training_run
from pipelines.sweeps.config import SweepConfig, trial_experiment
from pipelines.tracking.registry import accept_first, register
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, open_store
from pipelines.tracking.sweeps import TrialRuns, log_sweep
from pipelines.tracking.titles import in_short

BEST, _PARENT_RUN, _TRIAL_RUNS, _SWEEP, _DONE = "best.yaml", "run.json", "trial_runs.json", "sweep.yaml", "done"
_SWEEPS = "sweeps"  # below outputs/<name>, a folder for each


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        settings: of the winner.
        value: its validation metric.
        experiment: of the winner; its files lie in ``outputs/<name>/tuned``.
        evaluation: of the winner, trained on all training images, on the test images.
        standing: beside the champion; none where there was none.
    """

    settings: dict[str, Any]
    value: float
    experiment: Experiment
    evaluation: Evaluation
    standing: Standing | None


def tune(experiment: Experiment, sweep: SweepConfig, *, resume: bool = False) -> SweepResult:
    """Search, then train the winner on all training images and look at the test images for the first time.

    Args:
        experiment: what is varied.
        sweep: how.
        resume: go on with the newest sweep of this experiment that did not end; finished trials are not repeated.

    Raises:
        SweepError: where there is nothing to resume, or no trial succeeded.
    """
    store, manifest = open_store(experiment.output_dir), read_data(experiment.placed(_SWEEPS))
    check_champion(store, experiment.name)
    go_on_with("the same command with --resume")
    settings, value = search(store, experiment, sweep.around(experiment), manifest, resume=resume)
    say(f"{experiment.name}: best {sweep.metric.replace('/', ' ')} {value:.1f} with {in_short(settings)}")
    winner = experiment.changed(settings)
    evaluation, standing = _train_winner(store, winner, manifest, _newest(experiment))
    mark_winner_trained(experiment)
    return SweepResult(settings, value, winner.placed(TUNED), evaluation, standing)


def _train_winner(
    store: Store, experiment: Experiment, manifest: Manifest, sweep: Path
) -> tuple[Evaluation, Standing | None]:
    """Train, test and register the winner in a place of its own, and compare it with the champion.

    The model that is in ``outputs/<name>`` stays there, and the champion stays the champion, unless there is none.
    """
    tuned, asked = experiment.placed(TUNED), experiment.placed(f"{_SWEEPS}/{sweep.name}")
    prepared = prepare_chain(store, asked, manifest, needs=[TEST])
    begin(tuned, prepared, asked.folder)
    with training_run(store, tuned, prepared, {"sweep": "winner"}) as run:
        checkpoint = train(tuned, prepared, run)
        evaluation = evaluate(tuned, prepared, checkpoint, run)
        standing = stand_beside_champion(store, tuned, prepared, run)
        version = register(tuned, prepared, checkpoint)
        accept_first(store, tuned.name, version, request_key(tuned, prepared))
        say(f"registered {tuned.name}, version {version}")
        write_report(tuned, prepared, run)
    return evaluation, standing


def mark_winner_trained(experiment: Experiment) -> None:
    """Write down that the newest sweep's winner is trained, so that nothing goes on with the sweep."""
    (_newest(experiment) / _DONE).touch()


def search(
    store: Store, experiment: Experiment, sweep: SweepConfig, manifest: Manifest, *, resume: bool = False
) -> tuple[dict[str, Any], float]:
    """Only search.

    Args:
        store: where the sweep and its trials are tracked.
        experiment: what is varied.
        sweep: how; its factors are ranges by now (`SweepConfig.around`).
        manifest: what the data set says.
        resume: go on with the newest sweep of this experiment that did not end.

    Returns:
        The best settings, and their validation metric.

    Raises:
        SweepError: where there is nothing to resume, or no trial succeeded.
    """
    folder = _folder(experiment, sweep, resume)
    if (folder / BEST).exists():  # only the winner's training was interrupted
        best = yaml.safe_load((folder / BEST).read_text())
        return best["settings"], best["value"]
    # Once, before the trials; also what only the winner will need, which would be missed after them.
    tried = trial_experiment(experiment, sweep, {}).placed(f"{_SWEEPS}/{folder.name}")
    prepared = prepare_chain(store, tried, manifest, needs=[TEST])
    parts = _folds(prepared, sweep.folds, experiment.seed, folder) if sweep.folds else [prepared]
    earlier = read_run_id(folder / _PARENT_RUN)
    with open_run(store, experiment, run_id=earlier, tags={"sweep": folder.name}, own_metrics=False) as run:
        write_json(folder / _PARENT_RUN, {"run_id": run.id})
        run.log_json(sweep.model_dump(mode="json", exclude_none=True), "sweep.yaml")
        runs = TrialRuns(run, folder / _TRIAL_RUNS)
        runs.name_sweep(sweep.trials)
        runs.flush()
        from pipelines.sweeps.tuner import run_trials  # Ray, which takes seconds to import

        results = run_trials(experiment, sweep, parts, folder, runs)
        if not len(results) or all(result.error for result in results):
            raise SweepError(f"{folder}: no trial succeeded; MLflow has the error of each (tag error)")
        best = results.get_best_result(sweep.metric, "max", scope="last")
        settings, value = dict(best.config or {}), float((best.metrics or {})[sweep.metric])
        trials = [
            (dict(result.config), float(result.metrics[sweep.metric]))
            for result in results
            if result.metrics and result.config and sweep.metric in result.metrics
        ]
        log_sweep(sweep.metric, trials, settings, value)
        with write_aside(folder / BEST) as aside:
            aside.write_text(yaml.safe_dump({"settings": settings, "value": value}))
    return settings, value


def interrupted(experiment: Experiment, sweep: SweepConfig) -> bool:
    """Whether the newest sweep of the experiment has no trained winner, and is this one with these settings."""
    found = _newest_open(experiment)
    return found is not None and (found / _SWEEP).read_text() == _sweep_text(experiment, sweep)


def _folds(prepared: Prepared, folds: int, seed: int, folder: Path) -> list[Prepared]:
    """The training images cut into folds, each time another one held out."""
    fold_N = stratify(prepared.manifest.split(TRAIN).targets(), [1 / folds] * folds, seed)
    found = []
    for number in range(folds):
        part = hold_out(prepared.manifest, fold_N == number)
        if not any(part.split(VALIDATION).labels):
            raise DatasetError(f"fold {number} of {folds}: none of its images shows a class; lower folds")
        found.append(prepared.with_manifest(part, folder / f"fold-{number}.parquet"))
    return found


def _newest(experiment: Experiment) -> Path:
    return max((experiment.folder / _SWEEPS).glob("*/"))


def _newest_open(experiment: Experiment) -> Path | None:
    """The folder of the newest sweep, if trials of it were started and its winner is not trained."""
    newest = max((experiment.folder / _SWEEPS).glob("*/"), default=None)
    started = newest is not None and (newest / "tune" / "tuner.pkl").exists() and not (newest / _DONE).exists()
    return newest if started else None


def _sweep_text(experiment: Experiment, sweep: SweepConfig) -> str:
    """What tells one sweep from another: its settings, those of the experiment, and the data."""
    data = experiment.model_dump(mode="json", include={"dataset", "encoder", "text_encoder", "first"})
    del data["encoder"]["num_workers"], data["encoder"]["batch_size"], data["dataset"]["on_bad_image"]
    named = fingerprint([experiment.training_fingerprint, data])
    return yaml.safe_dump({"experiment": named, **sweep.model_dump(mode="json")})


def _folder(experiment: Experiment, sweep: SweepConfig, resume: bool) -> Path:
    """A new sweep's folder, or the newest one's that is not done."""
    root = experiment.folder / _SWEEPS
    if not resume:
        folder = root / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        folder.mkdir(parents=True)
        (folder / _SWEEP).write_text(_sweep_text(experiment, sweep))
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
