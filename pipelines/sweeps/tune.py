"""`cprfl tune`: search settings on held-out training images, then train and test the winner once."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cprfl import recipe
from cprfl.data.files import fingerprint, write_text
from cprfl.data.long_tail import hold_out
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from cprfl.data.stratify import stratify
from cprfl.errors import DatasetError, SweepError
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.inference.scoring import EVALUATION
from cprfl.preparation import Prepared
from cprfl.progress import go_on_with, say
from cprfl.reading import read_data
from pipelines.lock import one_at_a_time
from pipelines.request import request_key
from pipelines.stages.champion import Standing, check_champion, read_standing, stand_beside_champion
from pipelines.stages.places import TUNED, begin
from pipelines.stages.report import write_report
from pipelines.stages.train import evaluate, prepare_chain, train, trained_run, training_run
from pipelines.sweeps.config import SweepConfig, trial_experiment
from pipelines.sweeps.record import Trials
from pipelines.tracking.notes import SWEEP_RUN
from pipelines.tracking.registry import accept_first, register
from pipelines.tracking.runs import has_ended_well, open_run
from pipelines.tracking.store import Store, open_store
from pipelines.tracking.sweeps import TrialRuns, log_sweep, sweep_run
from pipelines.tracking.titles import in_short

BEST, _SWEEP, _DONE = "best.yaml", "sweep.yaml", "done"
_SWEEPS = "sweeps"  # below outputs/<name>, a folder for each
_RECORD = "record"  # below that, a file for each trial


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


@one_at_a_time
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
    searched = sweep.around(experiment)
    _folder(experiment, searched, resume)
    go_on_with("the same command with --resume")  # which finds that folder
    settings, value = search(store, experiment, searched, manifest, resume=True)
    say(f"{experiment.name}: best {sweep.metric.replace('/', ' ')} {value:.1f} with {in_short(settings)}")
    winner = experiment.changed(settings)
    folder = _newest(experiment)
    assert folder is not None
    evaluation, standing = _train_winner(store, winner, manifest, folder)
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
    origin = sweep_run(store, tuned.name, sweep.name)
    tags = {"sweep": "winner"} | ({SWEEP_RUN: origin} if origin else {})
    if origin is not None and _has_trained_winner(store, tuned, prepared, tags):
        say(f"{experiment.name}: the winner is trained")
        recipe.remove_resumable(tuned, prepared)
        return Evaluation.read(tuned.folder / EVALUATION), read_standing(tuned)
    begin(tuned, prepared, asked.folder)
    with training_run(store, tuned, prepared, tags) as run:
        checkpoint = train(tuned, prepared, run)
        evaluation = evaluate(tuned, prepared, checkpoint, run)
        standing = stand_beside_champion(store, tuned, prepared, run)
        version = register(tuned, prepared, checkpoint)
        accept_first(store, tuned.name, version, request_key(tuned, prepared))
        say(f"registered {tuned.name}, version {version}")
        write_report(tuned, prepared, run)
    return evaluation, standing


def _has_trained_winner(store: Store, tuned: Experiment, prepared: Prepared, tags: dict[str, str]) -> bool:
    """Whether the winner whose run has these tags went through all of it, and only the note of that is missing."""
    if not (tuned.folder / EVALUATION).exists() or not recipe.is_trained(tuned, prepared):
        return False
    run_id = trained_run(store, tuned, tags)
    return run_id is not None and has_ended_well(store, run_id)


def mark_winner_trained(experiment: Experiment) -> None:
    """Write down that the newest sweep's winner is trained, so that nothing goes on with the sweep."""
    newest = _newest(experiment)
    assert newest is not None
    (newest / _DONE).touch()


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
    trials = Trials(folder / _RECORD)
    best, earlier = trials.best(sweep.metric), sweep_run(store, experiment.name, folder.name)
    written = earlier is not None and (folder / BEST).exists() and has_ended_well(store, earlier)
    if best is not None and trials.ended(sweep.trials) and written:
        return best.settings, best.last(sweep.metric)  # only the winner's training was interrupted
    # Once, before the trials; also what only the winner will need, which would be missed after them.
    tried = trial_experiment(experiment, sweep, {}).placed(f"{_SWEEPS}/{folder.name}")
    prepared = prepare_chain(store, tried, manifest, needs=[TEST])
    parts = _folds(prepared, sweep.folds, experiment.seed, folder) if sweep.folds else [prepared]
    with open_run(store, experiment, run_id=earlier, tags={"sweep": folder.name}, own_metrics=False) as run:
        run.log_json(sweep.model_dump(mode="json", exclude_none=True), "sweep.yaml")
        runs = TrialRuns(run)
        runs.name_sweep(sweep.trials)
        with runs.closed_with_the_sweep():
            for trial in trials:  # MLflow may not know all that an earlier process wrote down
                if trial.status != "running":
                    runs.write(trial.state(sweep.scheduler == "pbt"))
            if not trials.ended(sweep.trials):
                from pipelines.sweeps.tuner import run_trials  # Ray, which takes seconds to import

                run_trials(experiment, sweep, parts, folder, trials, runs)
            runs.catch_up()
        best = trials.best(sweep.metric)
        if best is None:
            (folder / _DONE).touch()  # there is nothing to go on with
            raise SweepError(f"{folder}: no trial succeeded; MLflow has the error of each (tag error)")
        settings, value = best.settings, best.last(sweep.metric)
        results = [(trial.settings, trial.last(sweep.metric)) for trial in trials if trial.succeeded]
        log_sweep(sweep.metric, results, settings, value)
        write_text(folder / BEST, yaml.safe_dump({"settings": settings, "value": value}))  # for people
    return settings, value


