"""``python -m tests.benchmarks.growth [IMAGES]``: how the time of reading annotations grows with what is in them.

Twice as many images, labels or classes should take about twice the time; beyond 2.5 times, a step grows faster.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from cprfl.experiment import AnyDataset
from cprfl.starting.reading import read_what_is_there

Labels = list[list[str]]
SHAPES: dict[str, Callable[[int], Labels]] = {
    "images": lambda count: [[f"class {number % 50}", f"other {number % 7}"] for number in range(count)],
    "classes": lambda count: [[f"class {number}"] for number in range(count)],
    "labels of an image": lambda count: [[f"class {number}" for number in range(count // 4)]] * 2,
}


def _joined(root: Path, labels: Labels) -> dict[str, Any]:
    rows = [f"{number}.jpg,{';'.join(own)}\n" for number, own in enumerate(labels)]
    (root / "train.csv").write_text("image,labels\n" + "".join(rows))
    return {"name": "csv", "splits": {"train": "train.csv"}, "separator": ";"}


def _columns(root: Path, labels: Labels) -> dict[str, Any]:
    names = sorted({name for own in labels for name in own})
    rows = [
        ",".join([f"{number}.jpg", *("01"[name in own] for name in names)]) for number, own in enumerate(labels[:20])
    ]
    rows.append(",".join(["last.jpg", *"1" * len(names)]))
    (root / "train.csv").write_text("\n".join([",".join(["image", *names]), *rows]))
    return {"name": "csv", "splits": {"train": "train.csv"}}


def _coco(root: Path, labels: Labels) -> dict[str, Any]:
    names = sorted({name for own in labels for name in own})
    index = {name: number for number, name in enumerate(names)}
    shown = [(image, name) for image, own in enumerate(labels) for name in own]
    written = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(labels))],
        "categories": [{"id": number, "name": name} for name, number in index.items()],
        "annotations": [
            {"id": number, "image_id": image, "category_id": index[name]} for number, (image, name) in enumerate(shown)
        ],
    }
    (root / "train.json").write_text(json.dumps(written))
    return {"name": "coco", "splits": {"train": {"annotations": "train.json", "images": "."}}}


def _parquet(root: Path, labels: Labels) -> dict[str, Any]:
    images = [f"{number}.jpg" for number in range(len(labels))]
    pq.write_table(pa.table({"image": images, "labels": labels}), root / "train.parquet")
    return {"name": "parquet", "splits": {"train": "train.parquet"}}


def _list(root: Path, labels: Labels) -> dict[str, Any]:
    names = sorted({name for own in labels for name in own})
    index = {name: number for number, name in enumerate(names)}
    (root / "labels.txt").write_text("".join(f"{name} {number}\n" for name, number in index.items()))
    rows = [f"image_{row} {' '.join(str(index[name]) for name in own)}\n" for row, own in enumerate(labels)]
    (root / "train.txt").write_text("".join(rows))
    return {"name": "list_files", "labels": "labels.txt", "splits": {"train": "train.txt"}}


def _folders(root: Path, labels: Labels) -> dict[str, Any] | None:
    for number, own in enumerate(labels):
        (root / own[0]).mkdir(exist_ok=True)
        (root / own[0] / f"{number}.jpg").write_bytes(str(number).encode())
    return None  # found out, which is what is measured


WRITERS = {
    "csv, names": _joined, "csv, columns": _columns, "coco": _coco, "parquet": _parquet, "list": _list,
    "folders, by init": _folders,
}  # fmt: skip


def seconds(write: Callable[[Path, Labels], dict[str, Any] | None], labels: Labels) -> float:
    """CPU time of reading, with images dealt out to a test split."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = write(root, labels)
        start = time.process_time()
        if dataset is None:
            read_what_is_there(root)
        else:
            split = {"split": {"test": 0.2}}
            TypeAdapter(AnyDataset).validate_python(dataset | split, context={"data_root": folder}).read()
        return time.process_time() - start


def main() -> None:
    """Print the times of each format and shape, and how they grow."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 40_000
    for shape, make in SHAPES.items():
        for name, write in WRITERS.items():
            once, twice = (seconds(write, make(number)) for number in (count, 2 * count))
            grown = f"{once:.2f} s for {count:,}, {twice:.2f} s for {2 * count:,}: {twice / once:.1f} times"
            print(f"{shape}, {name}: {grown}", flush=True)


if __name__ == "__main__":
    main()
