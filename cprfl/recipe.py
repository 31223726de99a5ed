"""An experiment on prepared data: what every training does, in this process or in each worker of many."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cprfl.assembly import BATCH, facts_of, features_of, objective_of, source_of, text_tower_of
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TRAIN
from cprfl.data.temporary import aside_of, remove_at_once
from cprfl.encoders.adapters import moved_state
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation.decisions import HELD_OUT
from cprfl.evaluation.metrics import evaluate, read_predictions, write_predictions
from cprfl.experiment import Experiment
from cprfl.out_of_fold import Findings, in_words, look_at_folds
from cprfl.preparation import CHECKPOINT, Prepared, selection_split
from cprfl.resources import ResourcesConfig
from cprfl.training.checkpoint import CheckpointInfo, TrainingState, load_info, load_state, save_checkpoint
from cprfl.training.loop import EpochEnd, Worker, fit, score
from cprfl.training.objective import Objective

_OVERFITTED = 1.0  # points of mAP


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch, for whoever reports it and stores its checkpoint.

    Attributes:
        number: counted from 1; 0 where nothing is trained by gradients.
        metrics: ``train/loss``, ``train/lr`` and, where images are held out, ``val/mAP`` and so on.
        rank: of the calculating worker; every worker gets here.
        save: writes the checkpoint into a folder.
    """

    number: int
    metrics: dict[str, float]
    rank: int
    save: Callable[[Path], None]


def local_worker(resources: ResourcesConfig) -> Worker:
    """This process as the only worker, on its GPU if there is one and ``resources.gpu`` lets it.

    Raises:
        ConfigError: where there is none and ``resources.gpu`` is ``always``.
    """
    there = torch.cuda.is_available()
    if resources.gpu == "always" and not there:
        raise ConfigError("resources.gpu: always, but this machine has no GPU that torch can use; set it to auto")
    return Worker(torch.device("cuda" if there and resources.gpu != "never" else "cpu"))


def train(experiment: Experiment, prepared: Prepared, on_epoch_end: Callable[[Epoch], None] = lambda _: None) -> Path:
    """Train in this process, going on with an interrupted training of the same experiment and data.

    What going on needs stays until `remove_resumable` is called.

    Args:
        experiment: what to train.
        prepared: its data.
        on_epoch_end: is told of each epoch.

    Returns:
        The folder of the checkpoint: ``outputs/<name>/checkpoint``.

    Raises:
        ConfigError: where the experiment asks for several workers, which would train otherwise.
        UserError: whatever else the user can mend.
    """
    if experiment.resources.world_size > 1:
        raise ConfigError("resources.num_workers: one process trains as one worker; set it to 0, or use `cprfl train`")
    folder = resumable_folder(experiment, prepared)
    return keep_checkpoint(train_in(folder, experiment, prepared, on_epoch_end), experiment.folder / CHECKPOINT)


def train_in(
    folder: Path, experiment: Experiment, prepared: Prepared, on_epoch_end: Callable[[Epoch], None] = lambda _: None
) -> Path:
    """Train in this process with ``folder`` for what going on later needs: the best checkpoint and the latest.

    Returns:
        The best one, which is the latest unless validation selects.
    """

    def keep(epoch: Epoch) -> None:
        on_epoch_end(epoch)  # first: an epoch that is told twice is better than one that nobody heard of
        aside = folder / f".{uuid.uuid4().hex}"
        epoch.save(aside)
        aside.rename(folder / f"epoch-{epoch.number:06d}")
        for old in set(folder.glob("epoch-*")) - {_best(experiment, folder), latest_in(folder)}:
            remove_at_once(old)

    run_training(experiment, prepared, local_worker(experiment.resources), keep, resume=latest_in(folder))
    return _best(experiment, folder)


def resumable_folder(experiment: Experiment, prepared: Prepared) -> Path:
    """Where a training of this experiment and data keeps what going on with it needs; Ray keeps it in another form."""
    place = "" if experiment.resources.in_this_process else "-ray"
    return experiment.folder / "training" / f"{prepared.training_key(experiment)}{place}"