def interrupted(experiment: Experiment, sweep: SweepConfig) -> bool:
    """Whether the newest sweep of the experiment has no trained winner, and is this one with these settings."""
    found = _newest_open(experiment)
    return found is not None and (found / _SWEEP).read_text() == _sweep_text(experiment, sweep)


def _folds(prepared: Prepared, folds: int, seed: int, folder: Path) -> list[Prepared]:
    """The training images cut into folds, each time another one held out."""
    fold_N = stratify(prepared.manifest.split(TRAIN).labels, [1 / folds] * folds, seed)
    found = []
    for number in range(folds):
        part = hold_out(prepared.manifest, fold_N == number)
        if not any(part.split(VALIDATION).labels):
            raise DatasetError(f"fold {number} of {folds}: none of its images shows a class; lower folds")
        found.append(prepared.with_manifest(part, folder / f"fold-{number}.parquet"))
    return found


def _newest(experiment: Experiment) -> Path | None:
    """The folder of the newest sweep."""
    return max((experiment.folder / _SWEEPS).glob("[0-9]*/"), default=None)


def _newest_open(experiment: Experiment) -> Path | None:
    """The folder of the newest sweep, if its winner is not trained."""
    newest = _newest(experiment)
    return newest if newest is not None and not (newest / _DONE).exists() else None


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
        name, newest = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}", _newest(experiment)
        if newest is not None and name <= newest.name:  # within a second, or the clock was put back
            name = f"{newest.name}-{uuid.uuid4().hex[:4]}"
        aside = root / f".{name}"  # a sweep's folder is there with what it searches, or not at all
        aside.mkdir(parents=True)
        (aside / _SWEEP).write_text(_sweep_text(experiment, sweep))
        return aside.rename(root / name)
    found = _newest_open(experiment)
    if found is None:
        raise SweepError(f"{root}: no interrupted sweep here; run `cprfl tune` without --resume")
    if not interrupted(experiment, sweep):
        raise SweepError(
            f"{found / _SWEEP}: the interrupted sweep was another one, or of another configuration; give that, or "
            "start anew without --resume"
        )
    return found
