"""What Label Studio exports is read as it was meant, or refused with its place and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.data.readers import labelstudio
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.labelstudio import LabelStudioDataset
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, data_sets, says, sorted_labels, touch, write_json
from tests.labelling_tools import in_min, read_studio, result, task

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
