"""Exports as tools and people really lay them out, beside those in `exports`: read right, or refused with the mend."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cprfl.data.readers.locate import ImageFolder, LocalFiles
from cprfl.errors import DatasetError
from cprfl.starting.reading import Reading, read_what_is_there
from tests.exports import CLASSES, Labels, photographs, picture

LABELS: Labels = {
    name: tuple(sorted(labels)) if number % 6 else () for number, (name, labels) in enumerate(photographs(24).items())
}
NAMES_OF_CLASSES = "".join(f"{name}\n" for name in CLASSES)
DATA_YAML = f"names: {json.dumps(list(CLASSES), ensure_ascii=False)}\n"


def put(root: Path, files: Mapping[str, str | bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)


def pictures(folder: str, labels: Labels) -> dict[str, bytes]:
    return {f"{folder}/{name}": picture(name) for name in labels}


def yolo(folder: str, labels: Labels, classes: Sequence[str] = CLASSES, suffix: str = ".txt") -> dict[str, str]:
    lines = {name: "".join(f"{classes.index(label)} .5 .5 .1 .1\n" for label in of) for name, of in labels.items()}
    return {f"{folder}/{Path(name).stem}{suffix}": text for name, text in lines.items()}


def voc(folder: str, labels: Labels, more: str = "") -> dict[str, str]:
    written = {
        name: "".join(f"<object><name>{escape(label)}</name><deleted>0</deleted></object>" for label in of) + more
        for name, of in labels.items()
    }
    return {
        f"{folder}/{Path(name).stem}.xml": f"<annotation><filename>{name}</filename>{objects}</annotation>"
        for name, objects in written.items()
    }


def coco(labels: Labels, key: str = "file_name", before: str = "") -> str:
    ids = {name: number for number, name in enumerate(CLASSES)}
    images = [{"id": number, key: f"{before}{name}"} for number, name in enumerate(labels)]
    shown = [(number, ids[label]) for number, of in enumerate(labels.values()) for label in of]
    annotations = [{"image_id": image, "category_id": label} for image, label in shown]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


def in_folders(labels: Labels, inner: str = "{}", none: str | None = None) -> dict[str, bytes]:
    folders = {name: of or ((none,) if none else ()) for name, of in labels.items()}
    return {f"{inner.format(label)}/{name}": picture(name) for name, of in folders.items() for label in of}


def parts() -> tuple[Labels, Labels]:
    listed = list(LABELS.items())
    return dict(listed[:16]), dict(listed[16:])


def says(reading: Reading) -> Labels:
    manifest = reading.manifest
    names = [unicodedata.normalize("NFC", Path(uri).name) for uri in manifest.uris]
    assert len({*names}) == len(names)
    return {
        name: tuple(sorted(manifest.class_names[label] for label in own))
        for name, own in zip(names, manifest.labels, strict=True)
    }


def sizes(reading: Reading) -> dict[str, int]:
    return {split: reading.manifest.splits.count(split) for split in ("train", "val", "test")}


def decomposed(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {unicodedata.normalize("NFD", path): content for path, content in files.items()}


TRAIN, TEST = parts()
SUB = {**pictures("photos/a", TRAIN), **pictures("photos/b", TEST)}
UMLAUT = {"Möhre.jpg" if name == "photo 001.jpg" else name: labels for name, labels in LABELS.items()}

LAYOUTS: dict[str, dict[str, str | bytes]] = {
    "coco, names without the folders of the images": {**SUB, "ann/labels.json": coco(LABELS)},
    "coco, addresses only, as LVIS": {
        **pictures("train2017", LABELS), "lvis.json": coco(LABELS, "coco_url", "http://cocodataset.org/train2017/")},
    "coco, masks with the names of the photographs": {
        **pictures("photos", LABELS), "a.json": coco(LABELS),
        **{f"masks/{Path(name).stem}.png": b"a mask" for name in LABELS}},
    "coco, an empty and a broken file beside it": {
        **pictures("images", LABELS), "z.json": coco(LABELS), "a.json": coco(dict.fromkeys(LABELS, ())),
        "b.json": '{"images": [], "annotations": ['},
    "voc, masks with the names of the photographs": {
        **pictures("photos", LABELS), **voc("Annotations", LABELS),
        **{f"masks/{Path(name).stem}.png": b"a mask" for name in LABELS}},
    "voc, names without the folders of the images": {**SUB, **voc("annotations", LABELS)},
    "LabelMe 3, with deleted objects": {
        **pictures("Images", LABELS),
        **voc("Annotations", LABELS, "<object><name>boat</name><deleted>1</deleted></object>")},
    "yolo, validation images only": {
        **pictures("images/val", LABELS), **yolo("labels/val", LABELS),
        "dataset.yaml": f"{DATA_YAML}path: /home/me/export\nval: ./images/val/\n"},
    "yolo, validation images that are the training images": {
        **pictures("images", LABELS), **yolo("labels", LABELS), "d.yaml": f"{DATA_YAML}val: images\ntrain: images\n"},
    "yolo, suffixes in capitals": {
        **pictures("images", LABELS), **yolo("labels", LABELS, suffix=".TXT"), "classes.txt": NAMES_OF_CLASSES},
    "folders, with CVAT's for no label and its list": {
        **in_folders(LABELS, none="no_label"), "synsets.txt": NAMES_OF_CLASSES},
    "folders, with FiftyOne's for no label": {**in_folders(LABELS, none="_unlabeled")},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_photograph_keeps_its_labels(layout: str, tmp_path: Path) -> None:
    put(tmp_path, LAYOUTS[layout])
    reading = read_what_is_there(tmp_path)
    assert says(reading) == LABELS
    assert {*reading.manifest.class_names} == {*CLASSES}
    assert "on_bad_image" not in reading.dataset
    assert "test" in reading.manifest.splits


IN_SPLITS: dict[str, Callable[[], dict[str, str | bytes]]] = {
    "Roboflow's darknet": lambda: {
        **pictures("train", TRAIN), **yolo("train", TRAIN), "train/_darknet.labels": NAMES_OF_CLASSES,
        **pictures("test", TEST), **yolo("test", TEST), "test/_darknet.labels": NAMES_OF_CLASSES},
    "LabelImg, a list of names that grew": lambda: {
        **pictures("train", TRAIN), **yolo("train", TRAIN), "train/classes.txt": NAMES_OF_CLASSES,
        **pictures("test", TEST), **yolo("test", TEST), "test/classes.txt": f"{NAMES_OF_CLASSES}a fifth\n"},
    "splits, and a file of all": lambda: {
        **pictures("images", LABELS), "all.json": coco(LABELS), "test.json": coco(TEST), "train.json": coco(TRAIN)},
    "folders, and one of images to be labelled": lambda: {
        **in_folders(TRAIN, "train/{}", "no_label"), **in_folders(TEST, "test/{}", "no_label"),
        "later/photo 900.jpg": picture("photo 900.jpg")},
    "Roboflow's folders": lambda: {
        **in_folders(TRAIN, "train/{}", "no_label"), **in_folders(TEST, "test/{}", "no_label"),
        "README.roboflow.txt": "x", "README.dataset.txt": "x"},
}  # fmt: skip


@pytest.mark.parametrize("layout", IN_SPLITS)
def test_splits_are_those_of_the_folders(layout: str, tmp_path: Path) -> None:
    put(tmp_path, IN_SPLITS[layout]())
    reading = read_what_is_there(tmp_path)
    assert says(reading) == LABELS
    assert sizes(reading) == {"train": len(TRAIN), "val": 0, "test": len(TEST)}


def test_names_on_disk_are_in_another_unicode_form(tmp_path: Path) -> None:
    photographs_ = {f"images/{name}": picture("photo 001.jpg" if name == "Möhre.jpg" else name) for name in UMLAUT}
    put(tmp_path, {**decomposed(photographs_), **yolo("labels", UMLAUT), "classes.txt": NAMES_OF_CLASSES})
    assert says(read_what_is_there(tmp_path)) == UMLAUT


def test_a_table_of_the_test_split_alone_is_one_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = {"image": [picture(name) for name in LABELS], "labels": [list(labels) for labels in LABELS.values()]}
    pq.write_table(pa.table(rows), tmp_path / "data/test-00000-of-00001.parquet")
    assert len(read_what_is_there(tmp_path).manifest) == len(LABELS)


@pytest.mark.parametrize("tool", ["coco", "labelstudio"])
def test_further_files_that_are_no_splits_are_named(tool: str, tmp_path: Path) -> None:
    put(tmp_path, {**pictures("images", LABELS)})
    for name, labels in (("one", TRAIN), ("two", TEST)):
        tasks = [
            {"data": {"image": f"/data/local-files/?d=images/{photograph}"},
             "annotations": [{"result": [{"type": "choices", "value": {"choices": list(shown)}}]}]}
            for photograph, shown in labels.items()
        ]  # fmt: skip
        put(tmp_path, {f"{name}.json": coco(labels) if tool == "coco" else json.dumps(tasks)})
    reading = read_what_is_there(tmp_path)
    assert says(reading) == TRAIN
    assert "not read" in reading.unsure["splits"] and "two.json" in reading.unsure["splits"]


def test_images_of_the_same_names_in_another_folder_are_named(tmp_path: Path) -> None:
    put(tmp_path, {**pictures("a", LABELS), "labels.json": coco(LABELS)})
    assert "splits" not in read_what_is_there(tmp_path).unsure
    put(tmp_path, pictures("b", LABELS))
    unsure = read_what_is_there(tmp_path).unsure
    assert unsure["splits"].startswith("24 images of the same names are not read, such as b/photo 000.jpg (but ")


def test_a_split_without_label_files_is_named(tmp_path: Path) -> None:
    data = f"{DATA_YAML}train: ../train/images\ntest: ../test/images\n"
    put(tmp_path, {**pictures("train/images", TRAIN), **yolo("train/labels", TRAIN), **pictures("test/images", TEST)})
    put(tmp_path, {"data.yaml": data})
    reading = read_what_is_there(tmp_path)
    assert says(reading) == TRAIN
    assert reading.unsure["splits"] == "no image of test has a label file"


REFUSED: dict[str, tuple[dict[str, str | bytes], str]] = {
    "two lists of names that disagree": (
        {**pictures("train", TRAIN), **yolo("train", TRAIN), "train/classes.txt": NAMES_OF_CLASSES,
         **pictures("test", TEST), **yolo("test", TEST, CLASSES[::-1]), "test/classes.txt": "\n".join(CLASSES[::-1])},
        "test/classes.txt and train/classes.txt disagree: class 0 is 'traffic light' and 'boat'"),
    "splits in the classes' folders": (
        {**in_folders(TRAIN, "{}/train"), **in_folders(TEST, "{}/test")}, "put the classes' folders into those"),
    "no names of classes": ({**pictures("images", LABELS), **yolo("labels", LABELS)}, "data.yaml or classes.txt"),
    "save_to_disk": ({"train/data-00000-of-00001.arrow": b"x", "dataset_dict.json": "{}"}, "Parquet with `to_parquet`"),
    "JSON lines": ({**pictures("train", LABELS), "train/metadata.jsonl": "{}"}, "write a CSV table"),
    "packed": ({"export.zip": b"PK"}, "unpack the .zip files first"),
    "ground truth and predictions": (
        {**pictures("images", LABELS), **voc("annotations", LABELS), **voc("predictions", dict.fromkeys(LABELS, ()))},
        "predictions/photo 000.xml: image .* is listed twice, first at .*annotations/photo 000.xml; remove one"),
    "cut off": ({**pictures("images", LABELS), "a.json": coco(LABELS)[:-90]}, r"a.json, line 1, column \d+: not JSON"),
    "another tool's JSON": ({**pictures("images", LABELS), "via.json": "{}"}, "COCO's instances, labelme's files and"),
    "a video": ({"annotations.xml": "<annotations><track/></annotations>"}, "CVAT for images 1.1"),
}  # fmt: skip


@pytest.mark.parametrize("layout", REFUSED)
def test_what_is_not_read_is_refused_with_the_mend(layout: str, tmp_path: Path) -> None:
    files, message = REFUSED[layout]
    put(tmp_path, files)
    with pytest.raises(DatasetError, match=message):
        read_what_is_there(tmp_path)


def test_a_file_whose_images_lie_elsewhere_is_refused_with_the_mend(tmp_path: Path) -> None:
    put(tmp_path, {**pictures("images", LABELS), "annotations/a.json": coco(LABELS)})
    with pytest.raises(DatasetError, match="point at the folder that has both the annotations and the images"):
        read_what_is_there(tmp_path / "annotations/a.json")


def test_a_label_file_is_that_of_no_image_in_other_letters_case(tmp_path: Path) -> None:
    put(tmp_path, {"images/a.jpg": "1", "images/A.JPG": "2", "labels/a.txt": "0 .5 .5 .1 .1", "classes.txt": "boat"})
    manifest = read_what_is_there(tmp_path).manifest
    assert dict(zip(manifest.image_ids, map(len, manifest.labels), strict=True)) == {"a.jpg": 1, "A.JPG": 0}
    files = LocalFiles()
    assert files.find(f"{tmp_path}/labels/a.TXT") == f"{tmp_path}/labels/a.txt"
    assert files.find(f"{tmp_path}/labels/A.txt") is None and files.find(f"{tmp_path}/gone/a.txt") is None


def test_a_name_alone_means_no_image_where_two_folders_have_one(tmp_path: Path) -> None:
    put(tmp_path, {"x/a.jpg": "1", "y/a.jpg": "2", "x/b.jpg": "3"})
    folder = ImageFolder(str(tmp_path))
    assert folder.find(["a.jpg", "b.jpg"]) == [("a.jpg", f"{tmp_path}/a.jpg"), ("x/b.jpg", f"{tmp_path}/x/b.jpg")]
    assert folder.notes == [f"1 images found by the file's name alone, such as 'b.jpg': {tmp_path}/x/b.jpg"]
