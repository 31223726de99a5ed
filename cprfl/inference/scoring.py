"""A checkpoint's scores on the test images of an experiment, and what they are worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cprfl.data.files import read_record
from cprfl.data.long_tail import class_counts, groups
from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import CheckpointError, DatasetError
from cprfl.evaluation.decisions import DECISIONS, HELD_OUT, Decisions, fit_decisions
from cprfl.evaluation.metrics import EVALUATE_AGAIN, Evaluation, evaluate, write_predictions
from cprfl.evaluation.reliability import decided_metrics
from cprfl.experiment import Experiment, experiment_of
from cprfl.inference.predictor import Predictor, load_method
from cprfl.inference.saying import say
from cprfl.preparation import Prepared
from cprfl.training.checkpoint import load_info
from cprfl.training.loop import Worker, mean_logits
from cprfl.training.objective import Inputs
from cprfl.training.sources import ImageFiles, StoredFeatures

EVALUATION, PREDICTIONS = "evaluation.json", "predictions.parquet"
_BATCH = 64
_DECIDED_BY = "decisions_settings"


def evaluate_checkpoint(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Evaluation:
    """Write ``evaluation.json`` and ``predictions.parquet`` of the test split into the experiment's folder.

    Thresholds and calibration are fitted anew to the checkpoint's held-out logits, where it has some, as the experiment
    wants them now; what they are worth is in the metrics. Where others come of it than lay there, they are said on
    stderr as after a training.

    Raises:
        CheckpointError: where the checkpoint was trained on other classes or another encoder.
        DatasetError: where there is no test split.
    """
    info, manifest = load_info(checkpoint), prepared.manifest
    if tuple(info.class_names) != manifest.class_names:
        differing = sorted(set(info.class_names) ^ set(manifest.class_names)) or "their order"
        raise CheckpointError(f"{checkpoint}: trained on other classes than the data set's: {differing}; train again")
    test = manifest.split(TEST)
    if not len(test):
        raise DatasetError("split test: no image; give dataset.splits a split named test to evaluate on")
    scores = score_test_images(experiment, prepared, checkpoint)
    decisions = Decisions.read(checkpoint, manifest.class_names)
    if (checkpoint / HELD_OUT).exists():
        written = checkpoint / DECISIONS
        before = written.read_bytes() if written.exists() else b""
        decisions = fit_decisions(checkpoint, manifest, experiment.decisions)
        if written.read_bytes() != before:
            say(experiment, decisions)
    counts, targets = class_counts(manifest), test.targets(dtype=np.float16)
    plain = evaluate(scores, targets, manifest.class_names, counts, manifest.groups)
    members = groups(counts, manifest.groups.head, manifest.groups.tail)
    by_name = {str(name): classes for name, classes in members.items()}
    decided, tables = decided_metrics(decisions, scores, targets, by_name)
    result = replace(plain, metrics=plain.metrics | decided)
    path = experiment.folder / PREDICTIONS
    write_predictions(path, test.image_ids, scores, manifest.class_names, decisions.probabilities)
    more: dict[str, Any] = {"protocol": experiment.protocol, "images": len(test), "epoch": info.epoch}
    more |= {"training_key": info.training_key, "manifest": manifest.digest}
    more |= {_DECIDED_BY: experiment.decisions.model_dump(mode="json")}
    result.write(experiment.folder / EVALUATION, **more, decisions=decisions.source or "unfitted", **tables)
    return result


def decided_by(path: Path) -> dict[str, Any] | None:
    """The settings ``decisions`` by which an ``evaluation.json`` was made; none in that of an earlier version.

    Raises:
        CheckpointError: where it is missing or damaged.
    """
    found: dict[str, Any] | None = read_record(path, CheckpointError, EVALUATE_AGAIN).get(_DECIDED_BY)
    return found


def score_test_images(
    experiment: Experiment, prepared: Prepared, checkpoint: Path, encoder_weights: Path | None = None
) -> np.ndarray:
    """Logits [n, c] of the test images; arguments and errors are those of `score_images`."""
    return score_images(experiment, prepared, checkpoint, prepared.manifest.split(TEST), encoder_weights)


def score_images(
    experiment: Experiment, prepared: Prepared, checkpoint: Path, images: Manifest, encoder_weights: Path | None = None
) -> np.ndarray:
    """Logits [n, c] of images, from cached features where they are the checkpoint's encoder's.

    Args:
        experiment: whose images they are.
        prepared: its data.
        checkpoint: what scores them.
        images: some of the prepared ones.
        encoder_weights: its encoder, where that comes with it (a registered model); without it, features of another
            encoder are an error.

    Raises:
        CheckpointError: where the checkpoint was trained on features of another encoder than those at hand.
    """
    info = load_info(checkpoint)
    worker = Worker(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if prepared.store is not None and not experiment_of(info, checkpoint).train.moves_tower:
        if info.encoder_fingerprint == prepared.encoder_fingerprint:
            method = load_method(checkpoint)[0].to(worker.device)

            def of_features(inputs: Inputs) -> Tensor:
                logits_BC: Tensor = method(*(values.to(worker.device).float() for values in inputs))
                return logits_BC

            cached = StoredFeatures(images, prepared.store)
            return mean_logits(of_features, cached, images.image_ids, _BATCH, worker).numpy()
        if encoder_weights is None:
            raise CheckpointError(
                f"{checkpoint}: trained on features of another encoder than {prepared.store.folder.uri}; train again"
            )
    predictor = Predictor.load(checkpoint, encoder_weights)
    files = ImageFiles(images, predictor.encoder, num_processes=experiment.train.finetune.num_processes)

    def of_images(inputs: Inputs) -> Tensor:
        assert isinstance(inputs, Tensor)
        return predictor.logits([inputs])

    return mean_logits(of_images, files, images.image_ids, experiment.encoder.batch_size, worker).numpy()
