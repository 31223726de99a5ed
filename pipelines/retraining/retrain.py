"""`cprfl retrain`: where data or configuration changed, train a challenger, compare it with the champion, decide."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import CheckpointError
from cprfl.evaluation.comparison import Comparison, compare
from cprfl.evaluation.metrics import Evaluation, evaluate, read_predictions
from cprfl.experiment import Experiment, experiment_of
from cprfl.inference.scoring import EVALUATION, PREDICTIONS, score_test_images
from cprfl.preparation import CHECKPOINT, Prepared
from cprfl.training.checkpoint import load_info
from pipelines.retraining.request import Request, make_request
from pipelines.stages.train import evaluate as evaluate_in_run
from pipelines.stages.train import prepare_chain, train, trained_run, training_run
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.tune import interrupted, mark_winner_trained, search
from pipelines.tracking import registry
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, open_store

COMPARISON = "comparison.json"
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
    """

    decision: str
    reason: str
    version: str
    champion: str
    metrics: dict[str, float] | None = None
    run_id: str | None = None


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


def retrain(experiment: Experiment, sweep: SweepConfig | None = None) -> Retraining:
    """Train and judge a challenger, unless one was judged for the same data and configuration.

    Both models are scored on the same test images, those of the request. Whatever interrupts this leaves the alias on a
    model that was judged: it is moved last. Started again, it goes on with what was trained.

    Args:
        experiment: what to train.
        sweep: searched around the champion's settings first.

    Raises:
        ConfigError: where a floor is for a class that the data does not have.
    """
    store = open_store(experiment.output_dir)
    request = make_request(store, experiment, sweep)
    earlier = earlier_decision(store, request)
    if earlier is not None:
        return earlier
    challenger = train_challenger(store, request)
    evaluate_challenger(store, challenger)
    return decide(store, challenger, request)


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
    experiment, tags = request.experiment, {_TAG: request.key}
    _check_champion(store, experiment.name)
    if trained_run(store, experiment, tags) is not None:
        print(f"{experiment.name}: the challenger is trained", file=sys.stderr)
        return trained_challenger(store, request)
    prepared = request.prepared
    if request.sweep is not None:
        experiment = _searched(store, request, request.sweep)
        prepared = prepare_chain(store, experiment, request.dataset, needs=[TEST], encoder=prepared.encoder)
    with training_run(store, experiment, prepared, tags) as run:
        train(experiment, prepared, run)
    if request.sweep is not None:
        mark_winner_trained(experiment)
    return Challenger(experiment, prepared, run.id)


def _check_champion(store: Store, name: str) -> None:
    """Make sure, before anything is trained, that the champion can be compared with.

    Raises:
        CheckpointError: where another version of cprfl wrote it.
    """
    if (present := registry.champion(store, name)) is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_info(registry.fetch(store, name, present, Path(folder)).checkpoint)
        except CheckpointError as error:
            raise CheckpointError(
                f"the champion, models:/{name}/{present}, cannot be compared with: {error}; set the alias "
                f"{registry.CHAMPION} on another version in `cprfl ui`, or delete it, and the next model is the first"
            ) from None


def trained_challenger(store: Store, request: Request) -> Challenger:
    """The challenger that was trained for a request.

    Raises:
        CheckpointError: where none was trained.
    """
    asked = request.experiment
    run_id = trained_run(store, asked, {_TAG: request.key})
    if run_id is None:
        raise CheckpointError(f"{asked.folder}: no challenger was trained for this request; retrain again")
    checkpoint = asked.folder / CHECKPOINT
    experiment = experiment_of(load_info(checkpoint), checkpoint)
    same = request.sweep is None  # a sweep may have chosen other text embeddings
    if same:
        return Challenger(experiment, request.prepared, run_id)
    prepared = prepare_chain(store, experiment, request.dataset, needs=[TEST], encoder=request.prepared.encoder)
    return Challenger(experiment, prepared, run_id)


def evaluate_challenger(store: Store, challenger: Challenger) -> Evaluation:
    """The challenger's metrics on the request's test images, logged to its run."""
    with open_run(store, challenger.experiment, run_id=challenger.run_id) as run:
        return evaluate_in_run(challenger.experiment, challenger.prepared, challenger.checkpoint, run)


def decide(store: Store, challenger: Challenger, request: Request) -> Retraining:
    """Register the evaluated challenger, compare it with the champion and move the alias, or leave it."""
    experiment, name = challenger.experiment, challenger.experiment.name
    metrics = Evaluation.read(experiment.folder / EVALUATION).metrics
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(store, experiment, run_id=challenger.run_id) as run,
    ):
        version = registry.register(experiment, challenger.prepared, challenger.checkpoint)
        present = registry.champion(store, name)
        if present is None:
            registry.accept_first(store, name, version, request.key)
            return Retraining("first", "there was no champion", version, version, metrics, run.id)
        comparison = _compare(challenger, registry.fetch(store, name, present, Path(folder)))
        run.log_json({"champion_version": present, **comparison.as_json()}, COMPARISON)
        run.log_results({"gain/mAP": comparison.challenger["mAP"] - comparison.champion["mAP"]})
        decision = "promoted" if comparison.promoted else "kept"
        run.log_tags({"decision": decision, "reason": comparison.reason})
        note = registry.promote if comparison.promoted else registry.reject
        note(store, name, version, request.key, comparison.reason)
    champion = version if comparison.promoted else present
    return Retraining(decision, comparison.reason, version, champion, metrics, run.id)


def _searched(store: Store, request: Request, sweep: SweepConfig) -> Experiment:
    """The experiment with the best settings found around those of the champion."""
    experiment = centre = request.experiment
    if (present := registry.champion(store, experiment.name)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            holder = registry.fetch(store, experiment.name, present, Path(folder))
            trained = experiment_of(load_info(holder.checkpoint), holder.checkpoint)
        centre = experiment.changed(trained.settings(experiment.settings(sweep.space)))
    around = sweep.around(centre)
    settings, _ = search(store, centre, around, request.dataset, resume=interrupted(centre, around))
    print(f"{experiment.name}: retraining with {settings}", file=sys.stderr)
    return experiment.changed(settings)


def _compare(challenger: Challenger, holder: registry.RegisteredModel) -> Comparison:
    """The evaluated challenger against the champion on the request's test images."""
    experiment, manifest = challenger.experiment, challenger.prepared.manifest
    test = manifest.split(TEST)
    targets_NC = test.targets()
    challenger_NC = read_predictions(experiment.folder / PREDICTIONS, test.image_ids)
    champion_NC = _in_classes_of(
        manifest,
        score_test_images(experiment, challenger.prepared, holder.checkpoint, holder.encoder_weights),
        holder,
    )
    new, old = (
        evaluate(scores, targets_NC, manifest.class_names, class_counts(manifest), manifest.groups)
        for scores in (challenger_NC, champion_NC)
    )
    return compare(new, old, challenger_NC, champion_NC, targets_NC, experiment.promotion, experiment.seed)


def _in_classes_of(manifest: Manifest, logits_NC: np.ndarray, holder: registry.RegisteredModel) -> np.ndarray:
    """The champion's scores in the order of the present classes; of one that it does not know it has no opinion."""
    known = {name: column for column, name in enumerate(load_info(holder.checkpoint).class_names)}
    columns = [
        logits_NC[:, known[name]] if name in known else np.zeros(len(logits_NC), logits_NC.dtype)
        for name in manifest.class_names
    ]
    return np.stack(columns, axis=1)
