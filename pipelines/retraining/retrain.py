"""`cprfl retrain`: where data or configuration changed, train a challenger, compare it with the champion, decide.

The challenger lies in ``outputs/<name>/challenger``. It moves to ``outputs/<name>`` when it becomes the champion; a
model that does not leaves what is there as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cprfl import recipe
from cprfl.data.manifest import TEST
from cprfl.data.temporary import temporary_folder
from cprfl.errors import CheckpointError
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment, experiment_of
from cprfl.inference.scoring import EVALUATION
from cprfl.preparation import CHECKPOINT, Prepared
from cprfl.progress import say
from cprfl.training.checkpoint import load_info
from pipelines.lock import one_at_a_time
from pipelines.retraining.request import Request, make_request
from pipelines.stages.champion import Standing, check_champion, read_standing, stand_beside_champion
from pipelines.stages.places import CHALLENGER, RETRAINING, adopt, begin, finish_adoption
from pipelines.stages.report import write_report
from pipelines.stages.train import evaluate as evaluate_in_run
from pipelines.stages.train import prepare_chain, train, trained_run, training_run
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.tune import interrupted, mark_winner_trained, search
from pipelines.tracking import registry
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, open_store
from pipelines.tracking.titles import in_short
from pipelines.tracking.verdicts import (
    Decision,
    Verdict,
    carry_out,
    judged_runs_not_ended,
    run_of,
    unfinished,
    write_verdict,
)

_TAG = "retraining"


@dataclass(frozen=True)
class Retraining:
    """What a retraining came to.

    Attributes:
        decision: ``nothing new``, ``first``, ``promoted`` or ``kept``.
        reason: in one sentence.
        version: of the challenger, or the one that had been judged before.
        champion: the version that is champion now.
        metrics: of the challenger on the test images; none where nothing was new.
        run_id: the challenger's MLflow run; none where nothing was new.
        standing: beside the champion that it was judged against; none where there was none.
        folder: where the challenger's files lie now; none where nothing was new.
    """

    decision: str
    reason: str
    version: str
    champion: str
    metrics: dict[str, float] | None = None
    run_id: str | None = None
    standing: Standing | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class Challenger:
    """A trained model that wants to be champion: its experiment, with what a sweep found for it, its data, its run."""

    experiment: Experiment
    prepared: Prepared
    run_id: str

    @property
    def checkpoint(self) -> Path:
        """The trained model's folder."""
        return self.experiment.folder / CHECKPOINT


@one_at_a_time
def retrain(experiment: Experiment, sweep: SweepConfig | None = None) -> Retraining:
    """Train and judge a challenger, unless one was judged for the same data and configuration.

    Both models are scored on the same test images, those of the request. Whatever interrupts this leaves the alias on a
    model that was judged. Started again, it goes on with what was trained, and with what was decided.

    Args:
        experiment: what to train.
        sweep: searched around the champion's settings first.

    Raises:
        ConfigError: where a floor is for a class that the data does not have.
    """
    store = open_store(experiment.output_dir)
    done = finish_decisions(store, experiment)
    request = make_request(store, experiment, sweep)
    if request.key in done:
        return done[request.key]
    earlier = earlier_decision(store, request)
    if earlier is not None:
        return earlier
    challenger = train_challenger(store, request)
    evaluate_challenger(store, challenger)
    return decide(store, challenger, request)


def finish_decisions(store: Store, experiment: Experiment) -> dict[str, Retraining]:
    """Carry out what an interrupted retraining had decided, and bring the champion's files to their place.

    Returns:
        What it came to, by the key of the request.
    """
    finish_adoption(experiment)
    name = experiment.name
    carried_out = [verdict for verdict in unfinished(store, name) if carry_out(store, name, verdict)]
    for run_id in judged_runs_not_ended(store, name):
        with open_run(store, experiment.placed(CHALLENGER), run_id=run_id, own_metrics=False):
            pass  # it ends well now: nothing was left to do in it
    present = registry.champion(store, name)
    model = place_of(store, experiment, present) if present is not None else None
    if model is not None and model.folder != experiment.folder:
        adopt(model)
    return {verdict.request: _concluded(store, experiment, verdict) for verdict in carried_out}


def place_of(store: Store, experiment: Experiment, version: str) -> Experiment | None:
    """The experiment with the place where a version's files lie, if they lie here."""
    run_id = run_of(store, experiment.name, version)
    places = (experiment.placed(""), experiment.placed(CHALLENGER))
    return next((place for place in places if trained_run(store, place, {}) == run_id), None)


def earlier_decision(store: Store, request: Request) -> Retraining | None:
    """The answer, where a version was judged for this request before."""
    name = request.experiment.name
    version, present = registry.judged_version(store, name, request.key), registry.champion(store, name)
    if version is None or present is None:
        return None
    reason = f"version {version} was trained with this configuration on this data"
    return Retraining("nothing new", reason, version, present)


