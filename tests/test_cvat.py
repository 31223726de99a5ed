"""CVAT's own XML of images: shapes and tags, labels, subsets, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprfl.data.manifest import Manifest
from cprfl.data.readers import cvat
from cprfl.data.readers.discovery import Tree
from cprfl.errors import DatasetError
from tests.boxes import Files, images, proposed, put, read, says

SKELETON = '<skeleton label="person"><points label="nose" outside="0" points="1,2"/></skeleton>'
LABELS = (
    "<label><name>cat</name><attributes><attribute><name>breed</name></attribute></attributes></label>"
    "<label><name>person</name><type>skeleton</type></label>"
    "<label><name>nose</name><type>points</type><parent>person</parent></label><label><name>dog</name></label>"
)


def image(name: str, content: str = "", subset: str | None = None) -> str:
    where = "" if subset is None else f' subset="{subset}"'
    return f'<image id="0" name="{name}"{where} width="9" height="9">{content}</image>'


def shape(label: str, kind: str = "box", more: str = "") -> str:
    return f'<{kind} label="{label}" source="manual" occluded="0" {more}><attribute name="x">y</attribute></{kind}>'


def file(*inner: str, labels: str = LABELS, task: str = "task") -> str:
    meta = f"<meta><{task}><name>t</name><labels>{labels}</labels></{task}></meta>"
    first = '<?xml version="1.0" encoding="utf-8"?>'
    return f"{first}\n<annotations>\n<version>1.1</version>{meta}{''.join(inner)}</annotations>"


def read_cvat(root: Path, text: str, **settings: Any) -> Manifest:
    put(root, {"a.xml": text})
    return read(cvat.CvatDataset, root, **({"splits": {"train": "a.xml"}} | settings))


def test_cvat_s_shapes_and_tags_are_labels(tmp_path: Path) -> None:
    put(tmp_path, images("a.jpg", "b.jpg", "c.jpg"))
    kinds = ("box", "polygon", "polyline", "points", "mask", "tag", "ellipse", "cuboid")
    everything = file(
        *(image(f"{kind}.jpg", shape("dog", kind) + shape("cat", kind)) for kind in kinds),
        image("s.jpg", SKELETON),
        image("none.jpg"),
        image("out.jpg", shape("dog", more='outside="1"') + shape("cat", more='outside="0"')),
    )
    put(tmp_path, images(*(f"{kind}.jpg" for kind in kinds), "s.jpg", "none.jpg", "out.jpg"))
    manifest = read_cvat(tmp_path, everything)
    assert manifest.class_names == ("cat", "person", "dog")
    expected = dict.fromkeys((f"{kind}.jpg" for kind in kinds), "cat,dog")
    assert says(manifest) == {**expected, "s.jpg": "person", "none.jpg": "", "out.jpg": "cat"}


@pytest.mark.parametrize("task", ["task", "job", "project"])
def test_cvat_lists_labels_of_tasks_jobs_and_projects(tmp_path: Path, task: str) -> None:
    put(tmp_path, images("images/a.jpg"))
    manifest = read_cvat(tmp_path, file(image("a.jpg", shape("dog")), task=task))
    assert manifest.class_names == ("cat", "person", "dog")
    assert manifest.uris == (f"{tmp_path}/images/a.jpg",)
    bare = f"<annotations>{image('a.jpg', shape('dog') + shape('axolotl'))}</annotations>"
    assert read_cvat(tmp_path, bare).class_names == ("axolotl", "dog")


def test_cvat_s_subsets_are_splits(tmp_path: Path) -> None:
    put(tmp_path, images("images/Train/a.jpg", "images/validation/a.jpg", "images/Test/b.jpg"))
    text = file(
        image("a.jpg", shape("cat"), "Train"), image("a.jpg", shape("dog"), "Validation"), image("b.jpg", "", "Test")
    )
    for splits in ({"train": "a.xml"}, {"train": "a.xml", "test": "a.xml", "val": "a.xml"}):
        manifest = read_cvat(tmp_path, text, splits=splits)
        found = dict(zip(manifest.splits, manifest.image_ids, strict=True))
        assert found == {"train": "Train/a.jpg", "val": "validation/a.jpg", "test": "Test/b.jpg"}
        assert manifest.labels[manifest.splits.index("val")] == (2,)
        assert "its subsets are splits: 'Train' (1 images), 'Validation' (1 images)" in manifest.notes[0]


def test_cvat_s_validation_subset_is_the_test_where_it_is_said_to_be(tmp_path: Path) -> None:
    put(tmp_path, images("a.jpg", "b.jpg"))
    text = file(image("a.jpg", shape("cat"), "Train"), image("b.jpg", shape("cat"), "Validation"))
    manifest = read_cvat(tmp_path, text, splits={"train": "a.xml", "test": "a.xml"})
    assert manifest.splits == ("train", "test")


def test_cvat_s_subsets_that_are_no_splits_are_one(tmp_path: Path) -> None:
    put(tmp_path, images("a.jpg", "b.jpg"))
    text = file(image("a.jpg", shape("cat"), "day"), image("b.jpg", shape("cat"), "night"))
    manifest = read_cvat(tmp_path, text)
    assert manifest.splits == ("train", "train")
    assert "its subsets are no splits, all are train" in manifest.notes[0]
    one = file(image("a.jpg", shape("cat"), "Test"))
    assert read_cvat(tmp_path, one).splits == ("train",)  # a file of one subset is what it is given for


NOT_TOLD = {"splits": {"train": "a.xml", "test": "a.xml"}}


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (file("<track id='0' label='cat'/>"), {}, "a.xml: tracks of a video .*; export it as \"CVAT for images 1.1\""),
        (file(), {}, "a.xml: no <image>; export"),
        (file(image(" ")), {}, "a.xml, image 0: no name"),
        (file(image("a.jpg", shape(""))), {}, "a.xml, image 'a.jpg', <box> 0: no label; label it, or remove it"),
        (file(image("a.jpg", "", "Train"), image("b.jpg", "", "batch 2")), {},
         "some of its subsets are no splits: 'Train' .1 images., 'batch 2' .*; call each Train, Validation or Test"),
        (file(image("a.jpg")), NOT_TOLD, "a.xml: the file of the splits train, test, which its subsets do not tell"),
        ("<!DOCTYPE x []>" + file(), {}, "a.xml, line 1: a document type"),
        ("<annotation/>", {}, "its root element is <annotation>, not <annotations>"),
        (file("<image>"), {}, "a.xml: not XML: mismatched tag: line 3"),
    ],
)  # fmt: skip
def test_cvat_names_what_is_wrong(tmp_path: Path, text: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_cvat(tmp_path, text, **settings)


def test_cvat_s_layouts_are_found(tmp_path: Path) -> None:
    marked = shape("cat")
    one = put(tmp_path / "one", {"annotations.xml": file(image("in/a.jpg", marked)), **images("images/in/a.jpg")})
    assert says(proposed(one, "cvat")) == {"a.jpg": "cat"}
    files: Files = {f"{name}.xml": file(image(f"{name}.jpg", marked)) for name in ("train", "val", "test")}
    several = put(tmp_path / "several", images(*(f"photos/{name}.jpg" for name in ("train", "val", "test"))) | files)
    assert proposed(several, "cvat").splits == ("train", "val", "test")
    folders: Files = {f"{name}/annotations.xml": file(image("a.jpg", marked)) for name in ("train", "test")}
    apart = put(tmp_path / "apart", images("train/images/a.jpg", "test/images/a.jpg") | folders)
    assert proposed(apart, "cvat").uris == (f"{apart}/train/images/a.jpg", f"{apart}/test/images/a.jpg")
    subsets = file(image("a.jpg", marked, "Train"), image("a.jpg", marked, "Test"))
    project = put(
        tmp_path / "project", {"annotations.xml": subsets, **images("images/Train/a.jpg", "images/Test/a.jpg")}
    )
    assert proposed(project, "cvat").splits == ("train", "test")


def test_what_is_no_cvat_is_not_proposed(tmp_path: Path) -> None:
    video = file("<track id='0' label='cat'/>")
    put(tmp_path, {"a.xml": video, "b.xml": "<annotations>", "c.xml": "<annotation/>", "d.xml": "<annotations/>"})
    assert cvat.discover(Tree.of(tmp_path)) == []
