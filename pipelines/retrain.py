"""`cprfl retrain`: where data or configuration changed, train a challenger, compare it with the champion, decide."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from cprfl.comparison import Comparison, compare
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation import evaluate
from cprfl.experiment import Experiment
from cprfl.predictor import described
from cprfl.training.checkpoint import load_info
from pipelines import registry, tracking
from pipelines.evaluate import EVALUATION, PREDICTIONS, score
from pipelines.preprocess import Prepared, preprocess
from pipelines.register import register
from pipelines.run import evaluate_stage, train_stage, trained_run
from pipelines.sweep import SweepConfig
from pipelines.train import CHECKPOINT
from pipelines.tune import finish, interrupted, search

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


def retrain(experiment: Experiment, sweep: SweepConfig | None = None) -> Retraining:
    """Train and judge a challenger, unless one was judged for the same data and configuration.

    Both models are scored on the same, current test images. Whatever interrupts this leaves the alias on a model that
    was judged: it is moved last. Started again, it goes on with what was trained.

    Args:
        experiment: what to train.
        sweep: searched around the champion's settings first.

    Raises:
        ConfigError: where a floor is for a class that the data does not have.
    """
    request = ask(experiment, sweep)
    if request.judged is not None:
        return request.judged
    challenger = train_challenger(experiment, request, sweep)
    evaluate_stage(challenger)
    return decide(challenger, request)


@dataclass(frozen=True)
class Request:
    """What a retraining is asked for.

    Attributes:
        key: of data, configuration, rules and sweep.
        judged: the answer, where a version was judged for this key before.
    """

    key: str
    judged: Retraining | None


def ask(experiment: Experiment, sweep: SweepConfig | None = None) -> Request:
    """Prepare the data, and look whether anything is new in them or in the configuration."""
    tracking.open_store(experiment)
    prepared = preprocess(experiment)
    unknown = sorted(set(experiment.promotion.class_floors) - set(prepared.read_manifest().class_names))
    if unknown:
        raise ConfigError(f"promotion.class_floors: no class is named {', '.join(unknown)}")
    key = registry.request_key(experiment, prepared, sweep)
    version, champion = registry.judged(experiment.name, key), registry.champion(experiment.name)
    if version is None or champion is None:
        return Request(key, None)
    reason = f"version {version.version} was trained with this configuration on this data"
    return Request(key, Retraining("nothing new", reason, str(version.version), champion))


def train_challenger(experiment: Experiment, request: Request, sweep: SweepConfig | None = None) -> Experiment:
    """Search, where a sweep is given, and train; what an interrupted retraining has trained is taken.

    Returns:
        The experiment of the checkpoint that is now in the experiment's folder.
    """
    tracking.open_store(experiment)
    tags = {_TAG: request.key}
    if trained_run(experiment, tags) is not None:
        print(f"{experiment.name}: the challenger is trained", file=sys.stderr)
        return trained(experiment, request)
    if sweep is None:
        train_stage(experiment, tags)
        return experiment
    searched = _searched(experiment, sweep)
    train_stage(searched, tags)
    finish(experiment)
    return searched


def trained(experiment: Experiment, request: Request) -> Experiment:
    """The experiment of the challenger that was trained for a request, with the settings that a sweep found for it.

    Raises:
        CheckpointError: where none was trained, or data or configuration changed since.
    """
    if trained_run(experiment, {_TAG: request.key}) is None:
        raise CheckpointError(
            f"{experiment.folder}: no challenger was trained for the present data and configuration; retrain again"
        )
    checkpoint = experiment.folder / CHECKPOINT
    return described(load_info(checkpoint), checkpoint)


def decide(challenger: Experiment, request: Request) -> Retraining:
    """Register the evaluated challenger, compare it with the champion and move the alias, or leave it."""
    tracking.open_store(challenger)
    name, prepared = challenger.name, preprocess(challenger)
    run_id, checkpoint = trained_run(challenger, {}), challenger.folder / CHECKPOINT
    metrics = json.loads((challenger.folder / EVALUATION).read_text())
    with tempfile.TemporaryDirectory() as folder, tracking.run(challenger, run_id=run_id) as sink:
        version = register(challenger, prepared, checkpoint)
        present = registry.champion(name)
        if present is None:
            registry.accept_first(name, version, request.key)
            return Retraining("first", "there was no champion", version, version, metrics, sink.run_id)
        comparison = _compare(challenger, prepared, registry.fetch(name, present, Path(folder)))
        tracking.log_json({"champion_version": present, **comparison.as_json()}, COMPARISON)
        tracking.log_results({"gain/mAP": comparison.challenger["mAP"] - comparison.champion["mAP"]})
        decision = "promoted" if comparison.promoted else "kept"
        tracking.log_tags({"decision": decision, "reason": comparison.reason[:5000]})
        (registry.promote if comparison.promoted else registry.keep)(name, version, request.key, comparison.reason)
    champion = version if comparison.promoted else present
    return Retraining(decision, comparison.reason, version, champion, metrics, sink.run_id)


def _searched(experiment: Experiment, sweep: SweepConfig) -> Experiment:
    """The experiment with the best settings found around those of the champion."""
    centre = experiment
    if (present := registry.champion(experiment.name)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            holder = registry.fetch(experiment.name, present, Path(folder))
            trained = described(load_info(holder.checkpoint), holder.checkpoint)
        centre = experiment.changed(trained.settings(experiment.settings(sweep.space)))
    around = sweep.around(centre)
    settings, _ = search(centre, around, resume=interrupted(centre, around))
    print(f"{experiment.name}: retraining with {settings}", file=sys.stderr)
    return experiment.changed(settings)


def _compare(experiment: Experiment, prepared: Prepared, holder: registry.RegisteredModel) -> Comparison:
    """The evaluated challenger against the champion on the current test images."""
    manifest = prepared.read_manifest()
    test = manifest.split(TEST)
    targets_NC = test.targets()
    table = pq.read_table(experiment.folder / PREDICTIONS)
    assert tuple(table["image_id"].to_pylist()) == test.image_ids
    challenger_NC = np.array(table["scores"].to_pylist())
    champion_NC = _in_classes_of(
        manifest, score(experiment, prepared, holder.checkpoint, holder.encoder_weights), holder
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