def train_challenger(store: Store, request: Request) -> Challenger:
    """Search, where a sweep is given, and train; what an interrupted retraining has trained is taken."""
    experiment, tags = request.experiment.placed(CHALLENGER), {_TAG: request.key}
    check_champion(store, experiment.name)
    if trained_run(store, experiment, tags) is not None:
        say(f"{experiment.name}: the challenger is trained")
        return trained_challenger(store, request)
    prepared, asked = request.prepared, request.experiment.placed(RETRAINING)
    if request.sweep is not None:
        found = _searched(store, request, request.sweep)
        experiment, asked = found.placed(CHALLENGER), found.placed(RETRAINING)
        prepared = prepare_chain(store, asked, request.dataset, needs=[TEST], encoder=prepared.encoder)
    begin(experiment, prepared, asked.folder)
    with training_run(store, experiment, prepared, tags) as run:
        train(experiment, prepared, run)
    if request.sweep is not None:
        mark_winner_trained(request.experiment)
    return Challenger(experiment, prepared, run.id)


def trained_challenger(store: Store, request: Request) -> Challenger:
    """The challenger that was trained for a request.

    Raises:
        CheckpointError: where none was trained.
    """
    place = request.experiment.placed(CHALLENGER)
    run_id = trained_run(store, place, {_TAG: request.key})
    if run_id is None:
        raise CheckpointError(f"{place.folder}: no challenger was trained for this request; retrain again")
    checkpoint = place.folder / CHECKPOINT
    experiment = experiment_of(load_info(checkpoint), checkpoint)
    prepared = request.prepared
    if request.sweep is not None:  # which may have chosen other text embeddings
        asked = experiment.placed(RETRAINING)
        prepared = prepare_chain(store, asked, request.dataset, needs=[TEST], encoder=prepared.encoder)
    experiment = experiment.placed(CHALLENGER)
    recipe.remove_resumable(experiment, prepared)  # where the training's process was killed just before that
    return Challenger(experiment, prepared, run_id)


def evaluate_challenger(store: Store, challenger: Challenger) -> Evaluation:
    """The challenger's metrics on the request's test images; beside the champion, with a report, logged to its run."""
    with open_run(store, challenger.experiment, run_id=challenger.run_id) as run:
        evaluation = evaluate_in_run(challenger.experiment, challenger.prepared, challenger.checkpoint, run)
        stand_beside_champion(store, challenger.experiment, challenger.prepared, run)
        write_report(challenger.experiment, challenger.prepared, run)
        return evaluation


def decide(store: Store, challenger: Challenger, request: Request) -> Retraining:
    """Register the evaluated challenger, write the verdict down, move the alias or leave it, and move the files."""
    experiment, name = challenger.experiment, challenger.experiment.name
    with open_run(store, experiment, run_id=challenger.run_id) as run:
        version = registry.register(experiment, challenger.prepared, challenger.checkpoint)
        present = registry.champion(store, name)
        standing = read_standing(experiment)
        if present is not None and (standing is None or standing.champion != present):  # another one since
            standing = stand_beside_champion(store, experiment, challenger.prepared, run)
        if present is None or standing is None:
            verdict = Verdict(version, "first", "there was no champion", request.key, run.id, None)
        else:
            decision: Decision = "promoted" if standing.comparison.promoted else "kept"
            run.log_tags({"decision": decision, "reason": standing.comparison.reason})
            verdict = Verdict(version, decision, standing.comparison.reason, request.key, run.id, present)
        write_verdict(store, name, verdict)
        carry_out(store, name, verdict)
    if verdict.decision != "kept":
        adopt(experiment)
    return _concluded(store, request.experiment, verdict)


def _concluded(store: Store, experiment: Experiment, verdict: Verdict) -> Retraining:
    """What a verdict that was carried out came to."""
    kept = verdict.decision == "kept"
    model = experiment.placed(CHALLENGER if kept else "")
    champion = verdict.champion if kept else verdict.version
    assert champion is not None
    said = Retraining(verdict.decision, verdict.reason, verdict.version, champion, run_id=verdict.run_id)
    if trained_run(store, model, {}) != verdict.run_id:  # another machine has its files
        return said
    metrics = Evaluation.read(model.folder / EVALUATION).metrics
    return replace(said, metrics=metrics, standing=read_standing(model), folder=model.folder)


def _searched(store: Store, request: Request, sweep: SweepConfig) -> Experiment:
    """The experiment with the best settings found around those of the champion."""
    experiment = centre = request.experiment
    if (present := registry.champion(store, experiment.name)) is not None:
        with temporary_folder() as folder:
            holder = registry.fetch(store, experiment.name, present, folder)
            trained = experiment_of(load_info(holder.checkpoint), holder.checkpoint)
        centre = experiment.changed(trained.settings(experiment.settings(sweep.space)))
    around = sweep.around(centre)
    settings, _ = search(store, centre, around, request.dataset, resume=interrupted(centre, around))
    say(f"{experiment.name}: retraining with {in_short(settings)}")
    return experiment.changed(settings)
