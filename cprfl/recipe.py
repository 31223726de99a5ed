"""An experiment on prepared data: what every training does, in this process or in each worker of many."""

from __future__ import annotations

import copy
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cprfl.data.long_tail import class_counts, hold_out, num_training_images
from cprfl.data.manifest import TRAIN, Manifest
from cprfl.data.stratify import stratify
from cprfl.encoders.adapters import moved_state
from cprfl.encoders.base import Encoded
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import ConfigError, DatasetError
from cprfl.evaluation.metrics import evaluate
from cprfl.experiment import Experiment, ResourcesConfig
from cprfl.models.base import Facts, Features, feature_statistics
from cprfl.preparation import CHECKPOINT, Prepared, selection_split
from cprfl.training.checkpoint import CheckpointInfo, TrainingState, load_info, load_state, save_checkpoint
from cprfl.training.loop import EpochEnd, Worker, fit, score
from cprfl.training.objective import Objective
from cprfl.training.sources import ImageFiles, Source, StoredFeatures

_BATCH = 256  # cached features that are looked at, or scored, at a time


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
    checkpoints = sorted(folder.glob("epoch-*"))

    def keep(epoch: Epoch) -> None:
        on_epoch_end(epoch)  # first: an epoch that is told twice is better than one that nobody heard of
        aside = folder / f".{uuid.uuid4().hex}"
        epoch.save(aside)
        aside.rename(folder / f"epoch-{epoch.number:06d}")
        for old in set(folder.glob("epoch-*")) - {_best(experiment, folder), _latest(folder)}:
            shutil.rmtree(old)

    run_training(
        experiment, prepared, local_worker(experiment.resources), keep, resume=checkpoints[-1] if checkpoints else None
    )
    return _best(experiment, folder)


def resumable_folder(experiment: Experiment, prepared: Prepared) -> Path:
    """Where a training of this experiment and data keeps what going on with it needs; Ray keeps it in another form."""
    place = "" if experiment.resources.in_this_process else "-ray"
    return experiment.folder / "training" / f"{prepared.training_key(experiment)}{place}"


def remove_resumable(experiment: Experiment, prepared: Prepared) -> None:
    """Remove what going on with a training needs, once its results are safe."""
    folder = resumable_folder(experiment, prepared)
    for place in folder.parent.glob(f"{prepared.training_key(experiment)}*"):
        shutil.rmtree(place, ignore_errors=True)
    if folder.parent.exists() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()


