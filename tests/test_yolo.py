"""YOLO's label files, and the data files that say where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprfl.data.manifest import Manifest
from cprfl.data.readers import yolo
from cprfl.data.readers.discovery import Tree
from cprfl.errors import DatasetError
from tests.boxes import Files, images, proposed, put, read, says

CAT, DOG = "0 0.5 0.5 0.1 0.2\n", "1 0.5 0.5 0.1 0.2\n"
NAMES = "names: [cat, dog]\n"


def read_yolo(root: Path, files: Files, **settings: Any) -> Manifest:
    settings = {"data": next(iter(files))} | settings
    return read(yolo.YoloDataset, put(root, files), **settings)


def one(yaml: str, label: str | bytes = CAT, name: str = "a") -> Files:
    """A data file, and one image with its label file."""
    return {"data.yaml": yaml, f"images/{name}.jpg": b"", f"labels/{name}.txt": label}


@pytest.mark.parametrize(
    "names",
    ["names: [cat, dog]", "names:\n- cat\n- 'dog'\nnc: 2", "names: {0: cat, 1: dog}", 'names:\n  1: "dog"\n  0: cat\n',
     "# a comment\nnc: 2\nnames: ['cat', 'dog']\nroboflow: {license: MIT}"],
)  # fmt: skip
def test_yolo_s_names_are_a_list_or_a_mapping(tmp_path: Path, names: str) -> None:
    manifest = read_yolo(tmp_path, one(f"train: images\n{names}", DOG + CAT + DOG))
    assert manifest.class_names == ("cat", "dog")
    assert says(manifest) == {"a.jpg": "cat,dog"}


def test_yolo_s_names_are_text_as_it_is_written(tmp_path: Path) -> None:
    manifest = read_yolo(tmp_path, one('train: images\nnames: [no, 007, 1.50, "null", 2024_05, yes, ~x]'))
    assert manifest.class_names == ("no", "007", "1.50", "null", "2024_05", "yes", "~x")


@pytest.mark.parametrize(
    ("line", "label"),
    [
        ("1 0.5 0.5 0.1 0.1", "dog"), ("1 0.1 0.1 0.2 0.2 0.3 0.3", "dog"), ("1\t0.5\t0.5\t0.1\t0.1\r", "dog"),
        ("1 .5 .5 .1 .1 0.93", "dog"), ("1.0 5e-1 5e-1 1e-1 1e-1", "dog"), ("\n\n  0 1 1 1 1  \n\n", "cat"), ("", ""),
        ("\ufeff1 0.5 0.5 0.1 0.1", "dog"), (" \n", ""),
    ],
)  # fmt: skip
def test_yolo_reads_the_class_of_boxes_and_polygons(tmp_path: Path, line: str, label: str) -> None:
    manifest = read_yolo(tmp_path, one(f"train: images\n{NAMES}", CAT, "z") | one(f"train: images\n{NAMES}", line))
    assert says(manifest) == {"a.jpg": label, "z.jpg": "cat"}


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (CAT + "2 0.5 0.5 0.1 0.1", "a.txt, line 2: class 2 has no name; .*data.yaml names 0 to 1"),
        ("-1 0.5 0.5 0.1 0.1", "a.txt, line 1: class -1 has no name"),
        ("cat 0.5 0.5 0.1 0.1", "a.txt, line 1: expected `class x y w h` or .*, got 'cat 0.5"),
        ("0.5 0.5 0.1 0.1", "a.txt, line 1: expected"),
        ("1.5 0.5 0.5 0.1 0.1", "a.txt, line 1: expected"),
        ("1", "a.txt, line 1: expected"),
        ("0 0.5 0.5 0.1 wide", "a.txt, line 1: expected"),
        ("nan 0.5 0.5 0.1 0.1", "a.txt, line 1: expected"),
        ("0,0.5,0.5,0.1,0.1", "a.txt, line 1: expected"),
        (b"0 \xff 1 1 1", "a.txt, line 1: label file is not UTF-8"),
    ],
)
def test_yolo_names_a_line_that_it_does_not_read(tmp_path: Path, label: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_yolo(tmp_path, one(f"train: images\n{NAMES}", label))


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat", "data.yaml, line 1: not YAML: "),
        ("- cat", "data.yaml: no data file of YOLO; it has `names`"),
        ("train: images", "data.yaml: no `names` of the classes"),
        ("train: images\nnames: cat", "data.yaml, line 2: `names` must be a list, or `index: name`"),
        ("train: images\nnames: {a: cat}", "data.yaml, line 2: `names`: 'a' is no index of a class"),
        ("names: {0: cat, 0: dog}", "data.yaml, line 1: '0' is there twice"),
        ("names: [a]\nnames: [b]", "data.yaml, line 2: 'names' is there twice"),
        ("train: images\nnc: 3\nnames: [cat, dog]", "nc is '3', but `names` are 2; correct one of them"),
        ("train: images\nnames: [cat, null]", "class 1 has no name; give it one .in quotes, if it is called null"),
        ("train: images\nnames: [cat, '']", "class 1 has no name"),
        ("train: images\nnames: [cat, [a]]", "class 1 has no name"),
        ("train: images\nnames: [cat, dog, 'cat ']", "the classes 0 and 2 are both called 'cat'"),
        ("train: photos\nnames: [cat]", "data.yaml: 'photos' not found .looked for .*/photos.; correct the path, or"),
        ("train: ../x/../images\nnames: [cat]", "data.yaml: '../x/../images' not found"),
        ("train: {a: images}\nnames: [cat]", "data.yaml, line 1: expected a path or a list of paths"),
        ("train: labels\nnames: [cat]", "/labels: no images there; correct 'labels' in .*data.yaml"),
        ("val: images\nnames: [cat]", "data.yaml: names no `train` images; say where they are with dataset.splits"),
    ],
)
def test_yolo_names_what_is_wrong_in_the_data_file(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_yolo(tmp_path, one(yaml))


def test_yolo_counts_images_without_objects_and_refuses_a_split_without_labels(tmp_path: Path) -> None:
    files = one(f"train: images\ntest: more/images\n{NAMES}") | images("images/b.jpg", "images/c.jpg")
    files |= {"labels/c.txt": ""} | images("more/images/d.jpg")
    manifest = read_yolo(tmp_path, files, splits={"train": "train"})
    assert says(manifest) == {"a.jpg": "cat", "b.jpg": "", "c.jpg": ""}
    assert "split train: images without objects: 1 no label file and 1 an empty one" in manifest.notes
    with pytest.raises(
        DatasetError,
        match="test has a label file .looked for .*more/labels/d.txt and .*images/d.txt",
    ):
        read_yolo(tmp_path, files)


def test_yolo_reads_from_where_it_is_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, one(f"train: images\n{NAMES}"))
    monkeypatch.chdir(tmp_path)
    assert says(yolo.YoloDataset(data="data.yaml").read()) == {"a.jpg": "cat"}


def test_yolo_takes_the_splits_that_it_is_told(tmp_path: Path) -> None:
    files = one(f"train: images\nval: [more/images, most]\n{NAMES}")
    files |= {"more/labels/a.txt": DOG, "most/a.txt": ""} | images("more/images/a.jpg", "most/a.jpg")
    manifest = read_yolo(tmp_path, files, splits={"train": "train", "test": "val"})
    assert manifest.splits == ("train", "test", "test")
    assert manifest.image_ids == ("a.jpg", "more/images/a.jpg", "most/a.jpg")
    by_path = read_yolo(tmp_path, files, splits={"train": "images", "val": "most", "test": "more/images"})
    assert by_path.labels == ((0,), (), (1,))


LAYOUTS: dict[str, tuple[Files, dict[str, str]]] = {
    "ultralytics": (
        {"coco8.yaml": f"path: ../datasets/coco8\ntrain: images/train\nval: images/val\ntest:\n{NAMES}",
         "labels/train/a.txt": CAT, "labels/val/b.txt": DOG, **images("images/train/a.jpg", "images/val/b.jpg")},
        {"train a.jpg": "cat", "val b.jpg": "dog"},
    ),
    "roboflow": (
        {"data.yaml": f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\n{NAMES}",
         "train/labels/a.txt": CAT, "valid/labels/a.txt": DOG, **images("train/images/a.jpg", "valid/images/a.jpg")},
        {"train train/a.jpg": "cat", "val val/a.jpg": "dog"},
    ),
    "of another machine": (
        {"data.yaml": f"path: /content/set\ntrain: /content/set/train\nval: C:\\set\\valid\\images\n{NAMES}",
         "train/labels/a.txt": CAT, "valid/labels/b.txt": DOG, **images("train/images/a.jpg", "valid/images/b.jpg")},
        {"train images/a.jpg": "cat", "val b.jpg": "dog"},
    ),
    "path": (
        {"conf/data.yml": f"path: ../my set\ntrain: [a/images, b/images]\n{NAMES}", "my set/a/labels/x.txt": CAT,
         "my set/b/labels/x.txt": DOG, **images("my set/a/images/x.jpg", "my set/b/images/x.jpg")},
        {"train a/images/x.jpg": "cat", "train b/images/x.jpg": "dog"},
    ),
    "lists": (
        {"data.yaml": f"train: train.txt\nval: val.txt\n{NAMES}", "train.txt": "./images/a b.jpg\n",
         "val.txt": "images\\sub\\c.jpg\n", "labels/a b.txt": CAT, "labels/sub/c.txt": DOG,
         **images("images/a b.jpg", "images/sub/c.jpg")},
        {"train images/a b.jpg": "cat", "val images/sub/c.jpg": "dog"},
    ),
    "cvat": (
        {"obj.data": "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = b",
         "obj.names": "cat\ndog\n", "train.txt": "data/obj_train_data/a.jpg\n", "obj_train_data/a.txt": CAT,
         "valid.txt": "data/obj_valid_data/b.png", "obj_valid_data/b.txt": DOG,
         **images("obj_train_data/a.jpg", "obj_valid_data/b.png")},
        {"train obj_train_data/a.jpg": "cat", "val obj_valid_data/b.png": "dog"},
    ),
    "darknet": (
        {"cfg/obj.data": "# mine\ntrain=data/train.txt\nnames=data/obj.names", "data/obj.names": "cat\ndog",
         "data/train.txt": "data/obj/a.jpg\ndata/obj/b.jpg", "data/obj/a.txt": CAT, "data/obj/b.txt": "",
         **images("data/obj/a.jpg", "data/obj/b.jpg")},
        {"train data/obj/a.jpg": "cat", "train data/obj/b.jpg": ""},
    ),
    "label studio": (
        {"classes.txt": "cat\ndog\n", "notes.json": "{}", "labels/a.txt": DOG, "labels/b.txt": "",
         **images("images/a.jpg", "images/b.jpg")},
        {"train a.jpg": "dog", "train b.jpg": ""},
    ),
    "labelimg": (
        {"train/classes.txt": "cat\ndog", "train/a.txt": CAT, "test/b.txt": DOG, **images("train/a.jpg", "test/b.jpg")},
        {"train a.jpg": "cat", "test b.jpg": "dog"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_yolo_s_layouts_are_found(tmp_path: Path, layout: str) -> None:
    files, expected = LAYOUTS[layout]
    manifest = proposed(put(tmp_path, files), "yolo")
    assert manifest.class_names == ("cat", "dog")
    labels = [",".join(manifest.class_names[label] for label in own) for own in manifest.labels]
    rows = zip(manifest.splits, manifest.image_ids, labels, strict=True)
    assert {f"{split} {image_id}": shown for split, image_id, shown in rows} == expected
    assert all(Path(uri).is_file() for uri in manifest.uris)


def test_darknet_names_what_is_wrong(tmp_path: Path) -> None:
    files: Files = images("a.jpg") | {"obj.names": "cat\ndog\n", "train.txt": "a.jpg", "a.txt": CAT}
    for data, message in {
        "train = train.txt": "obj.data: no `names = FILE`",
        "train = train.txt\nnames": "obj.data, line 2: expected `key = value`, each key once, got 'names'",
        "classes = 3\nnames = obj.names": "classes = 3, but there are 2 names",
        "names = x.names": "obj.data: 'x.names' not found",
    }.items():
        with pytest.raises(DatasetError, match=message):
            read_yolo(tmp_path, {"obj.data": data, **files})
    with pytest.raises(DatasetError, match="obj.names, line 2: empty; a class's name is expected, one a line"):
        read_yolo(tmp_path, {"obj.names": "cat\n\ndog", "a.jpg": b""}, splits={"train": "a.jpg"})


def test_what_is_no_yolo_is_not_proposed(tmp_path: Path) -> None:
    put(tmp_path, {"exp.yaml": "name: x\ndataset: {name: csv}", "broken.yaml": "[", "classes.txt": "cat\ndog"})
    put(tmp_path, {"captions/classes.txt": "a\nb", "captions/a.txt": "a photo of a cat", "x.data": b"\0\xff"})
    put(tmp_path, images("images/a.jpg", "captions/a.jpg") | {"names.yaml": "names: [a]\ntrain: images"})
    assert yolo.discover(Tree.of(tmp_path)) == []


def test_yolo_tells_label_files_without_an_image(tmp_path: Path) -> None:
    """Not lists, notes and empty files that lie there too."""
    others = {"gone": CAT, "classes": "cat\n", "empty": "", "notes": "0 1 2 3 b\n"}
    files = one(f"train: images\n{NAMES}") | {f"labels/{name}.txt": text for name, text in others.items()}
    notes = read_yolo(tmp_path, files).notes
    assert [note for note in notes if "without an image" in note] == [
        f"1 label file without an image, such as {tmp_path}/labels/gone.txt"
    ]
