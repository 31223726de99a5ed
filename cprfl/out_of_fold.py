"""Scores of the training images by trainings that have not seen them: what weighs members and chooses epochs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cprfl.assembly import BATCH, facts_of, features_of, objective_of, source_of, text_tower_of
from cprfl.data.long_tail import hold_out
from cprfl.data.manifest import TRAIN, Manifest
from cprfl.data.stratify import stratify
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import DatasetError
from cprfl.evaluation.metrics import mean_precision
from cprfl.experiment import Experiment
from cprfl.models.base import Method
from cprfl.preparation import Prepared
from cprfl.progress import progress
from cprfl.training.loop import Worker, fit, score

FOLDS = 5  # unless the method wants another number
_CANDIDATES = 8  # numbers of epochs that are compared, evenly spaced


@dataclass(frozen=True)
class Findings:
    """What the folds told.

    Attributes:
        epochs: to train on all training images; 0 where gradients train nothing.
        metrics: under ``folds/``: mAP of the members and of the whole, their shares, the epochs.
        logits_NC: of the training images after so many epochs, each by a training without it; the members weighed as
            in the method. None where no folds were looked at.
    """

    epochs: int
    metrics: dict[str, float]
    logits_NC: Tensor | None = None


def look_at_folds(
    experiment: Experiment, prepared: Prepared, worker: Worker, method: Method, text_tower: TextTower | None
) -> Findings:
    """Score each fold of the training images by a training without it, weigh the method's members, choose epochs.

    Raises:
        DatasetError: where the images make no such folds.
    """
    training = prepared.manifest.split(TRAIN)
    targets_NC = torch.from_numpy(training.targets())
    epochs, folds = candidates(experiment), experiment.model.folds or FOLDS
    logits_TMNC = _logits(experiment, prepared, folds, epochs, worker, text_tower)
    if len(epochs) == 1:
        metrics = method.weigh_members(logits_TMNC[0], targets_NC)
        return Findings(epochs[0], metrics, method.mix(logits_TMNC[0]))
    found = []
    for number, logits_MNC in zip(epochs, logits_TMNC, strict=True):
        weighed = method.weigh_members(logits_MNC, targets_NC)
        value = weighed.get("folds/mAP", mean_precision(logits_MNC.mean(dim=0).numpy(), targets_NC.numpy()))
        found.append((value, number, logits_MNC))
    value, number, logits_MNC = max(found, key=lambda item: (item[0], -item[1]))
    chosen = {"folds/mAP": value, "folds/mAP_last_epoch": found[-1][0], "folds/epochs": float(number)}
    metrics = chosen | method.weigh_members(logits_MNC, targets_NC)
    return Findings(number, metrics, method.mix(logits_MNC))


def held_out_logits(experiment: Experiment, prepared: Prepared, folds: int, epochs: int, worker: Worker) -> Tensor:
    """Logits [n, c] of the training images after so many epochs, each by a training without its fold.

    The trainings are those of the experiment, under the schedule of the whole.

    Raises:
        DatasetError: where the images make no such folds.
    """
    schedule = experiment.train.schedule_epochs or experiment.epochs or None
    shorter = experiment.train.model_copy(update={"epochs": max(epochs, 1), "schedule_epochs": schedule})
    as_long = experiment.model_copy(update={"train": shorter})
    text_tower = text_tower_of(experiment)
    return _logits(as_long, prepared, folds, [epochs], worker, text_tower, members=False)[0, 0]


def in_words(findings: Findings) -> str:
    """What was found, in a sentence."""
    metrics = findings.metrics
    said = [f"{metrics['folds/mAP']:.1f} mAP on held-out folds"] if "folds/mAP" in metrics else []
    shares = {name.removeprefix("folds/share/"): value for name, value in metrics.items() if "/share/" in name}
    if shares:
        members = [f"{name} {share:.2f} ({metrics[f'folds/mAP/{name}']:.1f} alone)" for name, share in shares.items()]
        said.append("of " + ", ".join(members))
    if "folds/epochs" in metrics:
        lost = metrics["folds/mAP"] - metrics["folds/mAP_last_epoch"]
        said.append(f"after {findings.epochs} epochs" + (f", {lost:.1f} more than after all" if lost > 0 else ""))
    return "; ".join(said)


def candidates(experiment: Experiment) -> list[int]:
    """Numbers of epochs that the folds compare; the last alone where they choose none."""
    last = experiment.epochs
    if experiment.selects != "folds" or last == 0:
        return [last]
    count = min(_CANDIDATES, last)
    return sorted({round(last * (step + 1) / count) for step in range(count)})


def _logits(
    experiment: Experiment,
    prepared: Prepared,
    folds: int,
    epochs: list[int],
    worker: Worker,
    text_tower: TextTower | None,
    members: bool = True,
) -> Tensor:
    """Logits [T, M, n, c] after T numbers of epochs, on each training image by a training without its fold.

    They are those of the M members, or of the method itself, which is one.
    """
    training = prepared.manifest.split(TRAIN)
    fold_N = stratify(training.labels, [1 / folds] * folds, experiment.seed)
    if len(np.unique(fold_N)) < folds:
        raise DatasetError(
            f"split train: {len(training)} images make no {folds} folds; lower model.num_folds or decisions.folds"
        )
    parts = list[Tensor]()
    numbers = range(folds)
    for fold in progress(numbers, folds, "training without a fold") if worker.rank == 0 else numbers:
        held_out = training.select(np.flatnonzero(fold_N == fold))
        part = replace(prepared, manifest=hold_out(training, fold_N == fold))
        parts.append(_of_fold(experiment, part, held_out, epochs, worker, text_tower, members))
    means_FTMC = torch.stack([found.mean(dim=2) for found in parts])
    logits = parts[0].new_empty(*parts[0].shape[:2], len(training), len(training.class_names))
    for fold in numbers:
        # Each training has an offset of its own for every class, which ranks nothing within a fold but would between.
        level_TMC = means_FTMC.mean(dim=0) - means_FTMC[fold]
        logits[:, :, torch.from_numpy(fold_N == fold)] = parts.pop(0) + level_TMC[:, :, None]
    return logits


def _of_fold(
    experiment: Experiment,
    prepared: Prepared,
    held_out: Manifest,
    epochs: list[int],
    worker: Worker,
    text_tower: TextTower | None,
    members: bool,
) -> Tensor:
    """Train on the training images of ``prepared``, and score others, [T, M, n, c]."""
    torch.manual_seed(experiment.seed)
    training = prepared.manifest.split(TRAIN)
    facts = facts_of(experiment, prepared, training)
    objective = objective_of(experiment, prepared, facts, text_tower)
    source = source_of(experiment, prepared, training, objective, training=True)
    others = source_of(experiment, prepared, held_out, objective, training=False)
    size = BATCH if prepared.store is not None else experiment.encoder.batch_size
    epoch, found = 0, list[Tensor]()

    def scored() -> Tensor:
        logits = score(objective, others, held_out.image_ids, size, worker, members)
        return logits if members else logits[None]

    def look(weights: dict[str, Tensor]) -> dict[str, float]:
        nonlocal epoch
        epoch += 1
        if epoch in epochs:
            with objective.loaded(weights):
                found.append(scored())
        return {}

    if prepared.store is not None:
        objective.method.fit(features_of(source))
    if experiment.model.by_gradients:
        fit(objective, source, experiment.train, seed=experiment.seed, worker=worker,
            on_epoch_end=lambda _: None, validate=look)  # fmt: skip
    else:
        found.append(scored())
    return torch.stack(found)
