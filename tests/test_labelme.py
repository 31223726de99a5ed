"""What Labelme writes is read as it was meant, or refused with its place and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.data.readers import labelme
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.labelme import LabelmeDataset
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, data_sets, says, sorted_labels, touch, write_json
from tests.labelling_tools import document, read_labelme


@EVERY_DIALECT
@given(
    data=data_sets(),
    written=st.sampled_from(["{}", "./{}", "..\\images\\{}", "../images/{}", "C:\\work\\{}", "/home/me/{}", "old-{}"]),
    as_flags=st.booleans(),
)
def test_labelme_reads_back_what_is_written(
    tmp_path: Path, data: tuple[list[str], dict[str, list[str]]], written: str, as_flags: bool
) -> None:
    classes, images = data
    root = clean(tmp_path)
    pictures = root / ("images" if "images" in written else "labels")
    touch(*(pictures / name for name in images))
    for name, labels in images.items():
        flags = {label: label in labels for label in classes} if as_flags else {}
        written_labels = [] if as_flags else labels * 2
        content = document(
            written.format(name), written_labels, flags=flags, imageData=None if written == "{}" else "AA"
        )
        write_json(root / f"labels/{name.rpartition('.')[0]}.json", content)
    manifest = read_labelme(root / "labels")
    assert says(manifest) == sorted_labels(images)
    assert not as_flags or manifest.class_names == tuple(classes)
    assert {uri.rpartition("/")[0] for uri in manifest.uris} == {str(pictures)}
    (proposal,) = labelme.discover(Tree.of(root))
    found = LabelmeDataset.model_validate(proposal.dataset, context={"data_root": str(root)}).read()
    assert {Path(name).name: labels for name, labels in says(found).items()} == sorted_labels(images)


def test_labelme_reads_folders_of_images_and_of_json_that_mirror_each_other(tmp_path: Path) -> None:
    for name in ("a/1", "b/1"):
        touch(tmp_path / f"photos/{name}.png")
        write_json(tmp_path / f"json/{name}.json", document("1.png", [name[0]]))
    manifest = read_labelme(tmp_path / "json", images=str(tmp_path / "photos"))
    assert says(manifest) == {"a/1.png": ["a"], "b/1.png": ["b"]}


def test_labelme_says_what_it_passes_over(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg", tmp_path / "2.jpg", tmp_path / "3.jpg")
    write_json(
        tmp_path / "1.json", document("1.jpg", ["cat", "__ignore__", 7], flags={"night": True, "blurred": False})
    )
    write_json(tmp_path / "2.json", document("2.jpg", []))
    write_json(tmp_path / "package.json", {"name": "x"})
    manifest = read_labelme(tmp_path)
    assert says(manifest) == {"1.jpg": ["7", "cat", "night"], "2.jpg": []}
    notes = "\n".join(manifest.notes)
    assert "1 JSON files are passed over as not labelme's, such as package.json" in notes
    assert "1 labels are flags of images: 'night' (1); dataset.flags: false" in notes
    assert "'__ignore__' (1 images) are no classes to labelme" in notes
    assert "1 images without a JSON file are left out, such as" in notes
    assert says(read_labelme(tmp_path, flags=False, unlabelled="negative")) == {
        "1.jpg": ["7", "cat"], "2.jpg": [], "3.jpg": []
    }  # fmt: skip


def test_labelme_puts_images_that_nobody_annotated_into_no_split_that_nobody_named(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/{n}.jpg" for n in range(3)))
    for split, number in (("train", 0), ("test", 1)):
        write_json(tmp_path / split / "x.json", document(f"../images/{number}.jpg", ["cat"]))
    splits = {"train": str(tmp_path / "train"), "test": str(tmp_path / "test")}
    manifest = LabelmeDataset.model_validate({"splits": splits}).read()
    assert manifest.image_ids == ("0.jpg", "1.jpg")
    assert sum("1 images without a JSON file" in note for note in manifest.notes) == 1
    with pytest.raises(DatasetError, match="2.jpg: nothing says which split it is in"):
        LabelmeDataset.model_validate({"splits": splits, "unlabelled": "negative"}).read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"shapes": []}, "1.json: no `imagePath`"),
        ({"imagePath": "1.jpg"}, "1.json: no list `shapes`"),
        (document("1.jpg", ["cat", " "]), r"1.json, shapes\[1\]: its label ' ' is no name"),
        (document("1.jpg", [None]), r"1.json, shapes\[0\]: its label None is no name"),
        (document("1.jpg", [], flags={"x": "yes"}), "`flags` .* are not names with true or false"),
        (document("9.jpg", ["cat"], imageData="AAAA"), r"9.jpg' is not there .*`imageData`.*labelme_export_json"),
        ({"images": []}, "no JSON file of labelme"),
    ],
)
def test_labelme_names_what_is_wrong(tmp_path: Path, content: Any, message: str) -> None:
    write_json(tmp_path / "1.json" if "9.jpg" not in str(content) else tmp_path / "8.json", content)
    with pytest.raises(DatasetError, match=message):
        read_labelme(tmp_path)
    (tmp_path / "2.json").write_text("{\n  x")
    with pytest.raises(DatasetError, match="2.json, line 2, column 3: not JSON"):
        read_labelme(tmp_path)
