"""`cprfl train`: one training in an MLflow run of its own, in this process or on Ray."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cprfl import progress, recipe
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.errors import CheckpointError
from cprfl.evaluation.decisions import DECISIONS
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.inference.deciding import decide, num_folds, scores_images, trains_folds
from cprfl.inference.saying import say
from cprfl.inference.scoring import EVALUATION, PREDICTIONS, evaluate_checkpoint
from cprfl.preparation import CHECKPOINT, EncoderOnce, Prepared
from cprfl.reading import read_data
from cprfl.training.checkpoint import load_info
from cprfl.words import counted
from pipelines.background import in_thread
from pipelines.lock import alone, one_at_a_time
from pipelines.stages.places import finish_adoption, forget_results
from pipelines.stages.preprocess import preprocess
from pipelines.tracking.epochs import follow_epochs
from pipelines.tracking.results import RUN, read_run, write_run
from pipelines.tracking.runs import Run, has_ended_well, has_tags, open_run, training_tag
from pipelines.tracking.store import Store, open_store


@one_at_a_time
def train_stage(experiment: Experiment) -> Path:
    """Prepare and train, the experiment that comes before first; the checkpoint's folder."""
    store = open_store(experiment.output_dir)
    prepared = prepare_chain(store, experiment, read_data(experiment))
    with training_run(store, experiment, prepared) as run:
        return train(experiment, prepared, run)


def prepare_chain(
    store: Store,
    experiment: Experiment,
    manifest: Manifest,
    *,
    needs: Collection[str] = (),
    encoder: EncoderOnce | None = None,
) -> Prepared:
    """Prepare an experiment's data, and first train what comes before it, unless just that is trained already.

    Args:
        store: where the training before is tracked.
        experiment: whose data.
        manifest: what its data set says.
        needs: splits that must have images, beside those that the training itself needs.
        encoder: of an experiment before; it is taken where it serves this one.
    """
    if (before := experiment.first_experiment) is not None:
        with alone(before, f"training {before.name}"):
            dataset = dataset_of(before, experiment, manifest)
            earlier = preprocess(before, manifest=dataset, needs=needs, encoder=encoder)
            if not recipe.is_trained(before, earlier) or is_unfinished(before, earlier):
                with training_run(store, before, earlier) as run:
                    checkpoint = train(before, earlier, run)
                    if TEST in needs:
                        evaluate(before, earlier, checkpoint, run)
    return preprocess(experiment, manifest=manifest, needs=needs, encoder=encoder)


def evaluate(experiment: Experiment, prepared: Prepared, checkpoint: Path, run: Run) -> Evaluation:
    """Evaluate a checkpoint on the test images and log what comes of it."""
    evaluation = evaluate_checkpoint(experiment, prepared, checkpoint)
    files = (experiment.folder / EVALUATION, experiment.folder / PREDICTIONS, checkpoint)
    run.log_evaluation(evaluation, prepared.manifest, *files)
    return evaluation


def train(experiment: Experiment, prepared: Prepared, run: Run, *, decided: bool = True) -> Path:
    """Train, going on with an interrupted training of the same experiment and data, and record the run.

    Thresholds and calibration are fitted then. Where that takes further trainings it is left out unless somebody is to
    act on the scores (``decided``).

    Returns:
        The checkpoint's folder.
    """
    if prepared.metrics.get("extraction/images"):
        run.log_tags({name: f"{value:.4g}" for name, value in prepared.metrics.items()})
    finish_adoption(experiment)
    checkpoint = experiment.folder / CHECKPOINT
    if _is_trained_by(experiment, prepared, run, decided=decided):
        progress.say(f"{experiment.name}: going on with what comes after the training")
        return checkpoint
    _say_if_useless(experiment, checkpoint)
    if recipe.has_begun(recipe.resumable_folder(experiment, prepared)):
        progress.say(f"{experiment.name}: going on with the interrupted training")
    else:
        images = counted(prepared.manifest.splits.count(TRAIN), "image")
        epochs = f", {counted(experiment.epochs, 'epoch')}" if experiment.epochs else ""
        progress.say(f"{experiment.name}: training on {images}{epochs}")
    with follow_epochs(run.sink, experiment.epochs, f"training {experiment.name}"):
        if experiment.resources.in_this_process:
            checkpoint = recipe.train(
                experiment, prepared, lambda epoch: run.sink.log(epoch.metrics, epoch.number)
            )  # fmt: skip
        else:
            from pipelines.cluster.connection import connect  # Ray, which takes seconds to import
            from pipelines.cluster.trainer import train as train_on_ray

            connect()  # in this thread: signals are heard in no other
            checkpoint = in_thread(partial(train_on_ray, experiment, prepared, run.sink))
    forget_results(experiment)  # of the model that was here: they have served until now
    if decided or not trains_folds(experiment, prepared, checkpoint):
        decide_where_trained(experiment, prepared, checkpoint)
    record_run(experiment, run)
    return checkpoint


