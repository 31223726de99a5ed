"""CPRFL against the linear probe: hyper-parameters chosen on folds of the training images, test images looked at once.

    python -m tests.benchmarks.accuracy coco_mini --data-root ../shared/data
    python -m tests.benchmarks.accuracy demo

All methods get the same number of random trials, and six views of each image. A trial is trained on all folds but
one, for each fold in turn; the scores of all held-out images are put together before average precision is taken: a
class with three images has one or none in a fold, and a mean over folds would measure little but luck. The winners are
trained on all training images with five seeds. For ``demo`` the shipped settings are trained with five seeds, without
a search.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cprfl.data.long_tail import class_counts, hold_out
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from cprfl.data.stratify import stratify
from cprfl.evaluation.metrics import evaluate
from cprfl.experiment import Experiment, load
from cprfl.inference.predictor import load_method
from cprfl.preparation import Prepared, prepare, read_prepared
from cprfl.recipe import train_in
from cprfl.training.sources import StoredFeatures

TRIALS, FOLDS, SEEDS, VIEWS = 12, 5, 5, 6
METRICS = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")
PUBLISHED = ["text_encoder.center=false", "text_encoder.norm=null"]
# Two of width 256 and a linear one take half the multiplications of the published form's one of width 512.
MEMBER = "{name: cprfl, standardize: true, dim: 256, num_heads: 4, head_dim: 64, mlp_dim: 256, dropout: DROPOUT}"
LINEAR = "{name: linear_probe, gain: 4}"
WIDE = "{name: cprfl, standardize: true, dim: 512, num_heads: 8, head_dim: 64, mlp_dim: 512, dropout: DROPOUT}"
FIXED = {
    "logistic_regression": ["model={name: logistic_regression}"],
    "linear_probe": ["model={name: linear_probe}"],
    "cprfl": [],
    "published": PUBLISHED,
}
SPACES: dict[str, dict[str, list[Any]]] = {
    "logistic_regression": {},  # it chooses its strength on folds by itself
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
        "model": [
            f"{{name: ensemble, members: [{MEMBER}, {MEMBER}{linear}]}}".replace("DROPOUT", str(dropout))
            for dropout in (0.1, 0.3, 0.5)
            for linear in ("", f", {LINEAR}")
        ],
        "text_encoder.center": [False, True],
        "loss.gamma_neg": [2.0, 4.0, 6.0],
    },
    "published": {
        "train.lr": [1e-4, 2e-4, 3e-4, 6e-4],
        "train.epochs": [10, 20, 30],
        "train.weight_decay": [1e-2, 1e-1],
        "model": [WIDE.replace("DROPOUT", str(dropout)) for dropout in (0.1, 0.3, 0.5)],
        "loss.gamma_neg": [2.0, 4.0, 6.0],
    },
}


def train_and_predict(experiment: Experiment, record: dict[str, Any], folds: tuple[int, int] | None) -> np.ndarray:
    """Logits of the plain views of the test images, or of fold a of b of the training images (without it trained)."""
    torch.set_num_threads(1 if folds else os.cpu_count() or 1)
    prepared = read_prepared(experiment, record)
    text = experiment.text_encoder.embed(prepared.manifest.class_names, experiment.cache_dir)
    prepared, held = replace(prepared, text=text), TEST
    if folds is not None:
        part = fold_of_each(prepared.manifest.split(TRAIN), folds[1])
        prepared, held = replace(prepared, manifest=hold_out(prepared.manifest, part == folds[0])), VALIDATION
    images = prepared.manifest.split(held)
    assert prepared.store is not None
    with tempfile.TemporaryDirectory() as folder:
        method, _ = load_method(train_in(Path(folder), experiment, prepared))
    row = {image_id: number for number, image_id in enumerate(images.image_ids)}
    logits_NC = np.zeros((len(images), len(images.class_names)), np.float32)
    with torch.inference_mode():
        for inputs, _, ids in StoredFeatures(images, prepared.store).in_order(128):
            logits_NC[[row[image_id] for image_id in ids]] = method(*(values.float() for values in inputs)).numpy()
    return logits_NC


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
    manifest = prepared.manifest
    training = manifest.split(TRAIN)
    part = fold_of_each(training, FOLDS)
    targets_NC = training.targets()
    logits_NC = np.zeros(targets_NC.shape, np.float32)
    best: tuple[float, list[str]] = (-1.0, [])
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for number, (chosen, experiment) in enumerate(trials(config, overrides, method)):
            jobs = [pool.submit(train_and_predict, experiment, prepared.record, (fold, FOLDS)) for fold in range(FOLDS)]
            for fold, job in enumerate(jobs):
                logits_NC[part == fold] = job.result()
            metrics = metrics_of(manifest, logits_NC, targets_NC)
            shown = " / ".join(f"{metrics[name]:.1f}" for name in METRICS)
            print(f"{method} {number:2d}: {shown}  {json.dumps(chosen)}", flush=True)
            best = max(best, (metrics["mAP"], [f"{path}={value}" for path, value in chosen.items()]))
    return best[1]


def final(name: str, config: str, overrides: list[str], prepared: Prepared) -> None:
    """Print mean and standard deviation of the test metrics over the seeds."""
    targets_NC = prepared.manifest.split(TEST).targets()
    results = []
    for seed in range(SEEDS):
        logits_NC = train_and_predict(load(config, [*overrides, f"seed={seed}"]), prepared.record, None)
        results.append(metrics_of(prepared.manifest, logits_NC, targets_NC))
    columns = [[result[metric] for result in results] for metric in METRICS]
    print(f"{name}: " + " / ".join(f"{np.mean(c):.1f} ± {np.std(c, ddof=1):.1f}" for c in columns), flush=True)


def study_demo(common: list[str]) -> None:
    """The shipped settings on the embedded data, and what each part is worth."""
    config = "configs/demo.yaml"
    prepared = prepare(load(config, common))
    cprfl = "{name: cprfl, standardize: true, dim: 128, num_heads: 4, head_dim: 32, mlp_dim: 256}"
    ensemble = [f"model={{name: ensemble, members: [{cprfl}, {cprfl}, {LINEAR}]}}"]
    fitted = [f"model={{name: ensemble, weights: fitted, members: [{cprfl}, {{name: logistic_regression}}]}}"]
    variants: dict[str, list[str]] = {
        "CPRFL, as published": [],
        "CPRFL, as published, twice the epochs": ["train.epochs=80"],  # as much training as of two members
        "CPRFL, two members and a linear one": ensemble,
        "CPRFL, the same with centred text, as chosen on coco_mini": [
            *ensemble,
            "text_encoder.center=true",
            "text_encoder.norm=10",
        ],
        "CPRFL and a logistic regression, weights fitted on folds": fitted,
        "logistic regression": ["model={name: logistic_regression}"],
        "zero-shot": ["model={name: zero_shot}"],
        "CPRFL, random text": ["text_encoder.name=random", "text_encoder.dim=64"],
        "linear probe": ["model.name=linear_probe"],
    }
    for name, overrides in variants.items():
        final(name, config, [*common, *overrides], prepared)


def study_coco_mini(common: list[str], methods: list[str]) -> None:
    """A search for each method, and its winner on the test images."""
    config = "configs/coco_mini.yaml"
    prepared = prepare(load(config, [*common, f"encoder.views={VIEWS}"]))
    for method in methods:
        fixed = [*common, *FIXED[method]]
        chosen = search(config, fixed, method, prepared)
        print(f"{method}, chosen: {chosen}", flush=True)
        final(method, config, [*fixed, *chosen], prepared)


def main() -> None:
    """Run one of the two studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["coco_mini", "demo"])
    parser.add_argument("--data-root", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output-dir", type=Path, help="kept, with the features; a temporary folder otherwise")
    parser.add_argument("--methods", nargs="+", choices=list(SPACES), default=list(SPACES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        common = [f"output_dir={options.output_dir or folder}"]
        if options.study == "demo":
            study_demo(common)
        else:
            study_coco_mini([*common, f"data_root={options.data_root.absolute()}"], options.methods)


if __name__ == "__main__":
    main()
