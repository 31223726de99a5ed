"""CPRFL against the linear probe: hyper-parameters chosen on folds of the training images, test images looked at once.

    python -m tests.benchmarks.accuracy coco_mini ../shared/data
    python -m tests.benchmarks.accuracy demo

Both methods get the same number of random trials; each trial is the mean mAP over the folds. The winners are trained on
all training images with five seeds. For ``demo`` the shipped settings are trained with five seeds, without a search.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import Manifest
from cprfl.data.stratify import stratify
from cprfl.evaluation import evaluate
from cprfl.experiment import Experiment, load
from cprfl.models.base import ModelInputs, feature_statistics
from cprfl.training.loop import EpochEnd, Worker, fit, predict
from cprfl.training.sources import CachedFeatures
from pipelines.preprocess import Prepared, preprocess
from pipelines.train import read_splits

TRIALS, FOLDS, SEEDS, VIEWS = 16, 3, 5, 6
METRICS = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")
SPACES: dict[str, dict[str, list[Any]]] = {
    "cprfl": {
        "train.lr": [1e-4, 2e-4, 4e-4, 8e-4],
        "train.epochs": [15, 30],
        "train.weight_decay": [1e-4, 1e-2, 1e-1],
        "model.dropout": [0.1, 0.3, 0.5],
        "model.residual": [False, True],
        "model.dim": [256, 512],
        "text_encoder.center": [False, True],
        "loss.gamma_neg": [2.0, 4.0],
        "encoder.views": [1, VIEWS],
    },
    "linear_probe": {
        "train.lr": [5e-4, 1e-3, 2e-3, 4e-3, 8e-3],
        "train.epochs": [30, 60, 120],
        "train.weight_decay": [1e-4, 1e-2, 1e-1],
        "loss.gamma_neg": [2.0, 4.0],
        "encoder.views": [1, VIEWS],
    },
}


def train_and_score(
    experiment: Experiment, text: torch.Tensor, manifest: Manifest, training: CachedFeatures, held: CachedFeatures
) -> dict[str, float]:
    """Metrics on the plain views of ``held`` after training on ``training``."""
    training = training._replace(grids_NKVD=training.grids_NKVD[:, : experiment.encoder.views])
    torch.manual_seed(experiment.seed)
    statistics = feature_statistics(training.grids_NKVD)
    inputs = ModelInputs(len(manifest.class_names), training.grids_NKVD.shape[-1], text, *statistics)
    model = experiment.model.build(inputs)
    last: list[EpochEnd] = []
    counts = class_counts(manifest)
    worker = Worker(torch.device("cpu"))
    loss = experiment.loss.build(counts, len(training.image_ids))
    fit(
        model, loss, training, experiment.train, seed=experiment.seed, worker=worker, on_epoch_end=last.append
    )  # fmt: skip
    model.load_state_dict(last[-1].weights)
    logits = predict(model, iter(held.grids_NKVD[:, 0].split(128)), worker.device)
    result = evaluate(logits.numpy(), held.targets_NC.numpy(), manifest.class_names, counts, manifest.groups)
    return {name: result.metrics.get(name, float("nan")) for name in METRICS}


def rows_of(data: CachedFeatures, rows: np.ndarray) -> CachedFeatures:
    """Some of the images."""
    return CachedFeatures(tuple(data.image_ids[r] for r in rows), data.grids_NKVD[rows], data.targets_NC[rows])


def trials(config: str, overrides: list[str], method: str) -> Iterator[tuple[dict[str, Any], Experiment]]:
    """Random settings of the method's space, the same on every machine."""
    draw = random.Random(f"{method} 0")
    for _ in range(TRIALS):
        chosen = {path: draw.choice(values) for path, values in SPACES[method].items()}
        base = [*overrides, f"model.name={method}"] if method != "cprfl" else overrides
        yield chosen, load(config, [*base, *(f"{path}={value}" for path, value in chosen.items())])


def search(config: str, overrides: list[str], method: str, prepared: Prepared) -> list[str]:
    """The overrides of the trial with the highest mean mAP on the folds."""
    manifest, training = prepared.read_manifest(), read_splits(prepared)["train"]
    part = stratify(training.targets_NC.numpy(), [1 / FOLDS] * FOLDS, seed=0)
    best: tuple[float, list[str]] = (-1.0, [])
    for number, (chosen, experiment) in enumerate(trials(config, overrides, method)):
        text = experiment.text_encoder.embed(manifest.class_names, experiment.cache_dir).embeddings_CM
        scores = []
        for fold in range(FOLDS):
            inner, held = (rows_of(training, np.flatnonzero(mask)) for mask in (part != fold, part == fold))
            scores.append(train_and_score(experiment, text, manifest, inner, held)["mAP"])
        print(f"{method} {number:2d}: {np.mean(scores):5.2f}  {json.dumps(chosen)}", flush=True)
        best = max(best, (float(np.mean(scores)), [f"{path}={value}" for path, value in chosen.items()]))
    return best[1]


def final(name: str, config: str, overrides: list[str], prepared: Prepared) -> None:
    """Print mean and standard deviation of the test metrics over the seeds."""
    manifest, splits = prepared.read_manifest(), read_splits(prepared)
    results = []
    for seed in range(SEEDS):
        experiment = load(config, [*overrides, f"seed={seed}"])
        text = experiment.text_encoder.embed(manifest.class_names, experiment.cache_dir).embeddings_CM
        results.append(train_and_score(experiment, text, manifest, splits["train"], splits["test"]))
    columns = [[result[metric] for result in results] for metric in METRICS]
    print(f"{name}: " + " / ".join(f"{np.mean(c):.1f} ± {np.std(c, ddof=1):.1f}" for c in columns), flush=True)


def main() -> None:
    """Run one of the two studies."""
    study, *rest = sys.argv[1:]
    config = f"configs/{study}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        common = [f"output_dir={rest[1] if len(rest) > 1 else folder}"]
        if study == "demo":
            prepared = preprocess(load(config, common))
            final("CPRFL", config, common, prepared)
            final("CPRFL, random text", config, [*common, "text_encoder.name=random", "text_encoder.dim=64"], prepared)
            final("linear probe", config, [*common, "model.name=linear_probe"], prepared)
            return
        common.append(f"data_root={Path(rest[0]).absolute()}")
        prepared = preprocess(load(config, [*common, f"encoder.views={VIEWS}"]))
        for method in SPACES:
            chosen = search(config, common, method, prepared)
            named = [*common, f"model.name={method}"] if method != "cprfl" else common
            print(f"{method}, chosen: {chosen}")
            final(method, config, [*named, *chosen], prepared)


if __name__ == "__main__":
    main()
