"""Steps that would grow with the square of a data set, by what is counted: comparisons and looks, not seconds.

`python -m tests.benchmarks.growth` measures the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cprfl.data import stratify
from cprfl.data.manifest import Manifest
from cprfl.data.readers import layout
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.discovery import Tree


class Counting(str):
    """A name that counts how often one is compared with another."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def grown(small: int, large: int) -> float:
    return large / max(small, 1)


def test_dealing_looks_at_the_classes_of_an_image_and_at_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0
    original = stratify._counts

    def counted(
        rows: Sequence[int], labels: Sequence[Sequence[int]], num_classes: int
    ) -> tuple[np.ndarray, np.ndarray]:
        nonlocal looked
        found = original(rows, labels, num_classes)
        looked += sum(map(len, found))
        return found

    monkeypatch.setattr(stratify, "_counts", counted)

    def looks(count: int) -> int:
        nonlocal looked
        looked = 0
        ids = list(map(str, range(count)))
        stratify.deal(ids, ids, [[number] for number in range(count)], {"train": 0.8, "test": 0.2}, 0, {})
        return looked

    assert grown(looks(100), looks(400)) < 5


def test_images_of_one_name_in_many_folders_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    original = layout._base

    def counted(name: str) -> str:
        nonlocal looks
        looks += 1
        return original(name)

    monkeypatch.setattr(layout, "_base", counted)

    def looked(count: int) -> int:
        nonlocal looks
        looks = 0
        images = [f"case {number}/image.jpg" for number in range(count)]
        layout.folder_of_images(Tree(Path("/nowhere"), [*images, "labels.csv"], None), images, "labels.csv")
        return looks

    assert grown(looked(200), looked(800)) < 6


def test_the_names_of_many_classes_are_a_long_first_line(tmp_path: Path) -> None:
    names = [f"a class with a long name {number}" for number in range(5000)]
    row = ",".join(["a.jpg", *"1" * len(names)])
    (tmp_path / "train.csv").write_text(f"image,{','.join(names)}\n{row}\n{row.replace('a.jpg', 'b.jpg')}\n")
    manifest = CsvDataset(splits={"train": str(tmp_path / "train.csv")}).read()
    assert (len(manifest), len(manifest.class_names)) == (2, 5000)


def test_classes_without_images_are_left_out_without_comparing_each_with_each() -> None:
    def comparisons(count: int) -> int:
        names = tuple(Counting(f"class {number}") for number in range(count))
        labels = tuple((number,) for number in range(0, count, 2))
        ids = tuple(map(str, labels))
        manifest = Manifest(names, ids, ids, ("train",) * len(ids), labels)
        dataset = CsvDataset(splits={"train": "train.csv"}, classes_without_images="leave_out")
        Counting.compared = 0
        assert dataset._without_unseen_classes(manifest)[0].class_names == names[::2]
        return Counting.compared

    assert comparisons(400) < 4000
