"""What is the same in all readers: one spelling a class, one row a file, one side of a split for ever."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cprfl.data.checks import missing_images, same_bytes, where_it_may_be
from cprfl.data.images import image_stamps
from cprfl.data.manifest import Manifest
from cprfl.data.readers.annotations import Annotations, Row, split_name
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.locate import ImageFolder
from cprfl.data.stratify import deal
from cprfl.errors import DatasetError

FOUND: dict[str, Annotations] = {}


class Told(DatasetConfig):
    """A data set that is what the test says."""

    key: str = "it"

    def read_annotations(self) -> Annotations:
        return FOUND[self.key]


@dataclass
class Shot:
    """A row in short: its path, and its labels separated by commas."""

    path: str
    labels: str = ""
    unknown: str = ""
    group: str = ""


def read(listed: str, splits: dict[str, list[Shot]], **changes: Any) -> Manifest:
    def rows(images: list[Shot]) -> list[Row]:
        return [
            Row(
                image.path, f"/data/{image.path}", [name for name in image.labels.split(",") if name],
                f"line {number}", [name for name in image.unknown.split(",") if name], image.group,
            )
            for number, image in enumerate(images, 1)
        ]  # fmt: skip

    FOUND["it"] = Annotations([c for c in listed.split(",") if c], {s: rows(i) for s, i in splits.items()})  # type: ignore[misc]
    return Told.model_validate(changes).read()


def named(manifest: Manifest) -> list[set[str]]:
    return [{manifest.class_names[label] for label in labels} for labels in manifest.labels]


def test_a_class_is_found_by_its_name_whatever_form_and_blanks_it_has() -> None:
    decomposed = unicodedata.normalize("NFD", "Möhre")
    manifest = read("", {"train": [Shot("a", f" Möhre ,{decomposed},traffic  light")], "test": [Shot("b", decomposed)]})
    assert manifest.class_names == ("Möhre", "traffic light")
    assert named(manifest) == [{"Möhre", "traffic light"}, {"Möhre"}]


def test_names_that_differ_only_in_case_are_refused_joined_or_kept_apart_as_the_user_says() -> None:
    splits = {"train": [Shot("a", "Boat"), Shot("b", "boat"), Shot("c", "boat")]}
    with pytest.raises(DatasetError, match=r"'boat' \(2 labels\), 'Boat' \(1 labels\); .*ignore_case"):
        read("", splits)
    joined = read("", splits, ignore_case=True)
    assert joined.class_names == ("boat",)
    assert joined.labels == ((0,), (0,), (0,))
    assert "differ only in case" in joined.notes[0]
    assert read("", splits, classes=["Boat", "boat"]).labels == ((0,), (1,), (1,))
    with pytest.raises(DatasetError, match="line 1: unknown class 'Boat'; did you mean 'boat'"):
        read("", splits, classes=["boat"])


def test_the_users_classes_fix_names_and_order_and_others_are_refused_or_passed_over() -> None:
    splits = {"train": [Shot("a", "cat,dog"), Shot("b", "kite")]}
    assert read("cat,dog,kite", splits, classes=["kite", "dog", "cat"]).labels == ((1, 2), (0,))
    with pytest.raises(DatasetError, match="line 2: unknown class 'kite'.*other_classes: ignore"):
        read("cat,dog,kite", splits, classes=["dog", "cat"])
    fewer = read("cat,dog,kite", splits, classes=["dog", "cat"], other_classes="ignore")
    assert fewer.labels == ((0, 1), ())
    assert "1 labels of 1 other classes are passed over: 'kite' (1)" in fewer.notes


@pytest.mark.parametrize("names", [["dog", "dog"], ["dog", " "], ["dog", " dog "]])
def test_class_names_are_unique_and_not_empty(names: list[str]) -> None:
    with pytest.raises(DatasetError, match="must be unique and not empty"):
        read("dog", {"train": [Shot("a", "dog")]}, classes=names)


def test_no_class_and_no_training_image_are_refused() -> None:
    with pytest.raises(DatasetError, match="no classes"):
        read("", {"train": [Shot("a")]})
    with pytest.raises(DatasetError, match="no training image"):
        read("dog", {"test": [Shot("a", "dog")]})


def test_a_class_without_training_images_is_named_left_out_or_an_error() -> None:
    splits = {"train": [Shot("a", "dog")], "test": [Shot("b", "kite")]}
    kept = read("dog,kite", splits)
    assert kept.class_names == ("dog", "kite")
    assert any("no training image shows the class 'kite'" in note for note in kept.notes)
    left = read("dog,kite", splits, classes_without_images="leave_out")
    assert left.class_names == ("dog",)
    assert left.labels == ((0,), ())
    assert any("'kite'; left out" in note for note in left.notes)
    with pytest.raises(DatasetError, match="'kite'.*classes_without_images: leave_out"):
        read("dog,kite", splits, classes_without_images="error")


def test_a_class_that_no_test_image_shows_is_named() -> None:
    manifest = read("dog,kite", {"train": [Shot("a", "dog,kite")], "test": [Shot("b", "dog")]})
    assert "no test image shows the class 'kite'" in manifest.notes


def test_one_file_in_two_splits_is_a_leak_and_one_name_in_two_folders_is_not() -> None:
    with pytest.raises(
        DatasetError, match="line 1: a leak: image .* is in the split test and, at line 2, in the split train"
    ):
        read("", {"train": [Shot("b", "dog"), Shot("a", "dog")], "test": [Shot("./a", "dog")]})
    FOUND["it"] = Annotations(
        ["dog"],
        {
            "train": [Row("0.jpg", "/train/0.jpg", ["dog"], "x")],
            "test": [Row("0.jpg", "/test/0.jpg", ["dog"], "x"), Row("1.jpg", "/test/1.jpg", [], "x")],
        },
    )
    assert Told().read().image_ids == ("train/0.jpg", "test/0.jpg", "test/1.jpg")


def test_an_image_with_two_rows_is_refused_or_its_labels_are_joined() -> None:
    splits = {"train": [Shot("a", "dog", unknown="boat"), Shot("b", ""), Shot("a", "boat", unknown="kite")]}
    with pytest.raises(DatasetError, match="line 3: image 'a' is listed twice, first at line 1"):
        read("", splits)
    joined = read("boat,dog,kite", splits, repeated_images="merge")
    assert joined.labels == ((0, 1), ())
    assert joined.unknown == ((2,), ())  # whoever says that it is shown, knows
    assert "1 rows are of images that have a row already" in joined.notes[0]


def test_unknown_labels_are_nan_and_survive_the_file(tmp_path: Path) -> None:
    manifest = read("boat,dog", {"train": [Shot("a", "dog", unknown="boat"), Shot("b", "boat")]})
    assert np.array_equal(manifest.targets(), np.array([[np.nan, 1], [1, 0]]), equal_nan=True)
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").unknown == ((0,), ())
    known = read("boat,dog", {"train": [Shot("a", "dog"), Shot("b", "boat")]})
    assert known.unknown == ()
    assert known.digest != manifest.digest
    assert manifest.select([1]).unknown == ()
    assert manifest.with_classes(["dog"]).unknown == ()


def test_split_words() -> None:
    words = ["train", "Training", " valid ", "VALIDATION", "test", "Testing", "fold1"]
    assert [split_name(word) for word in words] == ["train", "train", "val", "val", "test", "test", None]


LABELS = st.lists(st.sets(st.integers(0, 5), max_size=3).map(sorted), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(labels=LABELS, added=LABELS, seed=st.integers(0, 3))
def test_adding_images_moves_none(labels: list[list[int]], added: list[list[int]], seed: int) -> None:
    shares = {"train": 0.7, "test": 0.3}
    ids = [f"image-{number}" for number in range(len(labels) + len(added))]
    before = deal(ids[: len(labels)], ids[: len(labels)], labels, shares, seed, {})
    behind = deal(ids, ids, labels + added, shares, seed, {})
    assert behind[: len(labels)] == before
    known = dict(zip(ids, before, strict=False))
    shuffled = np.random.default_rng(seed).permutation(len(ids))
    anywhere = deal([ids[i] for i in shuffled], [ids[i] for i in shuffled], [(labels + added)[i] for i in shuffled],
                    shares, seed, known)  # fmt: skip
    found = {ids[i]: part for i, part in zip(shuffled, anywhere, strict=True)}
    assert {name: found[name] for name in known} == known


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_every_class_keeps_its_share(seed: int) -> None:
    rng = np.random.default_rng(seed)
    likely = 0.5 * 0.75 ** np.arange(12)
    targets = rng.random((400, 12)) < likely
    labels = [np.flatnonzero(row).tolist() for row in targets]
    ids = [f"{seed}-{number}" for number in range(400)]
    test = np.array(deal(ids, ids, labels, {"train": 0.8, "test": 0.2}, seed, {})) == "test"
    counts, held = targets.sum(axis=0), targets[test].sum(axis=0)
    assert (abs(held - 0.2 * counts) <= 2 + 0.02 * counts).all()
    assert abs(test.sum() - 80) <= 4


def test_a_group_is_on_one_side() -> None:
    images = [Shot(f"patient{n // 4}/view{n}.jpg", "dog" if n % 3 else "boat", group=f"g{n // 2}") for n in range(40)]
    by_column = read("", {"train": images}, split={"test": 0.3, "groups_by": "who"})
    for n in range(0, 40, 2):
        assert len(set(by_column.splits[n : n + 2])) == 1
    without = [Shot(image.path, image.labels) for image in images]
    by_path = read("", {"train": without}, split={"test": 0.3, "groups_by": r"patient\d+"})
    for n in range(0, 40, 4):
        assert len(set(by_path.splits[n : n + 4])) == 1
    assert {"train", "test"} == {*by_path.splits}
    with pytest.raises(DatasetError, match="no column of the table, and finds nothing in 'patient0/view0.jpg'"):
        read("", {"train": without}, split={"test": 0.3, "groups_by": "person"})


def test_a_split_that_is_there_is_not_made_again() -> None:
    splits = {"train": [Shot("a", "dog")], "test": [Shot("b", "dog")]}
    with pytest.raises(DatasetError, match="there is a split test already"):
        read("", splits, split={"test": 0.2})


def photo(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour, 0, 0)).save(path)


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("a.jpg", "a.jpg"), ("./x//a.jpg", "x/a.jpg"), ("x\\a.jpg", "x/a.jpg"), (".\\x\\a.jpg", "x/a.jpg"),
        ("a", "a.jpg"),
        ("a.jpg", "a.JPG"), ("A.jpg", "a.jpg"), ("a.jpg", "a.png"), ("a b 1", "a b 1.jpeg"), ("v1.2", "v1.2.png"),
        (unicodedata.normalize("NFD", "Gemüse.jpg"), "Gemüse.jpg"), ("C:\\Users\\me\\a.jpg", "a.jpg"),
        ("../../media/upload/3/a.jpg", "a.jpg"),
    ],
)  # fmt: skip
def test_an_image_is_found_however_it_is_written(tmp_path: Path, written: str, there: str) -> None:
    photo(tmp_path / there)
    folder = ImageFolder(str(tmp_path))
    assert folder.find([written]) == [(there, str(tmp_path / there))]
    exact = written.removeprefix("./").replace("//", "/") == there or unicodedata.normalize("NFC", written) == there
    assert len(folder.notes) == (0 if exact else 1)


def test_what_is_not_there_or_not_the_only_one_stays_as_it_is_written(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "x/c.jpg"):
        photo(tmp_path / name)
    folder = ImageFolder(str(tmp_path))
    assert folder.find(["a", "b", "y/b.jpg", "s3://bucket/c.jpg", "/else/d.jpg"]) == [
        ("a", f"{tmp_path}/a"), ("b.jpg", f"{tmp_path}/b.jpg"), ("y/b.jpg", f"{tmp_path}/y/b.jpg"),
        ("s3://bucket/c.jpg", "s3://bucket/c.jpg"), ("/else/d.jpg", "/else/d.jpg"),
    ]  # fmt: skip
    # Base names alone would make one image of two.
    assert folder.find(["p/b.jpg", "q/b.jpg"]) == [
        ("p/b.jpg", f"{tmp_path}/p/b.jpg"),
        ("q/b.jpg", f"{tmp_path}/q/b.jpg"),
    ]


def test_what_is_missing_and_what_is_twice_is_found_without_decoding(tmp_path: Path) -> None:
    for number, name in enumerate(["train/a.jpg", "train/b.jpg", "test/c.jpg"]):
        photo(tmp_path / name, colour=number * 90)
    (tmp_path / "test/again.jpg").write_bytes((tmp_path / "train/b.jpg").read_bytes())
    (tmp_path / "train/twice.jpg").write_bytes((tmp_path / "train/a.jpg").read_bytes())  # in one split: no leak
    names = ["train/a.jpg", "train/b.jpg", "train/twice.jpg", "test/c.jpg", "test/again.jpg", "test/gone.jpg"]
    uris = tuple(str(tmp_path / name) for name in names)
    manifest = Manifest(("dog",), tuple(names), uris, tuple(name.split("/")[0] for name in names), ((0,),) * 6)
    stamps = image_stamps(manifest.uris)
    assert [bad.image_id for bad in missing_images(manifest, stamps)] == ["test/gone.jpg"]
    assert same_bytes(manifest, stamps) == [[0, 2], [1, 4]]
    assert same_bytes(manifest, stamps, across_splits=True) == [[1, 4]]


def test_a_guess_at_where_the_images_are(tmp_path: Path) -> None:
    photo(tmp_path / "photos/a.jpg")
    assert f"there is {tmp_path}/photos/a.jpg" in where_it_may_be(f"{tmp_path}/img/a.jpg", str(tmp_path))
    assert f"there is {tmp_path}/photos/a.jpg" in where_it_may_be(f"{tmp_path}/img/a", str(tmp_path))
    assert "no folder" in where_it_may_be(f"{tmp_path}/img/b.jpg", str(tmp_path))
    assert "has a.jpg" in where_it_may_be(f"{tmp_path}/photos/b.jpg", str(tmp_path))
