"""All stages of an experiment and of its variants, one MLflow run each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cprfl.data.files import write_json
from cprfl.errors import CheckpointError
from cprfl.evaluation import Evaluation
from cprfl.experiment import Experiment
from pipelines import registry, tracking
from pipelines.evaluate import EVALUATION, PREDICTIONS, evaluate_checkpoint
from pipelines.metrics_sink import MetricsSink
from pipelines.preprocess import Prepared, preprocess
from pipelines.register import register
from pipelines.train import CHECKPOINT, forget, train, training_key, unfinished

_RUN = "run.json"


def run(experiment: Experiment) -> dict[str, Evaluation]:
    """Preprocess, train, evaluate and register an experiment, then train and evaluate its variants.

    Returns:
        The test metrics by experiment name, variants first and the experiment itself last.
    """
    tracking.open_store(experiment)  # an unreachable server is better known before the work than after it
    results = {experiment.name: run_one(experiment, registered=True)}
    for key in experiment.variants:
        variant = experiment.variant(key)
        results[variant.name] = run_one(variant, registered=False)
    return results


def run_one(experiment: Experiment, registered: bool, tags: dict[str, str] | None = None) -> Evaluation:
    """Preprocess, train and evaluate one experiment in an MLflow run of its own.

    The first registered version becomes the champion; later ones have to earn it (`cprfl retrain`).
    """
    prepared = preprocess(experiment)
    with training_run(experiment, prepared, tags) as sink:
        checkpoint = _train(experiment, prepared, sink)
        evaluation = _evaluate(experiment, prepared, checkpoint)
        if registered:
            version = register(experiment, prepared, checkpoint)
            registry.accept_first(experiment.name, version, registry.request_key(experiment, prepared))
            print(f"registered {experiment.name}, version {version}", file=sys.stderr)
    return evaluation


def train_stage(experiment: Experiment, tags: dict[str, str] | None = None) -> Path:
    """`cprfl train`: the checkpoint of a training in its own MLflow run, which gets the tags."""
    tracking.open_store(experiment)
    prepared = preprocess(experiment)
    with training_run(experiment, prepared, tags) as sink:
        return _train(experiment, prepared, sink)


def record_run(experiment: Experiment, sink: MetricsSink) -> None:
    """Write down the run of the checkpoint in the experiment's folder."""
    write_json(experiment.folder / _RUN, {"run_id": sink.run_id})


def trained_run(experiment: Experiment, tags: dict[str, str]) -> str | None:
    """The run of the checkpoint in the experiment's folder, if there is one and it has these tags."""
    run_id = tracking.read_run_id(experiment.folder / _RUN)
    return run_id if run_id is not None and tracking.has_tags(run_id, tags) else None


def evaluate_stage(experiment: Experiment) -> Evaluation:
    """`cprfl evaluate`: the trained checkpoint's test metrics, logged to the run that trained it.

    Raises:
        CheckpointError: where nothing has been trained.
    """
    tracking.open_store(experiment)
    run_id = trained_run(experiment, {})
    if run_id is None:
        raise CheckpointError(
            f"{experiment.folder}: no trained checkpoint here, or one of another MLflow store; "
            "run `cprfl train CONFIG` first"
        )
    prepared = preprocess(experiment)
    with tracking.run(experiment, run_id=run_id):
        return _evaluate(experiment, prepared, experiment.folder / CHECKPOINT)


@contextmanager
def training_run(
    experiment: Experiment, prepared: Prepared, tags: dict[str, str] | None = None
) -> Iterator[MetricsSink]:
    """A new MLflow run, or that of an interrupted training of the same experiment and data.

    The training can be gone on with until the block and the run have ended well.
    """
    key = training_key(experiment, prepared)
    earlier = tracking.interrupted_run(experiment, key) if unfinished(experiment, key) else None
    own = {
        "dataset_digest": prepared.read_manifest().digest,
        "encoder_fingerprint": prepared.encoder_fingerprint,
        "text_encoder": prepared.read_text_embeddings().encoder,
        "backbone": experiment.train.backbone,
        **tracking.training_tag(key),
    }
    with tracking.run(experiment, run_id=earlier, tags={**own, **(tags or {})}) as sink:
        yield sink
    forget(experiment, key)


def _train(experiment: Experiment, prepared: Prepared, sink: MetricsSink) -> Path:
    tracking.log_results(prepared.metrics)
    (experiment.folder / _RUN).unlink(missing_ok=True)  # the checkpoint there will soon be another one
    checkpoint = train(experiment, prepared, sink)
    record_run(experiment, sink)
    return checkpoint


def _evaluate(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Evaluation:
    evaluation = evaluate_checkpoint(experiment, prepared, checkpoint)
    files = (experiment.folder / EVALUATION, experiment.folder / PREDICTIONS, checkpoint)
    tracking.log_results(evaluation.prefixed("test"), *files)
    return evaluation
