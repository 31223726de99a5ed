"""``python -m tests.benchmarks.readers``: the time and memory of reading annotations of COCO's size, generated."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cprfl.data.readers.coco import CocoDataset
from cprfl.data.readers.csv_table import CsvDataset

ROWS = 1_000_000


def coco(path: Path) -> CocoDataset:
    """118,000 images, 860,000 boxes with small polygons."""
    rng = np.random.default_rng(0)
    images = [{"id": 3 * n + 7, "file_name": f"{n:012d}.jpg", "width": 640, "height": 480} for n in range(118_000)]
    annotations = [
        {
            "id": n, "image_id": 3 * int(rng.integers(118_000)) + 7, "category_id": int(category), "iscrowd": 0,
            "bbox": [1.5, 2.5, 30.25, 40.75], "area": 1200.5,
            "segmentation": [(rng.random(12) * 600).round(2).tolist()],
        }
        for n, category in enumerate(rng.integers(1, 81, 860_000))
    ]  # fmt: skip
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, 81)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CocoDataset.model_validate({"splits": {"train": {"annotations": str(path), "images": "nowhere"}}})


def names_in_a_cell(path: Path) -> CsvDataset:
    """A million rows, three names in each."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("image,labels\n")
        for row, labels in enumerate(rng.integers(0, 80, (ROWS, 3))):
            file.write(f"img/{row:07d}.jpg,{';'.join(f'class {label}' for label in labels)}\n")
    return CsvDataset(splits={"train": str(path)})


def columns(path: Path) -> CsvDataset:
    """A million rows of twenty 0/1 columns."""
    shown = (np.random.default_rng(0).random((ROWS, 20)) < 0.1).astype(int)
    with path.open("w") as file:
        file.write(f"image,{','.join(f'class {label}' for label in range(20))}\n")
        for row, cells in enumerate(shown):
            file.write(f"img/{row:07d}.jpg,{','.join(map(str, cells))}\n")
    return CsvDataset(splits={"train": str(path)})


WRITERS: dict[str, Callable[[Path], CocoDataset | CsvDataset]] = {
    "coco.json": coco,
    "names.csv": names_in_a_cell,
    "columns.csv": columns,
}


def main() -> None:
    """Write each file, and read it in a process of its own, whose peak memory is then the reader's."""
    if len(sys.argv) > 1:
        kinds: dict[str, type[Any]] = {"coco": CocoDataset, "csv": CsvDataset}
        dataset = kinds[sys.argv[1]].model_validate_json(sys.argv[2])
        start = time.perf_counter()
        images = len(dataset.read())
        status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's, if that is larger
        peak = int(status.partition("VmHWM:")[2].split()[0]) / 1e6
        print(f"{images} images, {time.perf_counter() - start:.1f} s, {peak:.2f} GB")
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            dataset = write(Path(folder) / name)
            print(name, end=": ", flush=True)
            words = [sys.executable, "-m", "tests.benchmarks.readers", dataset.name, dataset.model_dump_json()]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