def has_begun(folder: Path) -> bool:
    """Whether there is a checkpoint, of whatever form, in a folder that `resumable_folder` gives."""
    return any(path.is_dir() and not path.name.startswith(".") for path in folder.glob("*"))


def remove_resumable(experiment: Experiment, prepared: Prepared) -> None:
    """Remove what going on with a training needs, once its results are safe."""
    folder = resumable_folder(experiment, prepared)
    for place in folder.parent.glob(f"{prepared.training_key(experiment)}*"):
        remove_at_once(place)
    if folder.parent.exists() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def keep_checkpoint(source: Path, target: Path) -> Path:
    """Copy a checkpoint to its final place, without what only resuming needs."""
    aside = aside_of(target)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("resume.pt", ".*"))
    if target.exists():
        remove_at_once(target)
    return aside.rename(target)


def is_trained(experiment: Experiment, prepared: Prepared) -> bool:
    """Whether the experiment's folder has the checkpoint of just this training."""
    try:
        info = load_info(experiment.folder / CHECKPOINT)
    except CheckpointError:
        return False
    return info.training_key == prepared.training_key(experiment)


def checkpoint_score(experiment: Experiment, metrics: dict[str, float], epoch: int) -> float:
    """That of which the highest is kept: mAP on the images that select, or else the epoch."""
    selects = experiment.protocol == "published" or experiment.selects == "best"
    return metrics[f"{selection_split(experiment)}/mAP"] if selects else float(epoch)


def _best(experiment: Experiment, folder: Path) -> Path:
    def found(checkpoint: Path) -> float:
        info = load_info(checkpoint)
        return checkpoint_score(experiment, info.metrics, info.epoch)

    return max(sorted(folder.glob("epoch-*"), reverse=True), key=found)  # the later of two equal ones, as Ray keeps


def latest_in(folder: Path) -> Path | None:
    """The latest checkpoint that `train_in` has left in a folder, from which it goes on."""
    return max(folder.glob("epoch-*"), default=None)


def run_training(
    experiment: Experiment,
    prepared: Prepared,
    worker: Worker,
    on_epoch_end: Callable[[Epoch], None],
    resume: Path | None = None,
) -> None:
    """Build method and data, and fit: what each worker does.

    Args:
        experiment: what to train.
        prepared: its data.
        worker: this process.
        on_epoch_end: called on every worker.
        resume: a checkpoint of the same training to go on from.
    """
    torch.manual_seed(experiment.seed)
    manifest = prepared.manifest
    training = manifest.split(TRAIN)
    facts, text_tower = facts_of(experiment, prepared, training), text_tower_of(experiment)
    text_source = f"text tower {text_tower.fingerprint()}" if text_tower else prepared.text.encoder
    objective = objective_of(experiment, prepared, facts, text_tower)
    source = source_of(experiment, prepared, training, objective, training=True)
    inherited = None
    if not experiment.train.moves_tower and experiment.tower_training is not None:
        inherited = moved_state(prepared.encoder(), experiment.tower_training.backbone)

    validate = _validation(experiment, prepared, objective, worker)

    def report(number: int, metrics: dict[str, float], weights: dict[str, Tensor], state: TrainingState | None) -> None:
        info = CheckpointInfo(
            experiment.model_dump(mode="json"), prepared.training_key(experiment), list(manifest.class_names),
            prepared.encoder_fingerprint, text_source, number, metrics,
            holds_tower=experiment.tower_training is not None,
        )  # fmt: skip

        def save(folder: Path) -> None:
            if findings.logits_NC is not None:
                logits_NC = findings.logits_NC.numpy()
                write_predictions(folder / HELD_OUT, training.image_ids, logits_NC, manifest.class_names)
            save_checkpoint(folder, objective.prediction_state(weights), facts, info, state, inherited)

        on_epoch_end(Epoch(number, metrics, worker.rank, save))

    findings = _findings(experiment, prepared, worker, objective, text_tower, resume)
    if resume is not None and load_info(resume).epoch == findings.epochs:
        return  # killed before anybody heard of the last epoch
    if resume is None and prepared.store is not None:
        objective.method.fit(features_of(source))
    if not experiment.model.by_gradients:
        weights = objective.kept_state()
        report(0, (validate(weights) if validate else {}) | findings.metrics, weights, None)
        return

    history: list[dict[str, float]] = []

    def end(epoch: EpochEnd) -> None:
        history.append({**epoch.metrics, "epoch": epoch.epoch})
        report(epoch.epoch, epoch.metrics | findings.metrics, epoch.weights, epoch.state)

    schedule = experiment.train.schedule_epochs or experiment.epochs
    config = experiment.train.model_copy(update={"epochs": findings.epochs, "schedule_epochs": schedule})
    fit(
        objective, source, config, seed=experiment.seed, worker=worker, on_epoch_end=end,
        validate=validate, resume=(load_info(resume).epoch, load_state(resume)) if resume else None,
    )  # fmt: skip
    if worker.rank == 0 and (warning := overfitting(history, f"{selection_split(experiment)}/mAP")):
        print(f"{experiment.name}: {warning}", file=sys.stderr, flush=True)


