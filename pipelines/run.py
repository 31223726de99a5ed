"""All stages of an experiment and of its variants, one MLflow run each."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from cprfl.data.files import write_json
from cprfl.errors import CheckpointError
from cprfl.evaluation import Evaluation
from cprfl.experiment import Experiment
from pipelines import tracking
from pipelines.evaluate import EVALUATION, PREDICTIONS, evaluate_checkpoint
from pipelines.preprocess import Prepared, preprocess
from pipelines.register import register
from pipelines.tracking import MetricsSink
from pipelines.train import CHECKPOINT, train, training_key, unfinished

_RUN = "run.json"


def run(experiment: Experiment) -> dict[str, Evaluation]:
    """Preprocess, train, evaluate and register an experiment, then train and evaluate its variants.

    Returns:
        The test metrics by experiment name, variants first and the experiment itself last.
    """
    tracking.open_store(experiment)  # an unreachable server is better known before the work than after it
    results = {experiment.name: _run_one(experiment, registered=True)}
    for key in experiment.variants:
        variant = experiment.variant(key)
        results[variant.name] = _run_one(variant, registered=False)
    return results


def _run_one(experiment: Experiment, registered: bool) -> Evaluation:
    prepared = preprocess(experiment)
    with _training_run(experiment, prepared) as sink:
        checkpoint = train(experiment, prepared, sink)
        write_json(experiment.folder / _RUN, {"run_id": sink.run_id})
        evaluation = _evaluate(experiment, prepared, checkpoint)
        if registered:
            version = register(experiment, prepared, checkpoint)
            print(f"registered {experiment.name}, version {version}", file=sys.stderr)
    return evaluation


def train_stage(experiment: Experiment) -> Path:
    """`cprfl train`: the checkpoint of a training in its own MLflow run."""
    tracking.open_store(experiment)
    prepared = preprocess(experiment)
    with _training_run(experiment, prepared) as sink:
        checkpoint = train(experiment, prepared, sink)
        write_json(experiment.folder / _RUN, {"run_id": sink.run_id})
    return checkpoint


def evaluate_stage(experiment: Experiment) -> Evaluation:
    """`cprfl evaluate`: the trained checkpoint's test metrics, logged to the run that trained it.

    Raises:
        CheckpointError: where nothing has been trained.
    """
    record = experiment.folder / _RUN
    if not record.exists():
        raise CheckpointError(f"{experiment.folder}: no trained checkpoint here; run `cprfl train CONFIG` first")
    prepared = preprocess(experiment)
    with tracking.run(experiment, run_id=json.loads(record.read_text())["run_id"]):
        return _evaluate(experiment, prepared, experiment.folder / CHECKPOINT)


def _training_run(experiment: Experiment, prepared: Prepared) -> AbstractContextManager[MetricsSink]:
    """A new MLflow run, or that of an interrupted training of the same experiment and data."""
    key = training_key(experiment, prepared)
    earlier = tracking.interrupted_run(experiment, key) if unfinished(experiment, key) else None
    tags = {
        "dataset_digest": prepared.read_manifest().digest,
        "encoder_fingerprint": prepared.encoder_fingerprint(experiment),
        "text_encoder": prepared.read_text_embeddings().encoder,
        "backbone": experiment.train.backbone,
        **tracking.training_tag(key),
    }
    return tracking.run(experiment, run_id=earlier, tags=tags)


def _evaluate(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Evaluation:
    evaluation = evaluate_checkpoint(experiment, prepared, checkpoint)
    files = (experiment.folder / EVALUATION, experiment.folder / PREDICTIONS, checkpoint)
    tracking.log_evaluation(evaluation.prefixed("test"), *files)
    return evaluation
