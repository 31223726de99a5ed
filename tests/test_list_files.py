"""Lists of paths and indices: read as they were meant, or refused with the line and what would mend it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.errors import DatasetError
from tests.tables import put


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.sets(st.integers(0, 4), max_size=3), min_size=1, max_size=6),
    between=st.sampled_from([" ", "\t", "  ", '" ']), end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]), suffix=st.sampled_from([".jpg", ".JPEG", ""]),
)  # fmt: skip
def test_list_files_are_read_back(labels: list[set[int]], between: str, end: str, encoding: str, suffix: str) -> None:
    assume(any(labels))
    if not suffix and between != "\t":
        between = "\t"  # nothing else tells where the path ends
    quote = between[0] if between[0] == '"' else ""
    names = ["Möhre", "traffic light", "x 2", "dog", "7"]
    images = [f"my photos/Übung {number}{suffix}" for number in range(len(labels))]
    lines = [
        f"{quote}{image}{between}{' '.join(map(str, sorted(own)))}" for image, own in zip(images, labels, strict=True)
    ]
    named = [f"{name}{' ' if quote or between == '  ' else between}{number}" for number, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), {"l.txt": end.join(lines).encode(encoding), "n.txt": end.join(named).encode(encoding)})
        options = {"labels": f"{folder}/n.txt", "images": folder, "splits": {"train": f"{folder}/l.txt"}}
        manifest = ListFilesDataset.model_validate(options).read()
    assert manifest.class_names == tuple(names)
    assert manifest.labels == tuple(tuple(sorted(own)) for own in labels)
    assert manifest.image_ids == tuple(images)


def read_list(tmp_path: Path, text: str, labels: str = "cat 0\ntraffic light 1\ndog 2\n", **options: Any) -> Manifest:
    put(tmp_path, {"n.txt": labels, "l.txt": text})
    paths = {"labels": str(tmp_path / "n.txt"), "images": str(tmp_path), "splits": {"train": str(tmp_path / "l.txt")}}
    return ListFilesDataset.model_validate({**paths, **options}).read()


def test_paths_with_blanks_end_at_their_suffix_a_tab_or_where_there_is_a_file(tmp_path: Path) -> None:
    put(tmp_path, {"scan 2.png": b""})
    manifest = read_list(tmp_path, '# made by hand\nmy photos/IMG 0.jpg 0 2\nno suffix 1\t2\n"q r" 1\nscan 2 1\nx 0\n')
    assert manifest.image_ids == ("my photos/IMG 0.jpg", "no suffix 1", "q r", "scan 2.png", "x")
    assert manifest.labels == ((0, 2), (2,), (1,), (1,), (0,))
    assert any("1 lines are comments" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg 0 1 0\nb.jpg 1 1 0\n", "line 1: 0 1 0 looks like a 0 or 1 for each of the 3 classes"),
        ("scan 0 0\nscan 1 1\n", "line 1: image 'scan' is given an index twice; does its name end in a number"),
        ("scan 0 1\nscan 1 2\n", "line 2: image 'scan' is listed at .*line 1 too; does its name end in a number"),
        ("a.jpg,0,1\n", "line 1: expected `path index index ...`"),
        ("a.jpg, 0\n", "line 1: expected `path index index ...`"),
        ("a.jpg 0 0.5\n", "line 1: expected `path index index ...`"),
        ("my photo\n", "line 1: expected `path index index ...`"),
    ],
)
def test_lists_that_may_be_something_else_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_list(tmp_path, text)


def test_an_index_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    manifest = read_list(tmp_path, "a.jpg 2 2 0\nb.jpg 1\n")
    assert manifest.labels == ((0, 2), (1,))
    assert any("1 lines name an index twice" in note for note in manifest.notes)


def test_classes_choose_among_those_of_the_label_file(tmp_path: Path) -> None:
    manifest = read_list(tmp_path, "a.jpg 2 0\n", classes=["dog", "cat"])
    assert (manifest.class_names, manifest.labels) == (("dog", "cat"), ((0, 1),))
    with pytest.raises(DatasetError, match="line 1: expected `name index`"):
        read_list(tmp_path, "a.jpg 0\n", labels="cat, 0\n")
