"""CPRFL against the linear probe: hyper-parameters chosen on folds of the training images, test images looked at once.

    python -m tests.benchmarks.accuracy coco_mini ../shared/data
    python -m tests.benchmarks.accuracy demo

Both methods get the same number of random trials, and six views of each image. A trial is trained on all folds but
one, for each fold in turn; the scores of all held-out images are put together before average precision is taken: a
class with three images has one or none in a fold, and a mean over folds would measure little but luck. The winners are
trained on all training images with five seeds. For ``demo`` the shipped settings are trained with five seeds, without
a search.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
from cprfl.training.sources import StoredFeatures
from pipelines.preprocess import Prepared, preprocess

TRIALS, FOLDS, SEEDS, VIEWS = 12, 5, 5, 6
METRICS = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")
SPACES: dict[str, dict[str, list[Any]]] = {
    "linear_probe": {
        "train.lr": [5e-4, 1e-3, 2e-3, 4e-3],
        "train.epochs": [30, 60, 120],
        "train.weight_decay": [1e-2, 1e-1],
        "loss.gamma_neg": [2.0, 4.0, 6.0, 8.0],
    },
    "cprfl": {
        "train.lr": [3e-4, 6e-4],
        "train.epochs": [20, 30],
        "train.weight_decay": [1e-2, 1e-1],
        "model.dropout": [0.1, 0.3, 0.5],
        "model.linear_member": [False, True],
        "text_encoder.center": [False, True],
        "loss.gamma_neg": [2.0, 4.0, 6.0],
    },
}
SMALL = ["model.dim=256", "model.num_heads=4", "model.mlp_dim=256"]  # a quarter of the time of width 512
MEMBERS = ["model.members=2"]
PUBLISHED = ["model.members=1", "model.linear_member=false", "text_encoder.center=false", "text_encoder.norm=null"]


def train_and_predict(experiment: Experiment, prepared: Prepared, folds: tuple[int, int] | None) -> np.ndarray:
    """Logits of the plain views of the test images, or of fold a of b of the training images (without it trained)."""
    torch.set_num_threads(1 if folds else os.cpu_count() or 1)
    manifest, store = prepared.read_manifest(), prepared.open_features()
    training, held = manifest.split("train"), manifest.split("test")
    if folds is not None:
        part = fold_of_each(training, folds[1])
        held, training = (
            training.select(np.flatnonzero(mask).tolist()) for mask in (part == folds[0], part != folds[0])
        )
    source = StoredFeatures(training, store, 10**9)
    text = experiment.text_encoder.embed(manifest.class_names, experiment.cache_dir).embeddings_CM
    torch.manual_seed(experiment.seed)
    statistics = feature_statistics(source.in_order(256))
    inputs = ModelInputs(len(manifest.class_names), store.grid_shape[1], text, *statistics)
    model = experiment.model.build(inputs)
    last: list[EpochEnd] = []
    worker = Worker(torch.device("cpu"))
    loss = experiment.loss.build(class_counts(manifest), source.num_images)
    fit(
        model, loss, source, experiment.train, seed=experiment.seed, worker=worker, on_epoch_end=last.append
    )  # fmt: skip
    model.load_state_dict(last[-1].weights)
    return predict(model, StoredFeatures(held, store).in_order(128), worker.device).numpy()


def metrics_of(manifest: Manifest, logits_NC: np.ndarray, targets_NC: np.ndarray) -> dict[str, float]:
    """Total, head, medium and tail mAP."""
    result = evaluate(logits_NC, targets_NC, manifest.class_names, class_counts(manifest), manifest.groups)
    return {name: result.metrics.get(name, float("nan")) for name in METRICS}


def fold_of_each(training: Manifest, folds: int) -> np.ndarray:
    """The fold of each image, every class spread over the folds."""
    return stratify(training.targets(), [1 / folds] * folds, seed=0)


def trials(config: str, overrides: list[str], method: str) -> Iterator[tuple[dict[str, Any], Experiment]]:
    """Random settings of the method's space, the same on every machine."""
    draw = random.Random(f"{method} 0")
    for _ in range(TRIALS):
        chosen = {path: draw.choice(values) for path, values in SPACES[method].items()}
        yield chosen, load(config, [*overrides, *(f"{path}={value}" for path, value in chosen.items())])


def search(config: str, overrides: list[str], method: str, prepared: Prepared) -> list[str]:
    """The overrides of the trial with the highest mAP over all held-out training images."""
    manifest = prepared.read_manifest()
    training = manifest.split("train")
    part = fold_of_each(training, FOLDS)
    targets_NC = training.targets()
    logits_NC = np.zeros(targets_NC.shape, np.float32)
    best: tuple[float, list[str]] = (-1.0, [])
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, (chosen, experiment) in enumerate(trials(config, overrides, method)):
            jobs = [pool.submit(train_and_predict, experiment, prepared, (fold, FOLDS)) for fold in range(FOLDS)]
            for fold, job in enumerate(jobs):
                logits_NC[part == fold] = job.result()
            metrics = metrics_of(manifest, logits_NC, targets_NC)
            shown = " / ".join(f"{metrics[name]:.1f}" for name in METRICS)
            print(f"{method} {number:2d}: {shown}  {json.dumps(chosen)}", flush=True)
            best = max(best, (metrics["mAP"], [f"{path}={value}" for path, value in chosen.items()]))
    return best[1]


def final(name: str, config: str, overrides: list[str], prepared: Prepared) -> None:
    """Print mean and standard deviation of the test metrics over the seeds."""
    manifest = prepared.read_manifest()
    targets_NC = manifest.split("test").targets()
    results = []
    for seed in range(SEEDS):
        logits_NC = train_and_predict(load(config, [*overrides, f"seed={seed}"]), prepared, None)
        results.append(metrics_of(manifest, logits_NC, targets_NC))
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
            final(
                "CPRFL, two members and a linear one", config, [*common, *MEMBERS, "model.linear_member=true"], prepared
            )
            final("CPRFL, random text", config, [*common, "text_encoder.name=random", "text_encoder.dim=64"], prepared)
            final("linear probe", config, [*common, "model.name=linear_probe"], prepared)
            return
        common.append(f"data_root={Path(rest[0]).absolute()}")
        prepared = preprocess(load(config, [*common, f"encoder.views={VIEWS}"]))
        for method in SPACES:
            named = [*common, "model.name=linear_probe", "model.standardize=true"]
            if method == "cprfl":
                named = [*common, *SMALL, *MEMBERS]
            chosen = search(config, named, method, prepared)
            print(f"{method}, chosen: {chosen}", flush=True)
            final(method, config, [*named, *chosen], prepared)
            if method == "cprfl":
                final("the same without what is not in the paper", config, [*named, *chosen, *PUBLISHED], prepared)


if __name__ == "__main__":
    main()
