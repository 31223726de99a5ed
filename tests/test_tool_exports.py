"""What labelling tools export is read as it was written, or refused with its place and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.readers import folders, labelme, labelstudio, parquet_table, webdataset
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.folders import FoldersDataset
from cprfl.data.readers.labelme import LabelmeDataset
from cprfl.data.readers.labelstudio import LabelStudioDataset
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, data_sets, says, sorted_labels, touch, write_json


def shape(label: Any) -> dict[str, Any]:
    return {"label": label, "points": [[1, 1], [2, 2]], "shape_type": "rectangle", "flags": {"occluded": True}}


def document(image: str, labels: Sequence[Any], **changes: Any) -> dict[str, Any]:
    shapes = [shape(label) for label in labels]
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None} | changes


def read_labelme(folder: Path, **options: Any) -> Manifest:
    return LabelmeDataset.model_validate({"splits": {"train": str(folder)}, **options}).read()


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


def result(kind: str, names: Any, control: str = "choice", **changes: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": control, "to_name": "image", "value": {kind: names, "x": 1.0}, **changes}


def task(number: int, image: str, *results: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    annotations = [{"id": 10 * number + n, "was_cancelled": False, "result": own} for n, own in enumerate(results)]
    predictions = [{"result": [result("choices", ["predicted"])]}]
    return {"id": number, "data": {"image": image, "note": "x"}, "annotations": annotations,
            "predictions": predictions} | changes  # fmt: skip


def read_studio(path: str, **options: Any) -> Manifest:
    return LabelStudioDataset.model_validate({"splits": {"train": path}, **options}).read()


def in_min(number: int, image: str, labels: list[str], kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": number, "image": image, "annotator": 1, "annotation_id": number, "lead_time": 1.5}
    if kind == "choices" and labels:
        row["choice"] = labels[0] if len(labels) == 1 else {"choices": labels}
    elif labels:
        row["marks"] = [{"x": 1, kind: [label]} for label in labels]
    return row


ADDRESSES = {
    "upload": "/data/upload/3/0a1b2c3d-{}",
    "server": "http://localhost:8080/data/upload/3/0a1b2c3d-{}",
    "local": "/data/local-files/?d=photos/{}",
    "bucket": "s3://bucket/some/{}",
    "web": "https://example.org/x/{}?sign=1",
    "plain": "{}",
}


@EVERY_DIALECT
@given(
    data=data_sets(),
    kind=st.sampled_from(["choices", "rectanglelabels", "polygonlabels", "brushlabels", "labels", "keypointlabels"]),
    address=st.sampled_from(sorted(ADDRESSES)),
    is_min=st.booleans(),
)
def test_label_studio_reads_back_what_it_exports(
    tmp_path: Path, data: tuple[list[str], dict[str, list[str]]], kind: str, address: str, is_min: bool
) -> None:
    _, images = data
    root = clean(tmp_path)
    touch(*(root / "photos" / name for name in images))
    values = []
    for number, (name, labels) in enumerate(images.items()):
        uploaded = name.replace(" ", "_") if address in ("upload", "server") else name
        image = ADDRESSES[address].format(uploaded if address in ("plain", "bucket") else quote(uploaded))
        results = [result(kind, labels)] if kind == "choices" else [result(kind, [label]) for label in labels * 2]
        values.append(in_min(number, image, labels, kind) if is_min else task(number, image, results))
    path = write_json(root / "export.json", values)
    assert says(read_studio(path, images=str(root / "photos"))) == sorted_labels(images)
    (proposal,) = labelstudio.discover(Tree.of(root))
    found = LabelStudioDataset.model_validate(proposal.dataset, context={"data_root": str(root)}).read()
    assert {Path(name).name: labels for name, labels in says(found).items()} == sorted_labels(images)
    assert all(Path(uri).is_file() for uri in found.uris)


def test_label_studio_reads_addresses_where_no_folder_is_given(tmp_path: Path) -> None:
    values = [task(1, "s3://bucket/a b.jpg", [result("choices", ["x"])])]
    assert read_studio(write_json(tmp_path / "e.json", values)).uris == ("s3://bucket/a b.jpg",)


def test_label_studio_leaves_out_what_nobody_annotated(tmp_path: Path) -> None:
    values = [
        task(1, "1.jpg", [result("choices", ["cat"])]),
        task(2, "2.jpg"),
        task(3, "3.jpg", [result("choices", ["dog"])], annotations=[
            {"was_cancelled": True, "result": [result("choices", ["dog"])]}
        ]),
        task(4, "4.jpg", []),
        {"id": 5, "data": {"image": "5.jpg", "note": ""}, "completions": [{"result": [result("choices", ["cow"])]}]},
    ]  # fmt: skip
    manifest = read_studio(write_json(tmp_path / "e.json", values))
    assert says(manifest) == {"1.jpg": ["cat"], "4.jpg": [], "5.jpg": ["cow"]}
    assert any("e.json: 2 tasks without annotations are left out" in note for note in manifest.notes)
    with pytest.raises(DatasetError, match="nobody annotated any of its 1 tasks"):
        read_studio(write_json(tmp_path / "e.json", values[1:2]))


@pytest.mark.parametrize(
    ("option", "labels", "unknown"),
    [("positive", ["cat", "dog"], []), ("negative", ["cat"], []), ("unknown", ["cat"], ["dog"])],
)
def test_label_studio_joins_annotators_as_the_user_says(
    tmp_path: Path, option: str, labels: list[str], unknown: list[str]
) -> None:
    one, both = [result("choices", ["cat"])], [result("choices", ["cat", "dog"])]
    values = [task(1, "1.jpg", one, both), task(2, "2.jpg", both, both)]
    chosen = {"choices": ["cat", "dog"]}
    rows = [{"id": n, "image": f"{n}.jpg", "choice": choice} for n, choice in ((1, "cat"), (1, chosen), (2, chosen))]
    for content in (values, rows):
        path = write_json(tmp_path / "e.json", content)
        manifest = read_studio(path, disagreement=option)
        assert says(manifest) == {"1.jpg": labels, "2.jpg": ["cat", "dog"]}
        assert [manifest.class_names[label] for label in (manifest.unknown or [[]])[0]] == unknown
        assert any("annotators disagree on 1 of" in note for note in manifest.notes)
        with pytest.raises(DatasetError, match="task 1: 2 annotators disagree on 'dog'"):
            read_studio(path, disagreement="error")
    values[0]["annotations"][0]["ground_truth"] = True
    assert says(read_studio(write_json(tmp_path / "e.json", values)))["1.jpg"] == ["cat"]


def test_label_studio_tells_controls_apart(tmp_path: Path) -> None:
    box = result("rectanglelabels", ["cat"], "label", id="r1")
    values = [
        task(1, "1.jpg", [box, result("choices", ["blurred"], "state", id="r1"), result("choices", ["night"], "when"),
                          result("textarea", ["words"], "text"), {"type": "relation", "from_id": "r1"}]),
        task(2, "2.jpg", [result("taxonomy", [["animal", "dog"], ["plant"]], "kind")]),
    ]  # fmt: skip
    path = write_json(tmp_path / "e.json", values)
    manifest = read_studio(path)
    assert says(manifest) == {"1.jpg": ["cat", "night"], "2.jpg": ["animal/dog", "plant"]}
    notes = "\n".join(manifest.notes)
    assert "labels come from 3 controls: 'kind' (2), 'label' (1), 'when' (1)" in notes
    assert "choices of regions are no labels of images: 'state'" in notes
    assert says(read_studio(path, label_keys=["state"])) == {"1.jpg": ["blurred"], "2.jpg": []}
    with pytest.raises(DatasetError, match="no control 'lable' gives labels .*'label'"):
        read_studio(path, label_keys=["lable"])


def test_label_studio_finds_uploads_only_where_one_file_is_meant(tmp_path: Path) -> None:
    touch(tmp_path / "x.jpg", tmp_path / "0a1b2c3d-y.jpg", tmp_path / "y.jpg")
    values = [
        task(1, "/data/upload/1/0a1b2c3d-x.jpg", [result("choices", ["a"])]),
        task(2, "/data/upload/1/0a1b2c3d-y.jpg", [result("choices", ["b"])]),
    ]
    manifest = read_studio(write_json(tmp_path / "e.json", values), images=str(tmp_path))
    assert says(manifest) == {"x.jpg": ["a"], "0a1b2c3d-y.jpg": ["b"]}
    assert any("1 images found without Label Studio's prefix, such as" in note for note in manifest.notes)
    values[1] = task(2, "/data/upload/1/99999999-x.jpg", [result("choices", ["b"])])  # which of the two is x.jpg?
    manifest = read_studio(write_json(tmp_path / "e.json", values), images=str(tmp_path))
    assert sorted(says(manifest)) == ["0a1b2c3d-x.jpg", "99999999-x.jpg"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"images": []}, "e.json: no list of tasks; export the project as JSON or JSON-MIN"),
        ([task(1, "1.jpg", [result("choices", [None])])], "task 1: None in its choices is no name"),
        (
            [task(1, "1.jpg", [result("choices", ["x"])], data={"a": "1.jpg", "b": "2.jpg"})],
            "'a' and 'b' could each be",
        ),
        ([task(1, "1.jpg", [result("choices", ["x"])], data={"text": "x"})], "task 1: its data have 'text'.*image_key"),
        ([task(1, "1.jpg", annotations=[{"id": 1}])], "task 1: an annotation without a list `result`"),
        ([{"id": 1, "image": "1.jpg", "animal": "cat", "place": "sea"}], "which of 'animal', 'place' are labels"),
    ],
)
def test_label_studio_names_what_is_wrong(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_studio(write_json(tmp_path / "e.json", value))


def test_label_studio_min_takes_the_controls_that_are_named(tmp_path: Path) -> None:
    rows = [{"id": 1, "image": "/data/upload/1.jpg", "file": "a.jpg", "animal": "cat", "place": "sea"}]
    path = write_json(tmp_path / "e.json", rows)
    assert says(read_studio(path, label_keys=["animal"])) == {"1.jpg": ["cat"]}
    rows[0]["choice"] = "dog"
    manifest = read_studio(write_json(tmp_path / "e.json", rows))
    assert says(manifest) == {"1.jpg": ["dog"]}
    assert any("'animal', 'place' are data, not labels (dataset.label_keys)" in note for note in manifest.notes)


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


def test_no_reader_proposes_what_is_not_its_own(tmp_path: Path) -> None:
    touch(tmp_path / "images/0.jpg", tmp_path / "a.tar", tmp_path / "b.parquet")
    write_json(tmp_path / "instances.json", {"images": [], "annotations": [], "categories": []})
    write_json(tmp_path / "list.json", [{"a": 1}])
    write_json(tmp_path / "shapes.json", {"shapes": [], "data": "x"})
    (tmp_path / "broken.json").write_text('[{"annotations": "data" "annotation_id" "shapes"')
    for reader in (folders, labelme, labelstudio, parquet_table, webdataset):
        assert reader.discover(Tree.of(tmp_path)) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text("abz./", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["label", "type", "x"]), inner, max_size=2)
    ),
    max_leaves=3,
)


def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with another value somewhere in it."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 3)) == 0:
        return draw(JSON)
    place: Any = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place] = changed(draw, value[place])
    return copy


@EVERY_DIALECT
@given(data=st.data(), form=st.sampled_from(["labelme", "json", "min"]))
def test_no_json_ends_in_a_traceback(tmp_path: Path, data: st.DataObject, form: str) -> None:
    whole: dict[str, Any] = {
        "labelme": document("1.jpg", ["cat"], flags={"x": True}),
        "json": [task(1, "1.jpg", [result("choices", ["cat"])], [result("taxonomy", [["a", "b"]], id="r")])],
        "min": [in_min(1, "1.jpg", ["cat", "dog"], "choices"), in_min(2, "2.jpg", ["cat"], "rectanglelabels")],
    }
    root = clean(tmp_path)
    path = write_json(root / "e.json", changed(data.draw, whole[form]))
    try:
        manifest = read_labelme(root) if form == "labelme" else read_studio(path)
    except DatasetError as error:
        assert str(root) in str(error) or "no classes" in str(error)
    else:
        assert manifest.class_names
    for reader in (labelme, labelstudio):
        reader.discover(Tree.of(root))
