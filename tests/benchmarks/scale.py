"""``python -m tests.benchmarks.scale [IMAGES ...]``: 1,000 classes and more and more images through every stage.

Cells are generated instead of encoded: what is measured is everything else. Each stage runs in a process of its own,
as it does for who calls it later, so that the peak of its memory is its own.
"""

from __future__ import annotations

import csv
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml

from cprfl import recipe
from cprfl.data.feature_store.shards import Features, write_shard
from cprfl.data.storage import Folder
from cprfl.encoders.base import ImageEncoder
from cprfl.experiment import Experiment, load
from cprfl.feature_cache import ShardDone, ShardJob
from cprfl.inference.deciding import decide
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import CHECKPOINT, prepare
from cprfl.report.model.page import write_page
from cprfl.report.model.report import model_report
from cprfl.report.results import Results

SETTINGS = "scale.yaml"
IMAGES, CLASSES = (12_500, 25_000, 50_000, 100_000), 1_000
CELLS, CHANNELS = 4, 64
_LABELS = 3.0  # of an image, in the mean


def experiment_of(folder: Path, images: int) -> Experiment:
    """An experiment on a long tail of classes, a fifth of whose images are for testing."""
    rng = np.random.default_rng(0)
    shares_C = np.geomspace(1, 0.002, CLASSES)
    shares_C *= _LABELS / shares_C.sum()
    for split, count in (("train", images * 4 // 5), ("test", images // 5)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "labels"])
            for number in range(count):
                shown_C = rng.random(CLASSES) < shares_C
                shown_C[number:][:1] = True  # each class once: a step of training has as many of them in every size
                names = "|".join(f"class {i}" for i in np.flatnonzero(shown_C))
                writer.writerow([f"synthetic://v1/{number}?seed={len(split)}&size=64&objects=1-3", names])
    settings = {
        "name": "scale",
        "output_dir": str(folder / "outputs"),
        "data_root": str(folder),
        "dataset": {"name": "csv", "splits": {"train": "train.csv", "test": "test.csv"}},
        "encoder": {"name": "torchvision", "model": "squeezenet1_1", "pretrained": "random", "image_size": 64},
        "text_encoder": {"name": "random", "dim": 32},
        "model": {"name": "cprfl", "dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32},
        "train": {"epochs": 1, "batch_size": 256},
        "decisions": {"folds": 0},
    }
    (folder / SETTINGS).write_text(yaml.safe_dump(settings))
    return load(folder / SETTINGS)


def generated(
    jobs: Sequence[ShardJob], experiment: Experiment, encoder: ImageEncoder, folder: Folder
) -> Iterator[ShardDone]:
    """Shards of random cells."""
    for job in jobs:
        rng, count = np.random.default_rng(job.number), len(job.image_ids)
        grid = rng.standard_normal((count, CELLS, CHANNELS), dtype=np.float32)
        found = Features(tuple(job.image_ids), np.zeros(count, np.int8), grid, grid.mean(axis=1))
        write_shard(folder, job.number, found, [])
        yield ShardDone(count, count, [])


def _evaluate(experiment: Experiment) -> None:
    prepared, checkpoint = prepare(experiment, needs={"test"}), experiment.folder / CHECKPOINT
    decide(experiment, prepared, checkpoint)
    evaluate_checkpoint(experiment, prepared, checkpoint)


def _report(experiment: Experiment) -> None:
    write_page(model_report(Results.read(experiment.folder)), experiment.folder / "report.html")


STAGES: dict[str, Callable[[Experiment], object]] = {
    "preprocess": lambda experiment: prepare(experiment, needs={"test"}, fill=generated),
    "train": lambda experiment: recipe.train(experiment, prepare(experiment, needs={"test"})),
    "evaluate": _evaluate,
    "report": _report,
}


def run(stage: str, folder: Path) -> None:
    """One stage; print its seconds of processor, and the process's memory before it and at its peak."""
    experiment = load(folder / SETTINGS)
    before, begin = _peak_mb(), time.process_time()
    STAGES[stage](experiment)
    print(f" | {stage} {time.process_time() - begin:.1f} s, {before:.0f} to {_peak_mb():.0f} MB", end="", flush=True)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_all(images: int) -> None:
    """All stages of one size, each in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        experiment = experiment_of(Path(name), images)
        print(f"{images:,}", end="", flush=True)
        for stage in STAGES:
            subprocess.run([sys.executable, "-m", "tests.benchmarks.scale", stage, name], check=True)
        print(f" | {(experiment.folder / 'report.html').stat().st_size / 1e6:.1f} MB of page")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STAGES:
        run(sys.argv[1], Path(sys.argv[2]))
    else:
        for size in map(int, sys.argv[1:] or IMAGES):
            run_all(size)
