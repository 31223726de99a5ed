"""`cprfl predict` on a thousand photographs, against the bare loop: DataLoader, transform and encoder.

python -m tests.benchmarks.predict [FOLDER]
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cprfl.encoders.base import ImageEncoder, Transform
from cprfl.encoders.cnn import CnnEncoder
from cprfl.evaluation.decisions import Decisions
from cprfl.inference.outputs import parquet_output
from cprfl.inference.predictor import Predictor
from cprfl.inference.sources import find_images
from cprfl.inference.streaming import ScoredImage, stream_scores
from cprfl.models import CPRFL
from tests.helpers import facts_of

IMAGES, ROUNDS, CLASSES = 1000, 3, 80
SHARED = Path(__file__).parents[3] / "shared" / "data" / "coco_mini" / "images"


class Files(Dataset[Tensor]):
    """Images as a user reads them who has PyTorch and nothing else."""

    def __init__(self, uris: Sequence[str], transform: Transform) -> None:
        self.uris, self.transform = uris, transform

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.uris[number]) as image:
            return self.transform(image.convert("RGB"))


class Spent(NamedTuple):
    """Seconds that went by, and those of the CPUs in this process and its children."""

    wall: float
    cpu: float

    @classmethod
    def by(cls, work: Callable[[], None]) -> Spent:
        """Of calling ``work``."""
        before = sum(os.times()[:4]), time.perf_counter()
        work()
        return cls(time.perf_counter() - before[1], sum(os.times()[:4]) - before[0])


def bare_loop(encoder: ImageEncoder, uris: Sequence[str], workers: int) -> None:
    """Decode, transform and encode, and nothing else."""
    loader = DataLoader(Files(uris, encoder.transform), encoder.config.batch_size, num_workers=workers)
    with torch.inference_mode():
        for images_B3HW in loader:
            encoder(images_B3HW)


def predict(predictor: Predictor, uris: Sequence[str], workers: int, out: Path) -> None:
    """Score, decide and write too."""
    with parquet_output(out, predictor.decisions) as write:
        for batch in stream_scores(predictor, uris, readers=workers):
            write([image for image in batch if isinstance(image, ScoredImage)])


def photographs(folder: Path) -> list[str]:
    """A thousand of a folder, some of them twice where it has fewer; noise where there is no folder."""
    if not SHARED.exists() and folder == SHARED:
        folder = Path(tempfile.mkdtemp())
        rng = np.random.default_rng(0)
        for number in range(50):
            pixels = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((640, 480)).save(folder / f"{number}.jpg")
    return list(itertools.islice(itertools.cycle(find_images([str(folder)])), IMAGES))


def main() -> None:
    """Print the ratio of the rates, round by round and their median."""
    torch.set_num_threads(1)
    workers = os.cpu_count() or 1
    uris = photographs(Path(sys.argv[1]) if len(sys.argv) > 1 else SHARED)
    encoder = CnnEncoder.Config(model="squeezenet1_1", pretrained="random", pool=7).build(Path())
    facts = replace(facts_of(CLASSES, 512, 512), global_dim=512)
    method = CPRFL.Config(dim=256).build(facts)
    predictor = Predictor(method, encoder, Decisions.unfitted(facts.class_names))
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.parquet"
        for number in range(ROUNDS):
            ours = Spent.by(lambda: predict(predictor, uris, workers, out))
            bare = Spent.by(lambda: bare_loop(encoder, uris, workers))
            ratios.append((bare.wall / ours.wall, bare.cpu / ours.cpu))
            rates = f"{IMAGES / ours.wall:.0f} images/s, bare loop {IMAGES / bare.wall:.0f} images/s"
            print(f"round {number + 1}: {rates}, CPU {ours.cpu:.1f} s and {bare.cpu:.1f} s", flush=True)
    rate, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    # on a machine that others use too the CPU's seconds tell more than the clock's
    print(f"{workers} threads against {workers} processes: {rate:.2f} of the bare loop's rate, {cpu:.2f} by CPU time")


if __name__ == "__main__":
    main()
