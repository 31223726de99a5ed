"""`cprfl run` and `cprfl evaluate`: all stages of an experiment, one MLflow run each for it and its variants."""

from __future__ import annotations

import sys

from cprfl.data.manifest import TEST
from cprfl.errors import CheckpointError
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.inference.scoring import EVALUATION
from cprfl.preparation import CHECKPOINT, EncoderOnce, Prepared
from cprfl.reading import read_data
from pipelines.request import request_key
from pipelines.stages.preprocess import preprocess
from pipelines.stages.train import dataset_of, evaluate, prepare_chain, train, trained_run, training_run
from pipelines.tracking.registry import accept_first, register
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import Store, open_store


def run(experiment: Experiment) -> dict[str, Evaluation]:
    """Preprocess, train, evaluate and register an experiment, then train and evaluate its variants.

    Returns:
        The test metrics by experiment name, in the order in which they were trained.
    """
    store = open_store(experiment.output_dir)  # an unreachable server is better known before the work than after it
    manifest, results = read_data(experiment), dict[str, Evaluation]()
    encoder: EncoderOnce | None = None
    for other in (experiment, *(experiment.variant(key) for key in experiment.variants)):
        dataset = dataset_of(other, experiment, manifest)
        prepared = prepare_chain(store, other, dataset, needs=[TEST], encoder=encoder)
        encoder = encoder or prepared.encoder
        if (before := other.first_experiment) is not None and (before.folder / EVALUATION).exists():
            results[before.name] = Evaluation.read(before.folder / EVALUATION)
        results[other.name] = run_prepared(store, other, prepared, registered=other is experiment)
    return results


def run_prepared(
    store: Store,
    experiment: Experiment,
    prepared: Prepared,
    *,
    registered: bool = False,
    tags: dict[str, str] | None = None,
) -> Evaluation:
    """Train and evaluate one experiment in an MLflow run of its own.

    The first registered version becomes the champion; later ones have to earn it (`cprfl retrain`).
    """
    with training_run(store, experiment, prepared, tags) as active:
        checkpoint = train(experiment, prepared, active)
        evaluation = evaluate(experiment, prepared, checkpoint, active)
        if registered:
            version = register(experiment, prepared, checkpoint)
            accept_first(store, experiment.name, version, request_key(experiment, prepared))
            print(f"registered {experiment.name}, version {version}", file=sys.stderr)
    return evaluation


def evaluate_stage(experiment: Experiment) -> Evaluation:
    """`cprfl evaluate`: the trained checkpoint's test metrics, logged to the run that trained it.

    Raises:
        CheckpointError: where nothing has been trained.
    """
    store = open_store(experiment.output_dir)
    run_id = trained_run(store, experiment, {})
    if run_id is None:
        raise CheckpointError(
            f"{experiment.folder}: no trained checkpoint here, or one whose run is of another MLflow store or was "
            "deleted; run `cprfl train CONFIG` first"
        )
    prepared = preprocess(experiment, needs=[TEST])
    with open_run(store, experiment, run_id=run_id) as active:
        return evaluate(experiment, prepared, experiment.folder / CHECKPOINT, active)
