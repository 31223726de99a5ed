"""Whether a model knows its training images by heart: those images scored by it, and by trainings without them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cprfl.data.manifest import TRAIN, VALIDATION
from cprfl.evaluation.decisions import HELD_OUT
from cprfl.evaluation.metrics import average_precision, predicted_images, read_predictions
from cprfl.inference.predictor import load_method
from cprfl.report.checks.base import Check, Seen
from cprfl.report.mends import narrowing
from cprfl.training.loop import Worker, mean_logits
from cprfl.training.objective import Inputs
from cprfl.training.sources import StoredFeatures

_IMAGES = 2000  # that are scored again
_BATCH = 256
_TIP, _ISSUE = 15.0, 30.0  # points of mAP


def overfit(seen: Seen) -> Check:
    """How far mAP falls from images that the model was trained on to images that it has not seen."""
    code, results = "overfit", seen.results
    path = results.checkpoint / HELD_OUT
    if results.experiment.train.moves_tower:
        return Check(code, "The tower moves", "skipped",
                     "Scoring its training images again would take as long as an epoch.")  # fmt: skip
    if not path.exists() or results.store is None:
        return Check(code, "No scores of held-out images", "skipped",
                     "`cprfl train CONFIG` makes them where images are held out (decisions.folds: 3).")  # fmt: skip
    known_C, unseen_C = _precision_on_training(seen), _precision_held_out(seen)
    both_C = ~np.isnan(known_C) & ~np.isnan(unseen_C)
    if not both_C.any():
        return Check(code, "No held-out image shows a class", "skipped", "There is nothing to compare by.")
    said, lost = [], dict[str, float]()
    for group, classes in {"total": np.arange(len(both_C)), **seen.groups}.items():
        own = classes[both_C[classes]]
        if len(own):
            known, unseen = float(known_C[own].mean()), float(unseen_C[own].mean())
            lost[group] = known - unseen
            said.append(f"{group} {known:.0f} to {unseen:.0f}")
    listed = f"mAP of training images, by the model and by trainings that have not seen them: {', '.join(said)}."
    if lost["total"] < _TIP:
        return Check(code, "Held-out images are scored nearly as well as training images", "passed", listed)
    ways = narrowing(results.experiment)
    narrows = f" What narrows the gap: {', '.join(ways)}." if ways else ""
    return Check(
        code, f"{lost['total']:.0f} points of mAP lost on images that it has not seen",
        "issue" if lost["total"] >= _ISSUE else "tip",
        f"{listed} Some of it is the price of few images.{narrows}",
    )  # fmt: skip


def _precision_held_out(seen: Seen) -> np.ndarray:
    """Of images that the scoring training had not seen, percent [C]."""
    path, manifest = seen.results.checkpoint / HELD_OUT, seen.results.manifest
    ids = _listed(seen, predicted_images(path), (TRAIN, VALIDATION))
    row = {image_id: number for number, image_id in enumerate(manifest.image_ids)}
    targets_NC = manifest.select([row[image_id] for image_id in ids]).targets(dtype=np.float16)
    return 100 * average_precision(read_predictions(path, ids), targets_NC)


def _precision_on_training(seen: Seen) -> np.ndarray:
    """Of training images, at most `_IMAGES`, by the model that was trained on them, percent [C]."""
    training, store = seen.results.training, seen.results.store
    assert store is not None
    if len(training) > _IMAGES:
        chosen = np.random.default_rng(0).choice(len(training), _IMAGES, replace=False)
        training = training.select(np.sort(chosen))
    method = load_method(seen.results.checkpoint)[0]

    def logits(inputs: Inputs) -> Tensor:
        assert not isinstance(inputs, Tensor)
        found: Tensor = method(*(values.float() for values in inputs))
        return found

    worker = Worker(torch.device("cpu"))
    logits_NC = mean_logits(logits, StoredFeatures(training, store), training.image_ids, _BATCH, worker)
    return 100 * average_precision(logits_NC.numpy(), training.targets())


def _listed(seen: Seen, image_ids: list[str] | tuple[str, ...], splits: tuple[str, ...]) -> list[str]:
    manifest = seen.results.manifest
    split = dict(zip(manifest.image_ids, manifest.splits, strict=True))
    return [image_id for image_id in image_ids if split.get(image_id) in splits]