def keep_checkpoint(source: Path, target: Path) -> Path:
    """Copy a checkpoint to its final place, without what only resuming needs."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("resume.pt", ".*"))
    shutil.rmtree(target, ignore_errors=True)
    return aside.rename(target)


def checkpoint_score(experiment: Experiment, metrics: dict[str, float], epoch: int) -> float:
    """That of which the highest is kept: mAP on the images that select, or else the epoch."""
    selects = experiment.protocol == "published" or experiment.train.select == "best"
    return metrics[f"{selection_split(experiment)}/mAP"] if selects else float(epoch)


def _best(experiment: Experiment, folder: Path) -> Path:
    def found(checkpoint: Path) -> float:
        info = load_info(checkpoint)
        return checkpoint_score(experiment, info.metrics, info.epoch)

    return max(sorted(folder.glob("epoch-*"), reverse=True), key=found)  # the later of two equal ones, as Ray keeps


def _latest(folder: Path) -> Path:
    return max(folder.glob("epoch-*"))


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
    facts = _facts(experiment, prepared, training)
    tower = copy.deepcopy(prepared.encoder()) if experiment.train.moves_tower else None
    teacher = copy.deepcopy(prepared.encoder()) if experiment.train.distill > 0 else None
    criterion = experiment.loss.build(class_counts(manifest), num_training_images(manifest))
    text_tower = _text_tower(experiment)
    text_source = f"text tower {text_tower.fingerprint()}" if text_tower else prepared.text.encoder
    objective = Objective(experiment.model.build(facts, text_tower), criterion, experiment.train, tower, teacher)
    source = _source(experiment, prepared, training, objective, augmented=True)
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
            save_checkpoint(folder, objective.prediction_state(weights), facts, info, state, inherited)

        on_epoch_end(Epoch(number, metrics, worker.rank, save))

    if resume is not None and load_info(resume).epoch == experiment.epochs:
        return  # killed before anybody heard of the last epoch
    if resume is None and objective.method.folds:
        logits_MNC = _out_of_fold_logits(experiment, prepared, worker, objective.method.folds)
        objective.method.weigh_members(logits_MNC, torch.from_numpy(training.targets()))
    if resume is None and prepared.store is not None:
        objective.method.fit(_features(source))
    if not experiment.model.by_gradients:
        weights = objective.kept_state()
        report(0, validate(weights) if validate else {}, weights, None)
        return

    def end(epoch: EpochEnd) -> None:
        report(epoch.epoch, epoch.metrics, epoch.weights, epoch.state)

    fit(
        objective, source, experiment.train, seed=experiment.seed, worker=worker, on_epoch_end=end,
        validate=validate, resume=(load_info(resume).epoch, load_state(resume)) if resume else None,
    )  # fmt: skip


def _text_tower(experiment: Experiment) -> TextTower | None:
    return experiment.text_encoder.tower(experiment.cache_dir) if experiment.model.needs_text_tower else None


def _facts(experiment: Experiment, prepared: Prepared, training: Manifest) -> Facts:
    grid_dim, global_dim = _dimensions(prepared)
    statistics = None
    if experiment.model.needs_statistics:
        assert prepared.store is not None
        plain = prepared.store.subset(training.image_ids).iter_batches(_BATCH, views="plain")
        statistics = feature_statistics(batch.grid_BVD for batch in plain)
    return Facts.of_data(training, prepared.text.embeddings_CM, grid_dim, global_dim, statistics)


def _dimensions(prepared: Prepared) -> tuple[int, int]:
    """Channels of cells and summaries: those of the cached features, or found by encoding a blank image."""
    if prepared.store is not None:
        return prepared.store.grid_shape[1], prepared.store.global_dim
    encoder = prepared.encoder()
    with torch.inference_mode():
        encoded: Encoded = encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
    return encoded.grid_BVD.shape[-1], encoded.global_BE.shape[-1]


def _source(
    experiment: Experiment, prepared: Prepared, images: Manifest, objective: Objective, augmented: bool
) -> Source:
    """What the objective takes of these images: cached features, or the images for a tower that moves."""
    settings = experiment.train.finetune
    if prepared.store is not None:
        return StoredFeatures(images, prepared.store, experiment.train.features_in_memory_mb * 2**20)
    assert objective.tower is not None
    return ImageFiles(images, objective.tower, settings.augmentation if augmented else None, settings.num_processes)


def _validation(
    experiment: Experiment, prepared: Prepared, objective: Objective, worker: Worker
) -> Callable[[dict[str, Tensor]], dict[str, float]] | None:
    """Metrics of some weights on the images that select, shared among the workers; none where there are no images."""
    split, manifest = selection_split(experiment), prepared.manifest
    watched = manifest.split(split)
    if not len(watched):
        return None
    source, counts = _source(experiment, prepared, watched, objective, augmented=False), class_counts(manifest)
    size = _BATCH if prepared.store is not None else experiment.encoder.batch_size

    def validate(weights: dict[str, Tensor]) -> dict[str, float]:
        with objective.loaded(weights):
            logits_NC = score(objective, source, watched.image_ids, size, worker)
        result = evaluate(logits_NC.numpy(), watched.targets(), manifest.class_names, counts, manifest.groups)
        return {f"{split}/{name}": value for name, value in result.metrics.items() if not name.startswith("AP/")}

    return validate


def _features(source: Source) -> Features:
    def batches() -> Iterator[tuple[Encoded, Tensor]]:
        for inputs, targets_BC, _ in source.in_order(_BATCH):
            assert not isinstance(inputs, Tensor)
            yield inputs, targets_BC

    return batches


def _out_of_fold_logits(experiment: Experiment, prepared: Prepared, worker: Worker, folds: int) -> Tensor:
    """Logits [M, n, c] of the members on each training image, by a training that has not seen it."""
    training = prepared.manifest.split(TRAIN)
    fold_N = stratify(training.targets(), [1 / folds] * folds, experiment.seed)
    if len(np.unique(fold_N)) < folds:
        raise DatasetError(f"split train: {len(training)} images make no {folds} folds; lower model.num_folds")
    found: Tensor | None = None
    for fold in range(folds):
        held_out = training.select(np.flatnonzero(fold_N == fold))
        part = replace(prepared, manifest=hold_out(training, fold_N == fold))
        logits = _held_out_logits(experiment, part, held_out, worker)
        found = logits.new_zeros(len(logits), len(training), logits.shape[2]) if found is None else found
        found[:, torch.from_numpy(fold_N == fold)] = logits
    assert found is not None
    return found


def _held_out_logits(experiment: Experiment, prepared: Prepared, held_out: Manifest, worker: Worker) -> Tensor:
    """Train on the training images of ``prepared`` and score the members on others."""
    torch.manual_seed(experiment.seed)
    training = prepared.manifest.split(TRAIN)
    criterion = experiment.loss.build(class_counts(training), num_training_images(training))
    method = experiment.model.build(_facts(experiment, prepared, training), _text_tower(experiment))
    objective = Objective(method, criterion, experiment.train)
    source = _source(experiment, prepared, training, objective, augmented=True)
    objective.method.fit(_features(source))
    if experiment.model.by_gradients:
        ends = deque[EpochEnd](maxlen=1)
        fit(objective, source, experiment.train, seed=experiment.seed, worker=worker,
            on_epoch_end=ends.append)  # fmt: skip
        objective.load_kept_state(ends[0].weights)
        objective.method.bake()
    others = _source(experiment, prepared, held_out, objective, augmented=False)
    return score(objective, others, held_out.image_ids, _BATCH, worker, members=True)
