"""Pascal VOC's XML, in VOC's own folders and without; and what no XML of annotations may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprfl.data.manifest import Manifest
from cprfl.data.readers import voc
from cprfl.data.readers.discovery import Tree
from cprfl.errors import DatasetError
from tests.boxes import Files, images, proposed, put, read, says


def xml(*names: str, filename: str = "") -> str:
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    return f"<annotation>{f'<filename>{filename}</filename>' if filename else ''}{objects}</annotation>"


def voc_folder(root: Path, listing: str, annotations: Files, *files: str) -> Path:
    put(root, {"d/ImageSets/Main/train.txt": listing, **images(*(f"d/JPEGImages/{file}" for file in files))})
    return put(root, {f"d/Annotations/{name}.xml": content for name, content in annotations.items()})


def read_voc(root: Path, **settings: Any) -> Manifest:
    settings = {"splits": {"train": {"root": "d", "image_set": "train"}}, "classes": None} | settings
    return read(voc.VocDataset, root, **settings)


def test_voc_finds_images_with_any_suffix_and_any_name(tmp_path: Path) -> None:
    files = ("a.png", "b.JPG", "c.jpeg", "my plate 3.webp", "v1.2.jpg", "ö.tif", "renamed.jpg")
    names = ["a", "b", "c", "my plate 3", "v1.2", "ö", "old"]
    annotations: Files = {name: xml(f"c{number}") for number, name in enumerate(names)}
    annotations |= {"c": xml("c2", filename="c.jpeg"), "old": xml("c6", filename="C:\\x\\renamed.jpg")}
    manifest = read_voc(voc_folder(tmp_path, "\n".join(names), annotations, *files))
    assert says(manifest) == {file: f"c{number}" for number, file in enumerate(files)}
    assert manifest.image_ids == files
    assert any("1 images found by the <filename>" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        ("a 1\nb -1\nc  0\n", "abc"),
        ("a.jpg\nb.jpg\nc.JPG", "abc"),
        ("img 1\nimg -1", ("img 1", "img -1")),
        ("img 1 1\nimg -1 -1", ("img 1", "img -1")),
        ("x.png", ("x.png",)),
        ("\r\n a \r\n\r\nb\r\n", "ab"),
    ],
)
def test_voc_s_lists_name_images_with_flags_suffixes_and_blanks(tmp_path: Path, listing: str, names: Any) -> None:
    voc_folder(tmp_path, listing, {name: xml("cat") for name in names}, *(f"{name}.jpg" for name in names))
    assert says(read_voc(tmp_path)) == {f"{name}.jpg": "cat" for name in names}


def test_voc_s_list_that_can_be_read_in_two_ways_is_named(tmp_path: Path) -> None:
    voc_folder(tmp_path, "a 1\n", {"a": xml("cat"), "a 1": xml("dog")}, "a.jpg", "a 1.jpg")
    with pytest.raises(
        DatasetError, match="train.txt, line 1: 'a 1' may be the image of this name, or 'a' with a flag"
    ):
        read_voc(tmp_path)
    put(tmp_path, {"d/ImageSets/Main/train.txt": "a 1.jpg\n"})
    assert says(read_voc(tmp_path)) == {"a 1.jpg": "dog"}
    put(tmp_path, {"d/ImageSets/Main/train.txt": "a 1\na 1 -1"})
    assert says(read_voc(tmp_path)) == {"a.jpg": "cat", "a 1.jpg": "dog"}


def test_voc_reads_no_parts_of_objects(tmp_path: Path) -> None:
    person = "<object><part><name>head</name></part><name>\n person </name><difficult>1</difficult></object>"
    voc_folder(tmp_path, "a", {"a": f"<annotation>{person}</annotation>"}, "a.jpg")
    assert says(read_voc(tmp_path)) == {"a.jpg": "person"}


def test_voc_says_which_classes_the_files_have(tmp_path: Path) -> None:
    voc_folder(tmp_path, "a\nb", {"a": xml("plate", "cat"), "b": xml("screw")}, "a.jpg", "b.jpg")
    splits = {"train": {"root": "d", "image_set": "train"}}
    with pytest.raises(
        DatasetError,
        match="train.txt, line 1, .*a.xml: unknown class 'plate'; .*[tT]he files name 'cat', 'plate', 'screw': set "
        "dataset.classes to these",
    ) as caught:
        read(voc.VocDataset, tmp_path, splits=splits)
    assert caught.value.settings == {"classes": None}
    nothings: tuple[list[str] | None, ...] = (None, [])
    for nothing in nothings:
        assert read_voc(tmp_path, classes=nothing).class_names == ("cat", "plate", "screw")
    assert says(read_voc(tmp_path, classes=["Plate", "SCREW", "cat"], ignore_case=True)) == {
        "a.jpg": "Plate,cat",
        "b.jpg": "SCREW",
    }
    assert read(voc.VocDataset, tmp_path, splits=splits, other_classes="ignore").labels == ((7,), ())


@pytest.mark.parametrize(
    ("declared", "codec"),
    [
        ("gb2312", "gb2312"), ("GB2312", "gbk"), ("gbk", "gbk"), ("big5", "big5"), ("utf-8", "utf-8"),
        ("UTF-8", "utf-8-sig"), ("utf-16", "utf-8"), ("utf-16", "utf-16"), (None, "utf-8-sig"), (None, "utf-16"),
        ("shift_jis", "shift_jis"),
    ],
)  # fmt: skip
def test_xml_is_decoded_as_it_declares(tmp_path: Path, declared: str | None, codec: str) -> None:
    name = "鎔" if (declared, codec) == ("GB2312", "gbk") else "船"  # not in GB2312, as programs write it nonetheless
    first = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    voc_folder(tmp_path, "a", {"a": (first + xml(name)).encode(codec)}, "a.jpg")
    assert says(read_voc(tmp_path)) == {"a.jpg": name}


ENTITIES = '<!DOCTYPE a [<!ENTITY b "x"><!ENTITY c "&b;&b;">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"<?xml version='1.0'?>\n{ENTITIES}{xml('&c;')}", "a.xml, line 2: a document type .* is not read; remove it"),
        ((ENTITIES + xml("&c;")).encode("utf-16"), "a.xml, line 1: a document type"),
        (xml("&c;"), "a.xml: not XML: undefined entity"),
        ("<annotations/>", "a.xml: no annotation of VOC: its root element is <annotations>, not <annotation>"),
        ("", "a.xml: not XML: no element found"),
        (xml("船").encode("gbk"), "a.xml, line 1: not utf-8 text .*; save it as UTF-8, or declare its encoding"),
        ("<?xml version='1.0' encoding='klingon'?><annotation/>", "a.xml: .* declares 'klingon', which is no encoding"),
        ("<annotation><object/></annotation>", "a.xml, object 0: no <name>; name it, or remove the object"),
    ],
)
def test_xml_that_is_not_read_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    voc_folder(tmp_path, "a", {"a": content}, "a.jpg")
    with pytest.raises(DatasetError, match=message):
        read_voc(tmp_path)


def test_voc_s_image_that_is_listed_twice_is_named(tmp_path: Path) -> None:
    voc_folder(tmp_path, "a\na", {"a": xml("cat")}, "a.jpg")
    with pytest.raises(
        DatasetError, match="train.txt, line 2, .*a.xml: image 'a.jpg' is listed twice, first at .*line 1"
    ):
        read_voc(tmp_path)
    assert says(read_voc(tmp_path, repeated_images="merge")) == {"a.jpg": "cat"}


def test_voc_without_image_sets_takes_every_xml_file(tmp_path: Path) -> None:
    put(tmp_path, {"train/a.xml": xml("cat"), "train/sub/b.XML": xml(), **images("train/a.jpg", "train/sub/b.png")})
    put(tmp_path, images("train/c.jpg"))
    manifest = read_voc(tmp_path, splits={"train": {"root": "train"}})
    assert says(manifest) == {"a.jpg": "cat", "b.png": ""}
    assert manifest.image_ids == ("a.jpg", "sub/b.png")
    assert f"{tmp_path}/train: left out without an XML file: 1 image" in manifest.notes
    with pytest.raises(DatasetError, match="d: no XML file there; set `annotations`"):
        read_voc(put(tmp_path, images("d/a.jpg")), splits={"train": {"root": "d"}})


CAT, DOG = xml("cat"), xml("dog")
LAYOUTS: dict[str, tuple[Files, tuple[str, ...]]] = {
    "VOC2007": ({f"VOCdevkit/VOC2007/Annotations/{name}.xml": CAT for name in "abc"}
                | images(*(f"VOCdevkit/VOC2007/JPEGImages/{name}.jpg" for name in "abc"))
                | {f"VOCdevkit/VOC2007/ImageSets/Main/{name}.txt": lines for name, lines in
                   {"train": "a", "val": "b", "trainval": "a\nb", "test": "c", "cat_train": "a 1"}.items()},
                ("train", "train", "test")),
    "VOC2012": ({f"Annotations/{name}.xml": CAT for name in "ab"} | images("JPEGImages/a.jpg", "JPEGImages/b.jpg")
                | {"ImageSets/Main/train.txt": "a", "ImageSets/Main/val.txt": "b"},
                ("train", "val")),
    "roboflow": (images("train/a.jpg", "valid/b.jpg", "test/c.jpg")
                 | {"train/a.xml": CAT, "valid/b.xml": DOG, "test/c.xml": CAT}, ("train", "val", "test")),
    "labelimg": (images("a.jpg", "b.JPG") | {"a.xml": CAT, "b.xml": DOG}, ("train", "train")),
    "kaggle": (images("images/a.png", "images/b.png") | {"annotations/a.xml": CAT, "annotations/b.xml": DOG},
               ("train", "train")),
    "by split": (images("photos/train/a.png", "photos/test/b.png")
                 | {"labels/train/a.xml": CAT, "labels/test/b.xml": DOG}, ("train", "test")),
    "cvat": (images("JPEGImages/my 1.jpg") | {"Annotations/my 1.xml": CAT, "ImageSets/Main/default.txt": "my 1"},
             ("train",)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_voc_s_layouts_are_found(tmp_path: Path, layout: str) -> None:
    files, splits = LAYOUTS[layout]
    manifest = proposed(put(tmp_path, files), "voc")
    assert manifest.splits == splits
    expected = {Path(file).stem: "dog" if content == DOG else "cat" for file, content in files.items() if "xml" in file}
    assert {Path(name).stem: labels for name, labels in says(manifest).items()} == expected
    assert len(manifest.class_names) == (20 if layout == "VOC2007" else len(set(expected.values())))


def test_what_is_no_voc_is_not_proposed(tmp_path: Path) -> None:
    put(tmp_path, {"pom.xml": "<project/>", "b.xml": "", "c.xml": "<annotations/>", "Annotations/d.txt": CAT})
    assert voc.discover(Tree.of(tmp_path)) == []
