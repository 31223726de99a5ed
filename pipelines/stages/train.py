"""`cprfl train`: one training in an MLflow run of its own, in this process or on Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cprfl import progress, recipe
from cprfl.data.files import write_json
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.inference.deciding import decide, num_folds, say, trains_folds
from cprfl.inference.scoring import EVALUATION, PREDICTIONS, evaluate_checkpoint
from cprfl.preparation import EncoderOnce, Prepared
from cprfl.reading import read_data
from cprfl.words import counted
from pipelines.background import in_thread
from pipelines.stages.places import finish_adoption, forget_results
from pipelines.stages.preprocess import preprocess
from pipelines.tracking.epochs import follow_epochs
from pipelines.tracking.results import RUN
from pipelines.tracking.runs import Run, has_tags, interrupted_run, open_run, training_tag
from pipelines.tracking.store import Store, open_store


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
        earlier = preprocess(before, manifest=dataset_of(before, experiment, manifest), needs=needs, encoder=encoder)
        if not recipe.is_trained(before, earlier):
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
    forget_results(experiment)
    if recipe.resumable_folder(experiment, prepared).exists():
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
    if decided or not trains_folds(experiment, prepared, checkpoint):
        _decide(experiment, prepared, checkpoint)
    record_run(experiment, run)
    return checkpoint


def _decide(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> None:
    """Fit thresholds and calibration, where the training ran."""
    if experiment.resources.in_this_process:
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
    interrupted = recipe.resumable_folder(experiment, prepared).exists()
    own = {
        "dataset_digest": prepared.manifest.digest,
        "encoder_fingerprint": prepared.encoder_fingerprint,
        "text_encoder": prepared.text.encoder,
        "backbone": experiment.train.backbone,
        **training_tag(key),
    }
    earlier = interrupted_run(store, experiment, key) if interrupted else None
    tags = {**own, **(tags or {})}
    with open_run(store, experiment, run_id=earlier, tags=tags, data=prepared.manifest) as run:
        yield run
    recipe.remove_resumable(experiment, prepared)


def record_run(experiment: Experiment, run: Run) -> None:
    """Write down the run of the checkpoint in the experiment's folder."""
    write_json(experiment.folder / RUN, {"run_id": run.id})


def trained_run(store: Store, experiment: Experiment, tags: dict[str, str]) -> str | None:
    """The run of the checkpoint in the experiment's folder, if there is one and it has these tags."""
    run_id = read_run_id(experiment.folder / RUN)
    return run_id if run_id is not None and has_tags(store, run_id, tags) else None


def read_run_id(record: Path) -> str | None:
    """The run that an earlier process wrote down in this file, if it did."""
    return str(json.loads(record.read_text())["run_id"]) if record.exists() else None


def dataset_of(other: Experiment, experiment: Experiment, manifest: Manifest) -> Manifest:
    """What another experiment's data set says: what was read already, where it is the same data set."""
    return manifest if other.dataset == experiment.dataset else read_data(other)
