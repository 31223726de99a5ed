"""`cprfl run` and `cprfl evaluate`: all stages of an experiment, one MLflow run each for it and its variants."""

from __future__ import annotations

from cprfl import recipe
from cprfl.data.manifest import TEST
from cprfl.errors import CheckpointError
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.inference.scoring import EVALUATION, decided_by
from cprfl.preparation import CHECKPOINT, EncoderOnce, Prepared
from cprfl.progress import say
from cprfl.reading import read_data
from cprfl.training.checkpoint import load_info
from pipelines.lock import alone, one_at_a_time
from pipelines.request import request_key
from pipelines.stages.champion import stand_beside_champion
from pipelines.stages.preprocess import preprocess
from pipelines.stages.report import write_report
from pipelines.stages.train import (
    dataset_of,
    decide_where_trained,
    evaluate,
    prepare_chain,
    train,
    trained_run,
    training_run,
)
from pipelines.tracking.registry import accept_first, champion, register, version_of_run
from pipelines.tracking.runs import has_ended_well, open_run
from pipelines.tracking.store import Store, open_store


@one_at_a_time
def run(experiment: Experiment, *, again: bool = False) -> dict[str, Evaluation]:
    """Preprocess, train, evaluate and register an experiment, then train and evaluate its variants.

    What is there already, trained with these settings on these data and evaluated, is not made a second time.

    Args:
        experiment: with its variants.
        again: train all of it anew nevertheless.

    Returns:
        The test metrics by experiment name, in the order in which they were trained.
    """
    store = open_store(experiment.output_dir)  # an unreachable server is better known before the work than after it
    family = store.of_family(experiment.name)
    manifest, results = read_data(experiment), dict[str, Evaluation]()
    encoder: EncoderOnce | None = None
    for other in (experiment, *(experiment.variant(key) for key in experiment.variants)):
        with alone(other, "run"):
            dataset = dataset_of(other, experiment, manifest)
            prepared = prepare_chain(store, other, dataset, needs=[TEST], encoder=encoder)
            encoder = encoder or prepared.encoder
            if (before := other.first_experiment) is not None and (before.folder / EVALUATION).exists():
                results[before.name] = Evaluation.read(before.folder / EVALUATION)
            registered = other is experiment
            present = None if again else _present(family, other, prepared, registered)
            results[other.name] = present or run_prepared(family, other, prepared, registered=registered)
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
        checkpoint = train(experiment, prepared, active, decided=registered)
        evaluation = evaluate(experiment, prepared, checkpoint, active)
        if registered:
            stand_beside_champion(store, experiment, prepared, active)
            say(f"{experiment.name}: registering the model")
            version = register(experiment, prepared, checkpoint)
            accept_first(store, experiment.name, version, request_key(experiment, prepared))
            say(_registered(experiment.name, version, str(champion(store, experiment.name))))
            say(f"{experiment.name}: writing the report")
            write_report(experiment, prepared, active)
    return evaluation


def _registered(name: str, version: str, present: str) -> str:
    said = f"registered {name}, version {version}"
    if present == version:
        return said
    return (
        f"{said}; the champion is still version {present}, which `cprfl predict {name}`, `serve` and `export` take: "
        "`cprfl retrain CONFIG` judges a newer model, and promotes it if it is better"
    )


def _present(store: Store, experiment: Experiment, prepared: Prepared, registered: bool) -> Evaluation | None:
    """The evaluation of this very training, where model, results and run are there; it is said where they are."""
    done = experiment.folder / EVALUATION
    if not done.exists() or not recipe.is_trained(experiment, prepared):
        return None
    run_id = trained_run(store, experiment, {})
    if run_id is None or not has_ended_well(store, run_id):
        return None
    version = version_of_run(store, experiment.name, run_id) if registered else None
    if registered and version is None:
        return None
    recipe.remove_resumable(experiment, prepared)  # where a process was killed just before that
    known = f"registered as version {version}, " if version else ""
    say(f"{experiment.name}: {known}trained with these settings on these data; --again trains it anew")
    if decided_by(done) == experiment.decisions.model_dump(mode="json"):
        return Evaluation.read(done)
    say(f"{experiment.name}: evaluating it by the decisions that are asked for now")
    return _evaluate_in(store, experiment, prepared, run_id, decided=registered)


@one_at_a_time
def evaluate_stage(experiment: Experiment) -> Evaluation:
    """`cprfl evaluate`: the trained checkpoint's test metrics, logged to the run that trained it.

    Raises:
        CheckpointError: where nothing has been trained, or it is damaged.
    """
    store = open_store(experiment.output_dir)
    load_info(experiment.folder / CHECKPOINT)  # which says what is missing or damaged
    run_id = trained_run(store, experiment, {})
    if run_id is None:
        raise CheckpointError(
            f"{experiment.folder}: no trained checkpoint here, or one whose run is of another MLflow store or was "
            "deleted; run `cprfl train CONFIG` first"
        )
    return _evaluate_in(store, experiment, preprocess(experiment, needs=[TEST]), run_id, decided=False)


def _evaluate_in(store: Store, experiment: Experiment, prepared: Prepared, run_id: str, *, decided: bool) -> Evaluation:
    """Evaluate the trained checkpoint in the run that trained it; a registered version keeps what it was made with.

    Images are held out first, where none were and somebody is to act on the scores (``decided``).
    """
    checkpoint, asked = experiment.folder / CHECKPOINT, experiment.decisions.model_dump(mode="json")
    with open_run(store, experiment, run_id=run_id) as active:
        if decided:
            decide_where_trained(experiment, prepared, checkpoint)
        evaluation = evaluate(experiment, prepared, checkpoint, active)
        say(f"{experiment.name}: writing the report")
        write_report(experiment, prepared, active)
    version = version_of_run(store, experiment.name, run_id)
    if version is not None and load_info(checkpoint).experiment["decisions"] != asked:
        say(
            f"{experiment.name}: version {version}, as it is registered, keeps its calibration and thresholds; "
            "`cprfl run CONFIG --again` registers one with these"
        )
    return evaluation