def overfitting(history: Sequence[Mapping[str, float]], metric: str) -> str | None:
    """What to say where the loss went on falling while the metric of held-out images fell by a point or more.

    Args:
        history: metrics of the epochs, with ``epoch`` itself.
        metric: of the images that select.
    """
    watched = [found for found in history if metric in found]
    if not watched:
        return None
    best, last = max(watched, key=lambda found: found[metric]), watched[-1]
    lost, before, after = best[metric] - last[metric], best["train/loss"], last["train/loss"]
    if lost < _OVERFITTED or after >= before:
        return None
    return (
        f"overfitting: {metric} fell from {best[metric]:.1f} after epoch {best['epoch']:.0f} to {last[metric]:.1f}, "
        f"the training loss fell from {before:.4f} to {after:.4f}; train.select: best or folds keeps the former, fewer "
        "train.epochs, a smaller model.dim or more train.weight_decay avoid it"
    )


def _findings(
    experiment: Experiment,
    prepared: Prepared,
    worker: Worker,
    objective: Objective,
    text_tower: TextTower | None,
    resume: Path | None,
) -> Findings:
    """What the folds told, now or before an interruption; they are looked at where the method or the settings ask."""
    if not experiment.model.folds and experiment.selects != "folds":
        return Findings(experiment.epochs, {})
    if resume is not None:
        before = {name: value for name, value in load_info(resume).metrics.items() if name.startswith("folds/")}
        path, ids = resume / HELD_OUT, prepared.manifest.split(TRAIN).image_ids
        logits_NC = torch.from_numpy(read_predictions(path, ids)) if path.exists() else None
        return Findings(int(before.get("folds/epochs", experiment.epochs)), before, logits_NC)
    findings = look_at_folds(experiment, prepared, worker, objective.method, text_tower)
    torch.manual_seed(experiment.seed)
    if worker.rank == 0:
        print(f"{experiment.name}: {in_words(findings)}", file=sys.stderr, flush=True)
    return findings


def _validation(
    experiment: Experiment, prepared: Prepared, objective: Objective, worker: Worker
) -> Callable[[dict[str, Tensor]], dict[str, float]] | None:
    """Metrics of some weights on the images that select, shared among the workers; none where there are no images."""
    split, manifest = selection_split(experiment), prepared.manifest
    watched = manifest.split(split)
    if not len(watched):
        return None
    source, counts = source_of(experiment, prepared, watched, objective, training=False), class_counts(manifest)
    targets_NC = watched.targets(dtype=np.float16)
    size = BATCH if prepared.store is not None else experiment.encoder.batch_size

    def validate(weights: dict[str, Tensor]) -> dict[str, float]:
        with objective.loaded(weights):
            logits_NC = score(objective, source, watched.image_ids, size, worker)
        result = evaluate(logits_NC.numpy(), targets_NC, manifest.class_names, counts, manifest.groups)
        return {f"{split}/{name}": value for name, value in result.metrics.items() if not name.startswith("AP/")}

    return validate
