"""Readers: every format gives the same manifest, and every mistake names file and line or id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cprfl.data.long_tail import class_counts, groups
from cprfl.data.manifest import Manifest
from cprfl.data.readers.coco import CocoDataset
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.voc import VocDataset
from cprfl.errors import DatasetError

VOC_COUNTS = [6, 34, 8, 14, 154, 17, 249, 29, 479, 4, 240, 48, 11, 20, 775, 100, 5, 82, 7, 64]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "images", "sizes", "labels"),
    [("coco", (1909, 5000), (22, 33, 25), 8316), ("voc", (1142, 4952), (6, 6, 8), 2346)],
)
def test_published_lists_give_the_published_counts(
    shared: Path, name: str, images: tuple[int, int], sizes: tuple[int, int, int], labels: int
) -> None:
    lists = shared / "data" / "lists"
    manifest = ListFilesDataset(
        labels=f"{lists}/{name}_labels.txt",
        splits={"train": f"{lists}/{name}_lt_train.txt", "test": f"{lists}/{name}_lt_test.txt"},
    ).read()
    counts = class_counts(manifest)
    assert (len(manifest.split("train")), len(manifest.split("test"))) == images
    assert tuple(len(members) for members in groups(counts).values()) == sizes
    assert counts.sum() == labels
    if name == "voc":
        assert counts.tolist() == VOC_COUNTS
    else:
        assert (counts.min(), counts.max()) == (6, 1128)
        assert sum(not row for row in manifest.split("test").labels) == 48


def test_coco_json_agrees_with_the_list_of_the_same_images(shared: Path) -> None:
    mini = shared / "data" / "coco_mini"
    splits = {
        split: {"annotations": f"{mini}/annotations/instances_{folder}.json", "images": f"{mini}/images/{folder}"}
        for split, folder in (("train", "train2017"), ("test", "val2017"))
    }
    coco = CocoDataset.model_validate({"splits": splits}).read()
    listed = ListFilesDataset(
        labels=f"{shared}/data/lists/coco_labels.txt",
        images=f"{mini}/images",
        splits={"train": f"{mini}/train2017.txt", "test": f"{mini}/val2017.txt"},
    ).read()
    assert coco.class_names == listed.class_names
    assert len(coco) == 166 + 188
    labels = dict(zip(listed.uris, listed.labels, strict=True))
    same = [labels[uri] == row for uri, row in zip(coco.uris, coco.labels, strict=True)]
    assert np.mean(same) > 0.98  # the lists were made from another release of the annotations
    assert all(Path(uri).exists() for uri in coco.uris)


def coco_json(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 9, "file_name": "9.jpg"}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 90}, {"id": 2, "image_id": 7, "category_id": 90}],
    } | changes


def read_coco(tmp_path: Path, text: str) -> Manifest:
    annotations = write(tmp_path / "instances.json", text)
    return CocoDataset.model_validate({"splits": {"train": {"annotations": annotations, "images": "x"}}}).read()


def test_coco_sorts_its_ids_and_keeps_images_without_annotations(tmp_path: Path) -> None:
    manifest = read_coco(tmp_path, json.dumps(coco_json()))
    assert manifest.class_names == ("person", "toothbrush")
    assert manifest.labels == ((1,), ())
    assert manifest.targets().tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1, column 2: not JSON"),
        ("[]", "no list `images`"),
        (json.dumps(coco_json(images=[])), "`images` is empty"),
        (json.dumps(coco_json(images=[{"id": 7}])), r"images\[0\]: no `file_name`"),
        (json.dumps(coco_json(images=[{"id": 7, "file_name": "a"}] * 2)), "image 7: listed twice"),
        (json.dumps(coco_json(annotations=[{"id": 1, "image_id": 5, "category_id": 1}])), "annotation 1: image 5"),
        (json.dumps(coco_json(annotations=[{"id": 1, "image_id": 7, "category_id": 2}])), "annotation 1: category 2"),
    ],
)
def test_coco_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_coco(tmp_path, text)


def voc_folder(tmp_path: Path, xml: str = "<annotation><object><name>cat</name></object></annotation>") -> str:
    root = tmp_path / "VOC2012"
    write(root / "ImageSets" / "Main" / "train.txt", "000001\n000002\n")
    write(root / "Annotations" / "000001.xml", "<annotation/>")
    write(root / "Annotations" / "000002.xml", xml)
    return str(root)


def read_voc(root: str, **options: Any) -> Manifest:
    return VocDataset.model_validate({"splits": {"train": {"root": root, "image_set": "train"}}, **options}).read()


def test_voc_reads_objects_and_can_leave_out_difficult_ones(tmp_path: Path) -> None:
    objects = "<object><name>cat</name><difficult>1</difficult></object><object><name>dog</name></object>"
    root = voc_folder(tmp_path, f"<annotation>{objects}</annotation>")
    assert read_voc(root).labels == ((), (7, 11))
    assert read_voc(root, difficult=False).labels == ((), (11,))
    assert read_voc(root).image_ids[0] == "VOC2012/000001"


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<annotation>", "000002.xml: not XML"),
        ("<annotation><object/></annotation>", "000002.xml, object 0: no <name>"),
        (
            "<annotation><object><name>catt</name></object></annotation>",
            "000002.xml: unknown class 'catt'; did you mean 'cat'",
        ),
    ],
)
def test_voc_names_what_is_wrong(tmp_path: Path, xml: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_voc(voc_folder(tmp_path, xml))


def test_voc_names_a_missing_annotation(tmp_path: Path) -> None:
    root = voc_folder(tmp_path)
    Path(root, "Annotations", "000001.xml").unlink()
    with pytest.raises(DatasetError, match=r"000001.xml: annotation not found, though .*train.txt, line 1"):
        read_voc(root)


def read_list(tmp_path: Path, text: str, labels: str = "cat 0\ntraffic light 1\n", **options: Any) -> Manifest:
    paths = {"labels": write(tmp_path / "labels.txt", labels), "splits": {"train": write(tmp_path / "l.txt", text)}}
    return ListFilesDataset.model_validate({**paths, **options}).read()


def test_list_files_take_names_of_two_words_and_images_without_labels(tmp_path: Path) -> None:
    manifest = read_list(tmp_path, "a/1.jpg 1 0 \nb.jpg")
    assert manifest.class_names == ("cat", "traffic light")
    assert manifest.image_ids == ("a/1.jpg", "b.jpg")
    assert manifest.labels == ((0, 1), ())


@pytest.mark.parametrize(
    ("text", "labels", "message"),
    [
        ("", "cat 0", "l.txt: list of images is empty"),
        ("a.jpg 0\nb.jpg 2", "cat 0\ndog 1", "l.txt, line 2: class index 2 is out of range; .* has 0 to 1"),
        ("a.jpg -1", "cat 0", "line 1: class index -1"),
        ("a.jpg cat", "cat 0", "line 1: expected `path index index ...`"),
        ("a.jpg 0\n\na.jpg 0", "cat 0", "line 3: image 'a.jpg' is listed twice, first at .*line 1"),
        ("a.jpg 0", "cat 0\ndog 2", "labels.txt: no class has index 1"),
        ("a.jpg 0", "cat 0\ndog 0", "labels.txt, line 2: index 0 is taken by 'cat'"),
        ("a.jpg 0", "cat", "labels.txt, line 1: expected `name index`"),
    ],
)
def test_list_files_name_what_is_wrong(tmp_path: Path, text: str, labels: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_list(tmp_path, text, labels)


def test_a_label_file_and_a_class_list_that_disagree_name_the_difference(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"disagrees with dataset.classes .*'traffic light' and 'dog'"):
        read_list(tmp_path, "a.jpg 0", classes=["cat", "dog"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere.txt: label file not found"):
        ListFilesDataset(labels=str(tmp_path / "nowhere.txt"), splits={"train": "x"}).read()


def read_csv(tmp_path: Path, text: str, **options: Any) -> Manifest:
    return CsvDataset.model_validate({"splits": {"train": write(tmp_path / "t.csv", text)}, **options}).read()


def test_csv_with_a_labels_column_and_with_one_column_per_class_agree(tmp_path: Path) -> None:
    joined = read_csv(tmp_path, "image,labels\na.jpg,dog;cat\nb.jpg,\n")
    columns = read_csv(tmp_path, "image,cat,dog\na.jpg,1,1\nb.jpg,0,0\n")
    assert joined == columns
    assert joined.uris == (f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "no column 'image'"),
        ("image,labels\n", {}, "has a header but no rows"),
        ("file,labels\na,b\n", {}, r"no column 'image' \(columns: file, labels\)"),
        ("image,cat\na.jpg,2\n", {}, "line 2: column 'cat' holds '2', not 0 or 1"),
        ("image,cat\na.jpg\n", {}, "line 2: 2 columns in the header"),
        ("image,labels\na.jpg,dgo\n", {"classes": ["cat", "dog"]}, "line 2: unknown class 'dgo'; did you mean 'dog'"),
        ("image,labels\na.jpg,cat\na.jpg,dog\n", {}, "line 3: image 'a.jpg' is listed twice"),
        ("image,labels\na.jpg,\n", {}, "no classes"),
        ("image,labels\n,cat\n", {}, "line 2: the column 'image' is empty"),
    ],
)
def test_csv_names_what_is_wrong(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_csv(tmp_path, text, **options)


def test_a_manifest_survives_parquet(tmp_path: Path) -> None:
    manifest = read_list(tmp_path, "a.jpg 1 0\nb.jpg", groups={"head": 5, "tail": 2})
    manifest.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet") == manifest
    assert {path.name for path in tmp_path.iterdir()} == {"l.txt", "labels.txt", "m.parquet"}
