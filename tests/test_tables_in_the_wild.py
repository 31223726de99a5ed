"""Tables and lists as people really have them: read as meant, or refused with the line and what would mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.openimages import read_descriptions
from cprfl.errors import DatasetError
from cprfl.starting.reading import Reading, read_what_is_there
from tests.tables import names_of, put, read, shown

IMAGES = [f"{letter}.jpg" for letter in "abcdef"]
LABELS = ("dog;boat", "dog", "boat", "cat", "cat;dog", "dog")


def table(cells: Sequence[str], header: str = "image,labels", images: Sequence[str] = IMAGES) -> str:
    """A table of images, and a quoted cell behind each."""
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    return f"{header}\n" + "".join(f"{image},{cell}\n" for image, cell in zip(images, quoted, strict=False))


def start(folder: Path, tables: Mapping[str, str], images: Sequence[str]) -> Reading:
    put(folder, {**tables, **dict.fromkeys(images, b"")})
    return read_what_is_there(folder)


def labels(reading: Reading) -> dict[str, set[str]]:
    return shown(reading.manifest)


@pytest.mark.parametrize(
    "cells",
    [
        ("array(['dog', 'boat'], dtype=object)", "array(['dog'], dtype=object)", "array([], dtype=object)"),
        ("('dog', 'boat')", "('dog',)", "()"),
        ("{'boat', 'dog'}", "{'dog'}", "set()"),
        ("frozenset({'boat', 'dog'})", "frozenset({'dog'})", "frozenset()"),
        ("[np.str_('dog'), np.str_('boat')]", "['dog', nan]", "[nan]"),
        ("['dog'\n 'boat']", "['dog']", "[]"),
        ("'dog','boat'", "'dog'", ""),
    ],
)
def test_lists_as_programs_print_them(tmp_path: Path, cells: Sequence[str]) -> None:
    manifest = read(tmp_path, table([*cells, cells[1]]))
    assert list(shown(manifest).values()) == names_of("dog;boat", "dog", "", "dog")


@pytest.mark.parametrize("cells", [("[0 3 12]", "[3]", "[ 0 12]"), ("[0.0, 3.0, 12.0]", "[3.0]", "[0, 12.0]")])
def test_numbers_of_classes_are_whole_however_they_are_printed(tmp_path: Path, cells: Sequence[str]) -> None:
    assert list(shown(read(tmp_path, table(cells))).values()) == names_of("0;3;12", "3", "0;12")


def test_a_class_is_one_where_pandas_wrote_it_as_float_in_one_file(tmp_path: Path) -> None:
    texts = {"train": "image,label\na.jpg,1.0\nb.jpg,\nc.jpg,2.0\n", "test": "image,label\nd.jpg,1\n"}
    manifest = read(tmp_path, texts)
    assert manifest.class_names == ("1", "2")
    assert any("'1.0'" in note for note in manifest.notes)


@pytest.mark.parametrize(
    "separator", ["~", "^", ":", " / ", " - ", " and ", "||", "\uff1b", "\u3001", "\uff0c", "\u060c "]
)
def test_other_separators(tmp_path: Path, separator: str) -> None:
    cells = [cell.replace(";", separator) for cell in LABELS]
    assert list(shown(read(tmp_path, table(cells))).values()) == names_of(*LABELS)


@pytest.mark.parametrize(
    "cells, message",
    [
        (("[1, 0, 0]", "[0, 1, 1]", "[0, 0, 0]"), "line 2.*0 or 1 for each class"),
        (("[1. 0. 0.]", "[0. 1. 1.]", "[0. 0. 0.]"), "line 2.*0 or 1 for each class"),
        (("1 0 0", "0 1 1", "0 0 0"), "line 2.*0 or 1 for each class"),
        (("100", "011", "000"), "line 2.*0 or 1 for each class"),
        (("dog:0.9;boat:0.2", "dog:0.8", "boat:0.7"), "line 2.*names with scores"),
        (('[{"name": "dog", "score": 0.1}]', "[]", "[]"), "line 2.*a name with a score"),
        (("['dog, boat']", "['dog']", "['boat']"), "line 2.*quotation marks of its own"),
        (("cat (big, wild), dog", "dog, bird", "bird", "cat (big, wild)"), "line 2.*within brackets"),
        (('"dog,boat"', '"dog"', '"boat"', '"boat"'), "line 2.*within brackets or quotation marks"),
        (("dog_boat", "dog", "boat", "cat"), "line 2.*dataset.separator: '_'"),
        (("dog/boat", "dog/cat", "boat/dog", "bird"), "line 2.*dataset.separator: '/'"),
    ],
)
def test_cells_that_are_no_names_are_refused(tmp_path: Path, cells: Sequence[str], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, table(cells))


def test_classes_that_are_listed_are_names_whatever_they_look_like(tmp_path: Path) -> None:
    manifest = read(tmp_path, table(["100", "011", "100"]), classes=["011", "100"])
    assert list(shown(manifest).values()) == names_of("100", "011", "100")


@pytest.mark.parametrize(
    "text, message",
    [
        (table(LABELS) + "Total,6\n", "line 8.*'Total'.*remove the line"),
        ("image,dog,boat\na.jpg,1,0\nb.jpg,0,1\n# unsure,,\nc.jpg,1,1\n", "line 4.*'# unsure'"),
        ('image,labels\na.jpg,"dog;boat\nb.jpg,dog\nc.jpg,boat"\nd.jpg,cat\n', "line 2.*quotation mark"),
        ("image,label,,\na.jpg,dog,boat,\nb.jpg,boat,,\n", "line 2.*'boat'.*column without a name"),
        ("image,label1,label2\na.jpg,dog,boat\nb.jpg,boat,\n", "'label1', 'label2'; write them in one"),
        ("left_image,right_image,label\na.jpg,b.jpg,dog\nc.jpg,d.jpg,boat\n", "'left_image', 'right_image'.*image_col"),
        ("image,label,seen\na,dog,1\na,boat,0\nb,dog,0\nb,boat,1\n", "'seen'.*`present`"),
    ],
)
def test_rows_and_columns_that_are_something_else_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read(tmp_path, text)


def test_files_put_behind_one_another(tmp_path: Path) -> None:
    text = "\ufeff" + table(LABELS[:3]) + "\ufeff" + table(LABELS[3:], images=IMAGES[3:])
    manifest = read(tmp_path, text)
    assert shown(manifest) == dict(zip(IMAGES, names_of(*LABELS), strict=True))
    assert any("1 lines are the header again" in note for note in manifest.notes)


def test_a_column_that_says_yes_to_every_image_is_named(tmp_path: Path) -> None:
    manifest = read(tmp_path, "image,dog,boat,checked\na.jpg,1,0,1\nb.jpg,0,1,1\n")
    assert any("every image shows 'checked'" in note for note in manifest.notes)


@pytest.mark.parametrize("column", ["exists", "ground_truth"])
def test_a_yes_and_no_for_each_image_and_label(tmp_path: Path, column: str) -> None:
    text = f"image,label,{column}\na.jpg,dog,1\na.jpg,boat,0\nb.jpg,dog,0\nb.jpg,boat,1\n"
    assert list(shown(read(tmp_path, text)).values()) == names_of("dog", "boat")


@pytest.mark.parametrize("base", ["/home/joe/photos/", "C:\\Users\\joe\\photos\\", "../input/photos/", "photos-v2/"])
def test_paths_that_begin_elsewhere_keep_the_folders_at_their_ends(tmp_path: Path, base: str) -> None:
    images = ["x/1.jpg", "y/1.jpg", "x/2.jpg", "y/2.jpg"]
    names = [base + image.replace("/", "\\" if "\\" in base else "/") for image in images]
    reading = start(tmp_path, {"labels.csv": table(LABELS, images=names)}, images)
    assert labels(reading) == dict(zip(images, names_of(*LABELS[:4]), strict=True))
    assert any("by the ends of their paths" in note for note in reading.manifest.notes)


@pytest.mark.parametrize("folders", [("images_001", "images_002"), ("train", "test")])
def test_images_in_several_folders(tmp_path: Path, folders: tuple[str, str]) -> None:
    images = [f"{folders[number > 2]}/{name}" for number, name in enumerate(IMAGES)]
    reading = start(tmp_path, {"labels.csv": table(LABELS)}, images)
    assert labels(reading) == dict(zip(images, names_of(*LABELS), strict=True))


@pytest.mark.parametrize(
    "other",
    [
        {"sample_submission.csv": "image,labels\nq.jpg,dog\nr.jpg,dog\n"},
        {"test.csv": "image,labels\nq.jpg,\nr.jpg,\n"},
        {"test.csv": "image\nq.jpg\nr.jpg\n"},
        {"labels (1).csv": table(LABELS[::-1])},
    ],
)
def test_files_that_say_nothing_of_images_are_no_splits(tmp_path: Path, other: Mapping[str, str]) -> None:
    images = [*(f"train/{name}" for name in IMAGES), "test/q.jpg", "test/r.jpg"]
    reading = start(tmp_path, {"labels.csv": table(LABELS), **other}, images)
    assert labels(reading) == dict(zip(IMAGES, names_of(*LABELS), strict=True))


def test_zeros_of_a_submission_are_no_split(tmp_path: Path) -> None:
    tables = {"train.csv": "image,dog,boat\na,1,0\nb,0,1\nc,1,1\n", "test.csv": "image,dog,boat\nq,0,0\nr,0,0\n"}
    reading = start(tmp_path, tables, ["a.jpg", "b.jpg", "c.jpg", "q.jpg", "r.jpg"])
    assert labels(reading) == dict(zip(IMAGES[:3], names_of("dog", "boat", "dog;boat"), strict=True))


def test_the_column_of_images_is_called_so_or_is_unsure(tmp_path: Path) -> None:
    rows = [f"masks/{name},images/{name},dog\n" for name in IMAGES]
    files = [f"{folder}/{name}" for name in IMAGES for folder in ("masks", "images")]
    reading = start(tmp_path / "a", {"labels.csv": "mask,image,label\n" + "".join(rows)}, files)
    assert reading.dataset["image_column"] == "image"
    reading = start(tmp_path / "b", {"labels.csv": "left,right,label\n" + "".join(rows)}, files)
    assert "'right'" in reading.unsure["image_column"]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("header", ["", "LabelName,DisplayName\n", "MID,Name\n"])
def test_descriptions_in_other_dialects(tmp_path: Path, delimiter: str, header: str) -> None:
    text = (header + '/m/01,"Boat"\n/t/02,Dog\n').replace(",", delimiter)
    put(tmp_path, {"classes.csv": text})
    assert read_descriptions(str(tmp_path / "classes.csv")) == {"/m/01": "Boat", "/t/02": "Dog"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.jpg 1 0\nb.jpg 2 1 2\nc.jpg 0\n", "line 1.*how many follow"),
        ("3\na.jpg 0\nb.jpg 1 2\nc.jpg 2\n", "line 1: '3' is no image file"),
        ("#list\na.jpg 0\nb.jpg 1 2\nc.jpg 2\n", "line 1: '#list' is no image file"),
        ("a.jpg 1\nb.jpg 2 3\nc.jpg 3\n", "line 2: class index 3 is out of range"),
    ],
)
def test_lists_that_are_something_else_are_refused(tmp_path: Path, text: str, message: str) -> None:
    put(tmp_path, {"train.txt": text, "labels.txt": "dog 0\ncat 1\nboat 2\n", **dict.fromkeys(IMAGES, b"")})
    settings: dict[str, Any] = {
        "labels": str(tmp_path / "labels.txt"),
        "splits": {"train": str(tmp_path / "train.txt")},
    }
    with pytest.raises(DatasetError, match=message):
        ListFilesDataset.model_validate(settings).read()
    with pytest.raises(DatasetError, match=message):
        read_what_is_there(tmp_path)


def test_a_broken_table_that_is_pointed_at_says_what_is_wrong(tmp_path: Path) -> None:
    put(tmp_path, {"labels.csv": table(["[1, 0]", "[0, 1]"])})
    with pytest.raises(DatasetError, match="0 or 1 for each class"):
        CsvDataset.model_validate({"splits": {"train": str(tmp_path / "labels.csv")}}).read()
