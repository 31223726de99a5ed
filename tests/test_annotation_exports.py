"""What an annotator gets: tables without formulas, tasks of Label Studio, labels of FiftyOne."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cprfl.data.readers.labelstudio import LabelStudioDataset
from cprfl.data.synthetic import render_uri
from cprfl.report.findings.exports import (
    Question,
    address,
    labelling_interface,
    write_csv,
    write_fiftyone,
    write_label_studio,
)

NAMES = ("red", '<b> & "green"', "=blue")


def questions(photos: Path) -> list[Question]:
    return [
        Question("00", str(photos / "00.png"), {"red": 0.9, "=blue": 0.6}, 2.0, {"labels_now": "red"}),
        Question("01", str(photos / "01.png"), {}, 1.0),
    ]


@given(st.lists(st.one_of(st.text(max_size=8), st.floats(allow_nan=False), st.integers(), st.none()), min_size=1))
def test_no_cell_is_a_formula_and_text_comes_back(values: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_csv(path, [f"column {n}" for n in range(len(values))], [values])
        with path.open(newline="", encoding="utf-8") as file:
            _, row = csv.reader(file)
    for value, cell in zip(values, row, strict=True):
        if isinstance(value, str):
            assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
            assert cell.removeprefix("'") == value.removeprefix("'") or cell == value


def test_our_reader_reads_what_an_annotator_made_of_our_tasks(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    write_label_studio(path, questions(photos), "model 1")
    tasks = json.loads(path.read_text())
    assert tasks[0]["data"]["image"].startswith("/data/local-files/?d=")
    assert tasks[0]["predictions"][0]["score"] == 2.0 and tasks[0]["predictions"][0]["model_version"] == "model 1"
    for number, task in enumerate(tasks):  # as Label Studio exports them once somebody has answered
        result = task["predictions"][0]["result"]
        if number == 0:
            result[0]["value"]["choices"] = ["red", NAMES[1]]
        task |= {"id": number + 1, "annotations": [{"id": number, "result": result, "was_cancelled": False}]}
    path.write_text(json.dumps(tasks))
    config = LabelStudioDataset.model_validate({"name": "labelstudio", "splits": {"train": str(path)}, "images": "/"})
    rows = config.read_annotations().splits["train"]
    assert [Path(row.uri) for row in rows] == [photos / "00.png", photos / "01.png"]
    assert [set(row.labels) for row in rows] == [{"red", NAMES[1]}, set()]


def test_the_labelling_interface_names_every_class_whatever_it_is_called() -> None:
    view = ElementTree.fromstring(labelling_interface(NAMES))
    choices = view.find("Choices")
    assert choices is not None and choices.get("choice") == "multiple"
    assert [choice.get("value") for choice in choices] == list(NAMES)


def test_fiftyone_gets_absolute_paths_and_lists_of_labels(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    write_fiftyone(path, questions(photos), NAMES)
    written = json.loads(path.read_text())
    assert written["classes"] == list(NAMES)
    assert list(written["labels"]) == [str(photos / "00.png"), str(photos / "01.png")]
    first, second = written["labels"].values()
    assert [(one["label"], one["confidence"]) for one in first] == [("red", 0.9), ("=blue", 0.6)]
    assert first[0]["attributes"] == {"image_id": "00", "labels_now": "red"}
    assert second == []


def test_a_picture_without_a_file_is_written_beside(tmp_path: Path) -> None:
    uri = "synthetic://v1/7?seed=0&size=96&objects=2-4"
    where = Path(address(uri, tmp_path / "tasks.json"))
    assert where.parent == tmp_path / "tasks_images"
    assert Image.open(where).tobytes() == render_uri(uri).tobytes()
    assert address("https://example.org/a.jpg", tmp_path / "tasks.json") == "https://example.org/a.jpg"
