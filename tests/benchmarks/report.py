"""``python -m tests.benchmarks.report``: time and size of the report of 5,000 test photographs and 80 classes."""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from cprfl.data.files import write_record
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import Manifest
from cprfl.evaluation.metrics import evaluate, write_predictions
from cprfl.experiment import load
from cprfl.inference.scoring import EVALUATION, PREDICTIONS
from cprfl.models.base import Facts
from cprfl.preparation import CHECKPOINT, MANIFEST, PREPARED
from cprfl.report.model.page import write_page
from cprfl.report.model.report import model_report
from cprfl.report.results import BASELINES, Results
from cprfl.training.checkpoint import CheckpointInfo, save_checkpoint

TESTED, TRAINED, CLASSES, FILES = 5_000, 2_000, 80, 400


def photographs(folder: Path) -> list[Path]:
    """Files of 640 x 480 pixels that weigh as much as photographs do."""
    rng, paths = np.random.default_rng(0), []
    for number in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, size=(12, 16, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), dtype=np.int16)
        grainy = soft + rng.integers(-14, 15, size=soft.shape)
        path = folder / f"{number}.jpg"
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        paths.append(path)
    return paths


def results(folder: Path) -> Results:
    """A model's folder with scores of a long tail; each test image is a file of its own."""
    (folder / "photos").mkdir()
    rng, files = np.random.default_rng(0), photographs(folder / "photos")
    names = tuple(f"class {number}" for number in range(CLASSES))
    shares_C = np.geomspace(0.3, 0.004, CLASSES)
    shown_NC = rng.random((TESTED + TRAINED, CLASSES)) < shares_C
    ids = tuple(f"{number:06d}" for number in range(len(shown_NC)))
    uris = []
    for number, name in enumerate(ids):
        (folder / "photos" / f"{name}.jpg").hardlink_to(files[number % FILES])
        uris.append(str(folder / "photos" / f"{name}.jpg"))
    labels = tuple(tuple(np.flatnonzero(row).tolist()) for row in shown_NC)
    manifest = Manifest(names, ids, tuple(uris), ("test",) * TESTED + ("train",) * TRAINED, labels)
    settings = {
        "name": "large",
        "output_dir": str(folder / "outputs"),
        "dataset": {"name": "csv", "splits": {"train": "train.csv", "test": "test.csv"}},
        "encoder": {"name": "torchvision", "model": "squeezenet1_1", "pretrained": "random"},
        "text_encoder": {"name": "random", "dim": 16},
        "model": {"name": "linear_probe"},
    }
    (folder / "large.yaml").write_text(yaml.safe_dump(settings))
    experiment = load(folder / "large.yaml")
    manifest.write(experiment.folder / MANIFEST)
    write_record(experiment.folder / PREPARED, {"features": None})
    facts = Facts.of_data(manifest.split("train"), torch.randn(CLASSES, 16), 8, 8)
    info = CheckpointInfo(experiment.model_dump(mode="json"), "", list(names), "", "", 10, {}, holds_tower=False)
    weights = dict(experiment.model.build(facts).state_dict())
    (experiment.folder / CHECKPOINT).mkdir()
    save_checkpoint(experiment.folder / CHECKPOINT, weights, facts, info, None, None)
    test = manifest.split("test")
    for path, skill in ((PREDICTIONS, 3.0), (f"{BASELINES}/logistic_regression.parquet", 2.0),
                        (f"{BASELINES}/champion.parquet", 2.8)):  # fmt: skip
        logits_NC = (rng.normal(size=(TESTED, CLASSES)) + skill * test.targets() - 3).astype(np.float32)
        write_predictions(experiment.folder / path, test.image_ids, logits_NC, names)
        if path == PREDICTIONS:
            found = evaluate(logits_NC, test.targets(), names, class_counts(manifest), manifest.groups)
            found.write(experiment.folder / EVALUATION, training_key=info.training_key, manifest=manifest.digest)
    return Results.read(experiment.folder)


def main() -> None:
    """Write the page, and say how long it took and how large it is."""
    with tempfile.TemporaryDirectory() as folder:
        made, path = results(Path(folder)), Path(folder) / "report.html"
        begin, used = time.perf_counter(), _processor()
        report = model_report(made)
        between = time.perf_counter()
        write_page(report, path)
        end = time.perf_counter()
        print(
            f"{TESTED:,} test images, {CLASSES} classes: {end - begin:.1f} s ({between - begin:.1f} s finding out, "
            f"{end - between:.1f} s writing; {_processor() - used:.1f} s of processor), "
            f"{path.stat().st_size / 1e6:.1f} MB"
        )


def _processor() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
