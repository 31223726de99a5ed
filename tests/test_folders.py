"""Folders named by classes are read as they were meant, or refused with their place and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.readers import folders
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.folders import FoldersDataset
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, data_sets, says, sorted_labels, touch


def read_folders(root: Path, **options: Any) -> Manifest:
    return FoldersDataset.model_validate({"splits": {"train": str(root)}, **options}).read()


@EVERY_DIALECT
@given(data=data_sets(), way=st.sampled_from(["copies", "symbolic", "hard"]))
def test_folders_read_back_what_lies_in_them(
    tmp_path: Path, data: tuple[list[str], dict[str, list[str]]], way: str
) -> None:
    classes, images = data
    assume(not any(name.startswith(".") for name in classes))  # hidden
    root = clean(tmp_path)
    kept = {name: labels for name, labels in images.items() if labels}
    for label in (*classes, "an empty one"):
        (root / "set" / label).mkdir(parents=True)
    for name, labels in kept.items():
        for label in labels:
            place = root / "set" / label / name
            if way == "copies":
                touch(place)
                continue
            touch(root / "pool" / name)
            (place.symlink_to if way == "symbolic" else place.hardlink_to)(root / "pool" / name)
    manifest = read_folders(root / "set")
    assert says(manifest) == sorted_labels(kept)
    assert manifest.class_names == tuple(sorted([*classes, "an empty one"]))
    if way == "copies" and len(classes) > 1:
        (proposal,) = folders.discover(Tree.of(root / "set"))
        assert proposal.dataset["splits"] == {"train": "."}


def test_files_of_one_name_are_one_image_only_with_the_same_bytes(tmp_path: Path) -> None:
    for label, content in (("cat", b"1"), ("dog", b"1"), ("cow", b"2"), ("hen", b"333")):
        touch(tmp_path / label / "0.jpg")
        (tmp_path / label / "0.jpg").write_bytes(content)
    manifest = read_folders(tmp_path)
    assert says(manifest) == {"cat/0.jpg": ["cat", "dog"], "cow/0.jpg": ["cow"], "hen/0.jpg": ["hen"]}
    assert any("1 images lie in the folders of several classes" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("nested", "labels"),
    [
        ("first", {"dog/0.jpg": ["animal"], "1.jpg": ["plant"]}),
        ("last", {"0.jpg": ["dog"], "1.jpg": ["plant"]}),
        ("path", {"0.jpg": ["animal/dog"], "1.jpg": ["plant"]}),
        ("each", {"0.jpg": ["animal", "dog"], "1.jpg": ["plant"]}),
    ],
)
def test_nested_folders_are_read_as_the_user_says_and_not_otherwise(
    tmp_path: Path, nested: str, labels: dict[str, list[str]]
) -> None:
    touch(tmp_path / "animal/dog/0.jpg", tmp_path / "plant/1.jpg")
    assert says(read_folders(tmp_path, nested=nested)) == labels
    with pytest.raises(
        DatasetError, match=r"animal/dog/0.jpg lies in nested folders; set dataset.nested.*'animal/dog'"
    ):
        read_folders(tmp_path)


def test_a_folder_may_be_of_no_class(tmp_path: Path) -> None:
    touch(tmp_path / "cat/0.jpg", tmp_path / "None/1.jpg", tmp_path / "cat/readme.txt", tmp_path / ".x/2.jpg")
    manifest = read_folders(tmp_path)
    assert manifest.class_names == ("None", "cat")
    assert any("the folder 'None' is a class; dataset.no_class: None" in note for note in manifest.notes)
    assert any("passed over, for it is no image: 1 file (1 .txt)" in note for note in manifest.notes)
    assert says(read_folders(tmp_path, no_class="None")) == {"0.jpg": ["cat"], "1.jpg": []}
    with pytest.raises(DatasetError, match=r"there is no folder 'none' \(folders: None, cat\)"):
        read_folders(tmp_path, no_class="none")
    touch(tmp_path / "cat/1.jpg")
    with pytest.raises(DatasetError, match="in the folder 'None' of no class, and is .*cat/1.jpg too"):
        read_folders(tmp_path, no_class="None")


def test_joined_names_are_classes_unless_a_separator_is_given(tmp_path: Path) -> None:
    touch(tmp_path / "cat/0.jpg", tmp_path / "dog/1.jpg", tmp_path / "cat+dog/2.jpg")
    manifest = read_folders(tmp_path)
    assert manifest.class_names == ("cat", "cat+dog", "dog")
    assert any("the folder 'cat+dog' is one class; dataset.separator: '+'" in note for note in manifest.notes)
    assert says(read_folders(tmp_path, separator="+")) == {"0.jpg": ["cat"], "1.jpg": ["dog"], "2.jpg": ["cat", "dog"]}


def test_folders_name_what_is_wrong_and_follow_no_circle(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder, or an empty one"):
        read_folders(tmp_path / "gone")
    touch(tmp_path / "cat/notes.txt")
    with pytest.raises(DatasetError, match="no images below it"):
        read_folders(tmp_path)
    touch(tmp_path / "cat/0.jpg", tmp_path / "1.jpg")
    with pytest.raises(DatasetError, match="1.jpg lies in no folder of a class.*dataset.no_class"):
        read_folders(tmp_path)
    (tmp_path / "1.jpg").unlink()
    (tmp_path / "cat/up").symlink_to("..")
    (tmp_path / "cat/2.jpg").symlink_to("nowhere.jpg")
    assert read_folders(tmp_path).image_ids == ("0.jpg", "2.jpg")  # a missing file is said where files are opened


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (["cat/0.jpg", "dog/0.jpg", "README.md"], {"train": "."}),
        (["set/cat/0.jpg", "set/dog/0.jpg"], {"train": "set"}),
        (["train/cat/0.jpg", "train/dog/1.jpg", "valid/cat/2.jpg"], {"train": "train", "val": "valid"}),
        (["x/train/cat/0.jpg", "x/train/dog/1.jpg"], {"train": "x/train"}),
        (["car/0.jpg", "train/1.jpg"], {"train": "."}),
        (["train/0.jpg", "test/1.jpg"], None),
        (["images/0.jpg", "labels/0.png"], None),
        (["cat/0.jpg", "dog/0.jpg", "labels.csv"], None),
        (["images/a/0.jpg", "images/b/0.jpg", "annotations/a.xml"], None),
        (["cat/0.jpg", "1.jpg", "dog/2.jpg"], None),
        (["0.jpg"], None),
    ],
)
def test_folders_of_classes_are_found_only_where_nothing_else_says_labels(
    tmp_path: Path, files: list[str], splits: dict[str, str] | None
) -> None:
    touch(*(tmp_path / file for file in files))
    assert [proposal.dataset["splits"] for proposal in folders.discover(Tree.of(tmp_path))] == (
        [splits] if splits else []
    )