def _say_if_useless(experiment: Experiment, checkpoint: Path) -> None:
    """Say why a checkpoint that is there is trained again, where it is damaged or of another version."""
    try:
        load_info(checkpoint)
    except CheckpointError as error:
        if checkpoint.exists():
            progress.say(f"{experiment.name}: {error}")


def _is_trained_by(experiment: Experiment, prepared: Prepared, run: Run, *, decided: bool) -> bool:
    """Whether this run has trained the checkpoint that is there, to the end of `train`."""
    record, checkpoint = experiment.folder / RUN, experiment.folder / CHECKPOINT
    if not record.exists() or not recipe.is_trained(experiment, prepared) or read_run(record) != run.id:
        return False
    return not decided or (checkpoint / DECISIONS).exists()


def decide_where_trained(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> None:
    """Fit thresholds and calibration, where the training ran."""
    if experiment.resources.in_this_process or not scores_images(experiment, prepared, checkpoint):
        say(experiment, decide(experiment, prepared, checkpoint))
        return
    from pipelines.cluster.trainer import decide_on_ray  # Ray, which takes seconds to import

    if trains_folds(experiment, prepared, checkpoint):
        print(f"{experiment.name}: training without each of {num_folds(experiment)} folds, for thresholds",
              file=sys.stderr, flush=True)  # fmt: skip
    say(experiment, decide_on_ray(experiment, prepared, checkpoint))


@contextmanager
def training_run(
    store: Store, experiment: Experiment, prepared: Prepared, tags: dict[str, str] | None = None
) -> Iterator[Run]:
    """A new MLflow run, or that of an interrupted training of the same experiment and data.

    The training can be gone on with until the block and the run have ended well.
    """
    key = prepared.training_key(experiment)
    own = {
        "dataset_digest": prepared.manifest.digest,
        "encoder_fingerprint": prepared.encoder_fingerprint,
        "text_encoder": prepared.text.encoder,
        "backbone": experiment.train.backbone,
        **training_tag(key),
    }
    earlier = _interrupted_run(store, experiment, prepared)
    tags = {**own, **(tags or {})}
    with open_run(store, experiment, run_id=earlier, tags=tags, data=prepared.manifest) as run:
        write_run(recipe.resumable_folder(experiment, prepared) / RUN, run.id)
        yield run
    recipe.remove_resumable(experiment, prepared)


def is_unfinished(experiment: Experiment, prepared: Prepared) -> bool:
    """Whether a training of this experiment and data, or what comes after it, was interrupted."""
    return recipe.resumable_folder(experiment, prepared).exists()


def _interrupted_run(store: Store, experiment: Experiment, prepared: Prepared) -> str | None:
    """The run of a training that was interrupted, or of which what comes after it was, to go on with."""
    record = recipe.resumable_folder(experiment, prepared) / RUN
    if record.exists():
        run_id = read_run(record)
        return run_id if has_tags(store, run_id, training_tag(prepared.training_key(experiment))) else None
    found = trained_run(store, experiment, {}) if recipe.is_trained(experiment, prepared) else None
    return found if found is not None and not has_ended_well(store, found) else None


def record_run(experiment: Experiment, run: Run) -> None:
    """Write down the run of the checkpoint in the experiment's folder."""
    write_run(experiment.folder / RUN, run.id)


def trained_run(store: Store, experiment: Experiment, tags: dict[str, str]) -> str | None:
    """The run of the checkpoint in the experiment's folder, if there is one and it has these tags.

    Raises:
        CheckpointError: where the record is damaged.
    """
    run_id = read_run_id(experiment.folder / RUN)
    try:
        key = load_info(experiment.folder / CHECKPOINT).training_key
    except CheckpointError:  # missing or damaged: nothing that could be used is trained
        return None
    own = training_tag(key)  # or a kill has left the record of the model before
    return run_id if run_id is not None and has_tags(store, run_id, {**own, **tags}) else None


def read_run_id(record: Path) -> str | None:
    """The run that an earlier process wrote down in this file, if it did.

    Raises:
        CheckpointError: where the file is damaged.
    """
    return read_run(record) if record.exists() else None


def dataset_of(other: Experiment, experiment: Experiment, manifest: Manifest) -> Manifest:
    """What another experiment's data set says: what was read already, where it is the same data set."""
    return manifest if other.dataset == experiment.dataset else read_data(other)
