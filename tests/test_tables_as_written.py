"""Tables as programs write them, in any dialect: what is written is read back."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.openimages import OpenImagesDataset
from tests.tables import put, read, shown, unknown

NAMES = ("dog", "boat", "traffic light", "Möhre", "C++/C#", "age <1y", "x-ray", "crème brûlée", "7", "fish & chips")


@st.composite
def dialects(draw: st.DrawFn) -> dict[str, Any]:
    """How a program saves a table."""
    return {
        "delimiter": draw(st.sampled_from(",;\t|")),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])),
        "end": draw(st.sampled_from(["\n", "\r\n", "\r"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "sep_line": draw(st.booleans()),
        "index": draw(st.sampled_from([None, "", "Unnamed: 0"])),
        "trailing": draw(st.booleans()),
        "blank_lines": draw(st.booleans()),
        "blanks": draw(st.booleans()),
    }


def written(rows: Sequence[Sequence[str]], dialect: dict[str, Any]) -> bytes:
    """A table, header first, in a dialect."""
    buffer = io.StringIO()
    writer = csv.writer(
        buffer, delimiter=dialect["delimiter"], quoting=dialect["quoting"], lineterminator=dialect["end"]
    )
    if dialect["sep_line"]:
        buffer.write(f"sep={dialect['delimiter']}{dialect['end']}")
    for number, row in enumerate(rows):
        cells = [f" {cell} " for cell in row] if dialect["blanks"] else list(row)
        if dialect["index"] is not None:
            cells.insert(0, dialect["index"] if number == 0 else str(number - 1))
        writer.writerow([*cells, *([""] if dialect["trailing"] else [])])
        if dialect["blank_lines"]:
            buffer.write(dialect["end"])
    return buffer.getvalue().encode(dialect["encoding"])


def files(labels: Sequence[Any]) -> list[str]:
    return [f"my photos/Übung {number}.jpg" for number in range(len(labels))]


def numpys(names: list[str]) -> str:
    """A list as NumPy writes it: without commas."""
    return f"[{' '.join(map(repr, names))}]"


label_sets = st.lists(st.sets(st.sampled_from(NAMES), max_size=4), min_size=1, max_size=6)


@settings(max_examples=80, deadline=None)
@given(labels=label_sets, dialect=dialects(), separator=st.sampled_from([";", "|", ",", "\n", " ; "]))
def test_names_in_one_cell_are_read_back(labels: list[set[str]], dialect: dict[str, Any], separator: str) -> None:
    labels = [{"dog", "boat"}, *labels]  # which shows the separator
    assume(not (separator == "\n" and dialect["end"] == "\r"))  # Python's writer does not quote it then
    images = files(labels)
    rows = [("Image", "Labels"), *((i, separator.join(sorted(own))) for i, own in zip(images, labels, strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = read(Path(folder), written(rows, dialect))
    assert shown(manifest) == dict(zip(images, labels, strict=True))
    assert not manifest.unknown


@settings(max_examples=40, deadline=None)
@given(labels=label_sets, dialect=dialects(), write=st.sampled_from([str, json.dumps, numpys]))
def test_lists_as_programs_write_them_are_read_back(
    labels: list[set[str]], dialect: dict[str, Any], write: Callable[[list[str]], str]
) -> None:
    assume(any(labels))
    images = files(labels)
    texts = [write(sorted(own)) for own in labels]
    with tempfile.TemporaryDirectory() as folder:
        rows = [("file_name", "tags"), *zip(images, texts, strict=True)]
        assert shown(read(Path(folder), written(rows, dialect))) == dict(zip(images, labels, strict=True))


CELLS = {
    "numbers": ("1", "0", "-1", ""),
    "decimals": ("1.0", "0.0", "-1.0", "nan"),
    "booleans": ("True", "FALSE", "?", ""),
    "words": ("yes", "no", "uncertain", ""),
    "commas": ("1,0", "0,0", "-1,0", ""),
}


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(), dialect=dialects(), cells=st.sampled_from(list(CELLS.values())),
    uncertain=st.sampled_from(["unknown", "negative", "positive"]),
    unmentioned=st.sampled_from(["negative", "unknown"]),
)  # fmt: skip
def test_columns_of_yes_and_no_are_read_back(
    data: st.DataObject, dialect: dict[str, Any], cells: tuple[str, ...], uncertain: str, unmentioned: str
) -> None:
    classes = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    codes = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=len(classes), max_size=len(classes)), max_size=6))
    codes = [[0] * len(classes), [1] * len(classes), *codes]  # so that each column says what it is
    images = files(codes)
    rows = [["image", *classes], *([i, *(cells[code] for code in own)] for i, own in zip(images, codes, strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        manifest = read(Path(folder), written(rows, dialect), uncertain=uncertain, unmentioned=unmentioned)
    means = {0: "positive", 1: "negative", 2: uncertain, 3: unmentioned}
    assert manifest.class_names == tuple(classes)
    for found, what in ((shown, "positive"), (unknown, "unknown")):
        expected = [{name for name, code in zip(classes, own, strict=True) if means[code] == what} for own in codes]
        assert found(manifest) == dict(zip(images, expected, strict=True))


pair_sets = st.lists(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "0", "0.4"]), min_size=1, max_size=4), min_size=1,
    max_size=5,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(pairs=pair_sets, dialect=dialects(), uncertain=st.sampled_from(["unknown", "negative", "positive"]),
       unmentioned=st.sampled_from(["negative", "unknown"]), open_images=st.booleans())  # fmt: skip
def test_a_row_for_each_image_and_label_is_read_back(
    pairs: list[dict[str, str]], dialect: dict[str, Any], uncertain: str, unmentioned: str, open_images: bool
) -> None:
    pairs = [{"dog": "1", "boat": "1"}, *pairs]
    images = files(pairs)
    rows = [
        (image, "machine", name, sure) for image, own in zip(images, pairs, strict=True) for name, sure in own.items()
    ]
    content = written([("ImageID", "Source", "LabelName", "Confidence"), *rows], dialect)
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), {"train.csv": content})
        kind: type[DatasetConfig] = OpenImagesDataset if open_images else CsvDataset
        options = {"uncertain": uncertain, "unmentioned": unmentioned, "splits": {"train": f"{folder}/train.csv"}}
        manifest = kind.model_validate(options).read()
    means = {"1": "positive", "0": "negative", "0.4": uncertain, None: unmentioned}
    every = {name for own in pairs for name in own}
    assert set(manifest.class_names) == every
    for found, what in ((shown, "positive"), (unknown, "unknown")):
        expected = [{name for name in every if means[own.get(name)] == what} for own in pairs]
        assert found(manifest) == dict(zip(images, expected, strict=True))
