"""COCO's instances JSON: what files in the wild say is read, or refused by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from cprfl.data.manifest import Manifest
from cprfl.data.readers import coco
from cprfl.data.readers.discovery import Tree
from cprfl.errors import DatasetError
from tests.boxes import Files, images, proposed, put, read, says


def instances(annotations: list[tuple[Any, Any]], categories: list[dict[str, Any]], files: list[Any]) -> str:
    """A file with annotations of (image, category)."""
    return json.dumps(
        {
            "images": [{"id": number, "file_name": name} for number, name in enumerate(files, 1)],
            "annotations": [{"image_id": image, "category_id": category} for image, category in annotations],
            "categories": categories,
        }
    )


def category(key: Any, name: Any, parent: str | None = None) -> dict[str, Any]:
    return {"id": key, "name": name} | ({"supercategory": parent} if parent is not None else {})


TWO = [category(1, "cat"), category(2, "dog")]


def read_coco(root: Path, text: str | bytes, *names: str, test: str | None = None, **settings: Any) -> Manifest:
    put(root, {"a.json": text, **images(*(f"i/{name}" for name in names))})
    splits = {"train": {"annotations": "a.json", "images": "i"}}
    if test is not None:
        put(root, {"t.json": test})
        splits["test"] = {"annotations": "t.json", "images": "i"}
    return read(coco.CocoDataset, root, splits=splits, **settings)


@pytest.mark.parametrize("kind", [int, float, str])
def test_coco_matches_ids_by_their_value(tmp_path: Path, kind: type) -> None:
    text = instances([(kind(1), kind(2)), (kind(2), 1)], TWO, ["a.jpg", "b.jpg"])
    assert says(read_coco(tmp_path, text, "a.jpg", "b.jpg")) == {"a.jpg": "dog", "b.jpg": "cat"}


@pytest.mark.parametrize("key", ["x1", "007", "٣"])
def test_coco_takes_ids_that_are_text(tmp_path: Path, key: str) -> None:
    text = instances([(1, key), (2, 7), (2, 3)], [category(key, "cat"), category(7, "dog"), category("3", "eel")],
                     ["a.jpg", "b.jpg"])  # fmt: skip
    manifest = read_coco(tmp_path, text, "a.jpg", "b.jpg")
    assert manifest.class_names == ("eel", "dog", "cat")
    assert manifest.labels == ((2,), (0, 1))


@pytest.mark.parametrize(
    ("categories", "used", "names", "note"),
    [
        ([category(0, "things", "none"), category(1, "cat", "things"), category(2, "dog", "things")], [1, 2],
         "cat dog", "'things'"),
        ([category(0, "dog", "none"), category(1, "cat", "things"), category(2, "dog", "dog")], [1, 2], "cat dog",
         "'dog'"),
        ([category(0, "all"), category(1, "animals", "all"), category(2, "dog", "animals")], [2], "dog",
         "'all', 'animals'"),
        ([category(0, "animals", "none"), category(1, "cat", "animals")], [0, 1], "animals cat", None),
        ([category(1, "person", "person"), category(2, "dog", "animal")], [2], "person dog", None),
        ([category(1, "none", "none"), category(2, "dog", "none")], [2], "none dog", None),
    ],
)  # fmt: skip
def test_coco_s_categories_that_only_group_others_are_no_classes(
    tmp_path: Path, categories: list[dict[str, Any]], used: list[int], names: str, note: str | None
) -> None:
    manifest = read_coco(tmp_path, instances([(1, key) for key in used], categories, ["a.jpg"]), "a.jpg")
    assert " ".join(manifest.class_names) == names
    groups = [line for line in manifest.notes if "only group others" in line]
    assert groups == ([f"categories that only group others are no classes: {note}"] if note else [])


def test_coco_s_group_is_one_in_a_split_without_its_members_too(tmp_path: Path) -> None:
    train = instances([(1, 1)], [category(0, "things"), category(1, "cat", "things")], ["a.jpg"])
    test = instances([], [category(5, "things")], ["b.jpg"])
    assert read_coco(tmp_path, train, "a.jpg", "b.jpg", test=test).class_names == ("cat",)
    used = instances([(1, 5)], [category(5, "things")], ["b.jpg"])
    assert read_coco(tmp_path, train, "a.jpg", "b.jpg", test=used).class_names == ("things", "cat")


def test_coco_s_splits_are_matched_by_name(tmp_path: Path) -> None:
    train = instances([(1, 9), (1, 4)], [category(9, "cat"), category(4, 3001)], ["a.jpg"])
    test = instances([(1, 4)], [category(4, "cat"), category(9, "eel"), category(5, "3001")], ["b.jpg"])
    manifest = read_coco(tmp_path, train, "a.jpg", "b.jpg", test=test)
    assert manifest.class_names == ("3001", "cat", "eel")
    assert manifest.labels == ((0, 1), (1,))


def test_coco_s_categories_of_one_name_are_one_class_unless_their_groups_differ(tmp_path: Path) -> None:
    alike = [category(1, "mouse", "animal"), category(2, "mouse ", "animal")]
    manifest = read_coco(tmp_path, instances([(1, 1), (2, 2)], alike, ["a.jpg", "b.jpg"]), "a.jpg", "b.jpg")
    assert says(manifest) == {"a.jpg": "mouse", "b.jpg": "mouse"}
    assert "2 categories are called 'mouse'" in manifest.notes[0]
    apart = [category(1, "mouse", "animal"), category(2, "mouse", "device")]
    with pytest.raises(DatasetError, match="categories 1, 2 are all called 'mouse', in .* 'animal', 'device'; name"):
        read_coco(tmp_path, instances([(1, 1), (2, 2)], apart, ["a.jpg", "b.jpg"]))
    unused = read_coco(tmp_path, instances([(1, 1)], apart, ["a.jpg"]), "a.jpg")
    assert (unused.class_names, says(unused)) == (("mouse",), {"a.jpg": "mouse"})


@pytest.mark.parametrize(
    "written",
    ["sub\\a.jpg", "./sub//a.jpg", "sub/A.JPG", "sub/a", "..\\..\\ls\\media\\a.jpg", "/home/me/pictures/a.jpg"],
)
def test_coco_finds_files_however_their_paths_are_written(tmp_path: Path, written: str) -> None:
    place = "sub/a.jpg" if "sub" in written else "a.jpg"
    manifest = read_coco(tmp_path, instances([(1, 1)], TWO, [written]), place)
    assert says(manifest) == {"a.jpg": "cat"}
    assert manifest.image_ids == (place,)


def test_coco_takes_where_an_image_was_published_for_its_missing_name(tmp_path: Path) -> None:
    file = json.loads(instances([(1, 1)], TWO, [None, "http://x.org/b.jpg"]))
    file["images"][0] = {"id": 1, "coco_url": "http://x.org/a.jpg"}
    assert read_coco(tmp_path, json.dumps(file)).uris == ("http://x.org/a.jpg", "http://x.org/b.jpg")


def test_coco_s_file_under_two_ids_is_refused_or_joined(tmp_path: Path) -> None:
    text = instances([(1, 1), (2, 2)], TWO, ["a.jpg", "a.jpg"])
    with pytest.raises(DatasetError, match="a.json, image 2: image 'a.jpg' is listed twice, first at .*image 1"):
        read_coco(tmp_path, text, "a.jpg")
    assert says(read_coco(tmp_path, text, "a.jpg", repeated_images="merge")) == {"a.jpg": "cat,dog"}


@pytest.mark.parametrize("encode", [lambda t: t.encode("utf-8-sig"), lambda t: t.encode("utf-16"), str.encode])
def test_coco_as_python_and_windows_write_it(tmp_path: Path, encode: Any) -> None:
    text = instances([(1, 1)], [category(1, "Möhre")], ["ä.jpg"]).replace('"images"', '"area": NaN, "images"')
    assert says(read_coco(tmp_path, encode(text), "ä.jpg")) == {"ä.jpg": "Möhre"}


def test_coco_s_crowds_count_unless_they_are_not_to(tmp_path: Path) -> None:
    file = json.loads(instances([(1, 1), (1, 2)], TWO, ["a.jpg"]))
    file["annotations"][0]["iscrowd"] = 1
    assert says(read_coco(tmp_path, json.dumps(file), "a.jpg")) == {"a.jpg": "cat,dog"}
    assert says(read_coco(tmp_path, json.dumps(file), "a.jpg", crowd=False)) == {"a.jpg": "dog"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1, "file_name": "a"}]}', "a.json: no list `annotations`: it lists images without labels"),
        ('{"images": [3]}', r"a.json: Expected `object`, got `int` - at `\$.images\[0\]`; an instances file"),
        ('{"images": {}}', r"a.json: Expected `array.*at `\$.images`"),
        ('[{"image_id": 1, "score": 0.5}]', "a.json: no list `images`"),
        ('{"images": [],\n "x": nul}', "a.json, line 2, column 7: not JSON"),
        (b'{"images": [{"file_name": "\xe4"}]}', "a.json, line 1: .* is not UTF-8"),
        ('{"x":' + "[" * 200_000, "a.json: JSON that is nested too deeply"),
        (instances([(1, None)], TWO, ["a.jpg"]), r"annotations\[0\], which must name what is shown: no `category_id`"),
        (instances([(None, 1)], TWO, ["a.jpg"]), r"annotations\[0\]: no `image_id`"),
        (instances([(True, 1)], TWO, ["a.jpg"]), r"annotations\[0\]: no `image_id`, but True"),
        (instances([], [category(1, None)], ["a.jpg"]), r"categories\[0\]: no `name`; give category 1 a name"),
        (instances([], [category(1, " ")], ["a.jpg"]), r"categories\[0\]: no `name`, but ' '"),
        (instances([], [category(1, False)], ["a.jpg"]), r"categories\[0\]: no `name`, but False"),
        (instances([], [category(1, float("nan"))], ["a.jpg"]), r"categories\[0\]: no `name`, but nan"),
        (instances([], [category(None, "x")], ["a.jpg"]), r"categories\[0\]: no `id`"),
        (instances([], [category(1, "x"), category("1", "y")], ["a.jpg"]), "category 1 is 'x' and 'y'"),
        (instances([], TWO, [" "]), r"images\[0\]: no `file_name`"),
    ],
)
def test_coco_names_what_is_wrong(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_coco(tmp_path, text)


def test_coco_agrees_with_pycocotools(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shared / "data/coco_mini"
    path = root / "annotations/instances_train2017.json"
    settings = {"train": {"annotations": str(path), "images": str(root / "images/train2017")}}
    manifest = read(coco.CocoDataset, root, splits=settings)
    reference = COCO(str(path))
    categories = reference.loadCats(sorted(reference.getCatIds()))
    assert manifest.class_names == tuple(category["name"] for category in categories)
    found = {}
    for image in reference.loadImgs(reference.getImgIds()):
        shown = {mark["category_id"] for mark in reference.loadAnns(reference.getAnnIds(imgIds=[image["id"]]))}
        found[image["file_name"]] = ",".join(c["name"] for c in categories if c["id"] in shown)
    assert says(manifest) == found
    assert not manifest.notes or all("shows" in note for note in manifest.notes)


def test_coco_s_layouts_are_found(tmp_path: Path) -> None:
    one = instances([(1, 2)], TWO, ["a.jpg"])
    layouts: dict[str, tuple[Files, dict[str, str]]] = {
        "roboflow": (images("train/a.jpg", "valid/a.jpg", "test/a.jpg")
                     | {f"{split}/_annotations.coco.json": one for split in ("train", "valid", "test")},
                     {"train": "train", "val": "valid", "test": "test"}),
        "coco": (images("train2017/a.jpg", "val2017/a.jpg")
                 | {"annotations/instances_train2017.json": one, "annotations/instances_val2017.json": one,
                    "annotations/captions_train2017.json": one},
                 {"train": "train2017", "val": "val2017"}),
        "fiftyone": (images("data/a.jpg") | {"labels.json": one}, {"train": "data"}),
        "cvat": (images("images/a.jpg") | {"annotations/instances_default.json": one}, {"train": "images"}),
        "label studio": (images("images/a.jpg")
                         | {"result.json": instances([(1, 1)], TWO, ["../../ls/upload/1/a.jpg"])}, {"train": "images"}),
        "more than one": (images("images/a.jpg", "images/b.jpg")
                          | {"result.json": one, "result_test.json": instances([(1, 1)], TWO, ["b.jpg"])},
                          {"train": "images", "test": "images"}),
    }  # fmt: skip
    for name, (files, folders) in layouts.items():
        root = put(tmp_path / name, files)
        manifest = proposed(root, "coco")
        assert Counter(manifest.splits) == dict.fromkeys(folders, 1), name
        where = {split: Path(uri).parent for split, uri in zip(manifest.splits, manifest.uris, strict=True)}
        assert where == {split: root / folder for split, folder in folders.items()}, name
        assert all(Path(uri).is_file() for uri in manifest.uris)


def test_what_is_no_coco_is_not_proposed(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"a.json": '{"images": 3, "annotations": []}', "b.json": "{", "c.json": '[{"images": 1}]', "d.json": b""},
    )
    assert coco.discover(Tree.of(tmp_path)) == []
