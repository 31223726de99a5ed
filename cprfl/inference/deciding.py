"""Thresholds and calibration of a new checkpoint: scores of images that it has not seen, and what is fitted to them."""

from __future__ import annotations

from pathlib import Path

from cprfl.data.manifest import TRAIN, VALIDATION
from cprfl.evaluation.decisions import HELD_OUT, Decisions, fit_decisions
from cprfl.evaluation.metrics import write_predictions
from cprfl.experiment import Experiment
from cprfl.inference.scoring import score_images
from cprfl.out_of_fold import held_out_logits
from cprfl.preparation import Prepared
from cprfl.recipe import local_worker
from cprfl.training.checkpoint import load_info

_FOLDS = 3  # unless others are asked for: a mean of few logits needs no more, and each costs a training


def decide(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Decisions:
    """Write ``held_out.parquet`` and ``decisions.json`` into a checkpoint's folder, in this process.

    The logits are the checkpoint's own on the validation split; where there is none, what the training found out of
    fold; and else those of further trainings without a fold. No test image is looked at. The checkpoint of a training
    that was chosen by its validation images scores those a little too well.

    Args:
        experiment: that the checkpoint was trained with.
        prepared: its data.
        checkpoint: the folder.

    Returns:
        What was fitted; the unfitted decisions where no image was held out.

    Raises:
        DatasetError: where the training images make no such folds.
    """
    validation, training = prepared.manifest.split(VALIDATION), prepared.manifest.split(TRAIN)
    path, names = checkpoint / HELD_OUT, prepared.manifest.class_names
    if len(validation):
        write_predictions(path, validation.image_ids, score_images(experiment, prepared, checkpoint, validation), names)
    elif not (folds := num_folds(experiment)):
        path.unlink(missing_ok=True)  # of folds that the image tower has seen
        return Decisions.unfitted(names)
    elif not path.exists():
        epochs, worker = load_info(checkpoint).epoch, local_worker(experiment.resources)
        logits_NC = held_out_logits(experiment, prepared, folds, epochs, worker)
        write_predictions(path, training.image_ids, logits_NC.numpy(), names)
    return fit_decisions(checkpoint, prepared.manifest, experiment.decisions)


def scores_images(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> bool:
    """Whether `decide` will score images, or train, which may want a GPU."""
    return bool(len(prepared.manifest.split(VALIDATION))) or trains_folds(experiment, prepared, checkpoint)


def trains_folds(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> bool:
    """Whether `decide` will train, which takes its time."""
    held_out = bool(len(prepared.manifest.split(VALIDATION))) or (checkpoint / HELD_OUT).exists()
    return not held_out and num_folds(experiment) > 0


def num_folds(experiment: Experiment) -> int:
    """Folds of the training images to fit decisions on, where there is no validation split."""
    asked = experiment.decisions.folds
    return asked if asked is not None else 0 if experiment.tower_training is not None else _FOLDS
