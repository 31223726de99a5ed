"""Results of models that nobody trained: a folder with what a training and an evaluation leave there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cprfl.data.files import write_record
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import Groups, Manifest
from cprfl.evaluation.decisions import Decisions
from cprfl.evaluation.metrics import evaluate, write_predictions
from cprfl.experiment import Experiment
from cprfl.inference.scoring import EVALUATION, PREDICTIONS
from cprfl.preparation import CHECKPOINT, MANIFEST, PREPARED
from cprfl.report.results import BASELINES, Results
from cprfl.training.checkpoint import VERSION, CheckpointInfo


def images(
    class_names: Sequence[str], training: np.ndarray, test: np.ndarray, uris: Sequence[str] = (), start: int = 0
) -> Manifest:
    """Training and test images with these multi-hot targets, NaN where nobody knows; the latter named from start on."""
    targets = np.concatenate([training, test])
    ids = [f"train {n}" for n in range(len(training))] + [f"test {start + n}" for n in range(len(test))]
    return Manifest(
        tuple(class_names),
        tuple(ids),
        tuple(uris or ids),
        ("train",) * len(training) + ("test",) * len(test),
        tuple(tuple(np.flatnonzero(row == 1).tolist()) for row in targets),
        tuple(tuple(np.flatnonzero(np.isnan(row)).tolist()) for row in targets),
        Groups(head=20, tail=8),
    )


def made_results(
    experiment: Experiment,
    manifest: Manifest,
    logits_NC: np.ndarray,
    baselines: Mapping[str, np.ndarray] | None = None,
    decisions: Decisions | None = None,
) -> Results:
    """What lies in the experiment's folder after a model scored its test images so."""
    folder, test, names = experiment.folder, manifest.split("test"), manifest.class_names
    manifest.write(folder / MANIFEST)
    write_predictions(folder / PREDICTIONS, test.image_ids, logits_NC, names)
    for name, values in (baselines or {}).items():
        write_predictions(folder / BASELINES / f"{name}.parquet", test.image_ids, values, names)
    evaluation = evaluate(logits_NC, test.targets(), names, class_counts(manifest), manifest.groups)
    evaluation.write(folder / EVALUATION, training_key="key", manifest=manifest.digest)
    info = CheckpointInfo(experiment.model_dump(mode="json"), "key", list(names), "encoder", "text", 3, {}, False)
    checkpoint = folder / CHECKPOINT
    Path(checkpoint).mkdir(exist_ok=True)
    write_record(checkpoint / "checkpoint.json", {"version": VERSION, "resume.pt": None, **asdict(info)})
    write_record(folder / PREPARED, {"features": None})
    if decisions is not None:
        decisions.write(checkpoint)
    return Results.read(folder)
