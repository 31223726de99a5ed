"""Data sets in Parquet files are read as they were written, or refused with their place and the mend."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.packed import read_packed
from cprfl.data.readers import parquet_table
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.parquet_table import ParquetDataset
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, data_sets, says, sorted_labels, touch


def features(labels: Any) -> dict[str, Any]:
    described = {"image": {"_type": "Image"}, "labels": labels}
    return {"huggingface": json.dumps({"info": {"features": described}})}


def generations(names: list[str]) -> dict[str, Any]:
    """How `datasets` has described a list of class labels over the years."""
    label = {"num_classes": len(names), "names": names, "id": None, "_type": "ClassLabel"}
    return {
        "sequence": {"feature": label, "length": -1, "id": None, "_type": "Sequence"},
        "list": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "List"},
        "large": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "LargeList"},
        "short": [label],
        "card": {
            "feature": {"names": {str(n): x for n, x in enumerate(names)}, "_type": "ClassLabel"},
            "_type": "List",
        },
    }


def write_table(path: Path, columns: Mapping[str, Any], metadata: dict[str, str] | None = None, rows: int = 3) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)).replace_schema_metadata(metadata), path, row_group_size=rows)
    return str(path)


def cells(names: Sequence[str | None]) -> pa.Array:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": f"{n}".encode(), "path": name} for n, name in enumerate(names)], kind)


def read_parquet(source: str | list[str], **options: Any) -> Manifest:
    return ParquetDataset.model_validate({"splits": {"train": source}, **options}).read()


@EVERY_DIALECT
@given(data=data_sets(), form=st.sampled_from(["sequence", "list", "large", "short", "card", "names", "dictionary"]))
def test_parquet_reads_back_what_datasets_writes(
    tmp_path: Path, data: tuple[list[str], dict[str, list[str]]], form: str
) -> None:
    classes, images = data
    indices = [[classes.index(label) for label in labels] for labels in images.values()]
    labels: Any = pa.array(indices, pa.list_(pa.int64()))
    if form == "names":
        labels = pa.array(list(images.values()), pa.list_(pa.string()))
    elif form == "dictionary":
        labels = pa.array(list(images.values()), pa.list_(pa.dictionary(pa.int8(), pa.string())))
    metadata = features(generations(classes)[form]) if form in generations([]) else None
    path = write_table(clean(tmp_path) / "train.parquet", {"labels": labels, "image": cells(list(images))}, metadata)
    manifest = read_parquet(path, multi_hot=False)
    assert says(manifest) == sorted_labels(images)
    assert metadata is None or manifest.class_names == tuple(classes)
    assert [read_packed(uri) for uri in manifest.uris] == [str(n).encode() for n in range(len(images))]


def test_parquet_reads_several_files_and_splits_by_pattern_and_misses_a_shard(tmp_path: Path) -> None:
    metadata = features(generations(["cat", "dog"])["list"])
    for number in range(3):
        columns = {"image": cells([f"{number}.jpg"]), "labels": [[number % 2]]}
        write_table(tmp_path / f"data/train-0000{number}-of-00003.parquet", columns, metadata)
    write_table(tmp_path / "data/test-00000-of-00001.parquet", {"image": cells(["9.jpg"]), "labels": [[]]}, metadata)
    (proposal,) = parquet_table.discover(Tree.of(tmp_path))
    assert proposal.dataset["splits"] == {
        "train": "data/train-*-of-*.parquet", "test": "data/test-00000-of-00001.parquet"
    }  # fmt: skip
    dataset = ParquetDataset.model_validate(proposal.dataset, context={"data_root": str(tmp_path)})
    assert says(dataset.read()) == {"0.jpg": ["cat"], "1.jpg": ["dog"], "2.jpg": ["cat"], "9.jpg": []}
    (tmp_path / "data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(DatasetError, match="file 1 of 00003 is not there"):
        dataset.read()


def test_parquet_reads_labels_of_objects(tmp_path: Path) -> None:
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    boxes = [[[0.0, 0.0, 1.0, 1.0]] * 2, []]
    for form, objects, described in (
        (0, [{"bbox": boxes[0], "category": [1, 1]}, {"bbox": [], "category": []}],
         {"feature": {"bbox": {"_type": "Value"}, "category": label}, "_type": "Sequence"}),
        (1, [[{"bbox": box, "category": 1} for box in boxes[0]], []],
         {"feature": {"bbox": {"_type": "Value"}, "category": label}, "_type": "List"}),
    ):  # fmt: skip
        meta = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "objects": described}}})}
        path = write_table(tmp_path / f"{form}.parquet", {"image": cells(["a.jpg", "b.jpg"]), "objects": objects}, meta)
        assert says(read_parquet(path)) == {"a.jpg": ["dog"], "b.jpg": []}


def test_parquet_ids_are_names_where_these_tell_images_apart(tmp_path: Path) -> None:
    names = ["/root/.cache/x/a.jpg", "C:\\x\\b.jpg", "sub/c.jpg", "d.jpg", "d.jpg", None]
    path = write_table(tmp_path / "t.parquet", {"image": cells(names), "label": ["x"] * 6})
    manifest = read_parquet(path)
    assert manifest.image_ids == ("a.jpg", "b.jpg", "sub/c.jpg", "t.parquet/3", "t.parquet/4", "t.parquet/5")
    assert any("3 images have no name of their own" in note for note in manifest.notes)
    nameless = {"image": pa.array([b"1", b"2"]), "label": ["x", "y"], "file_name": ["1.jpg", "2.jpg"]}
    assert says(read_parquet(write_table(tmp_path / "n.parquet", nameless))) == {"1.jpg": ["x"], "2.jpg": ["y"]}


def test_parquet_reads_paths_of_images_that_are_files(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.jpg", tmp_path / "images/b.jpg")
    columns = {"file_name": ["a.jpg", "b.jpg"], "tags": [["x"], ["x", "y"]], "age": [1, 2]}
    write_table(tmp_path / "labels.parquet", columns)
    (proposal,) = parquet_table.discover(Tree.of(tmp_path))
    manifest = ParquetDataset.model_validate(proposal.dataset, context={"data_root": str(tmp_path)}).read()
    assert says(manifest) == {"a.jpg": ["x"], "b.jpg": ["x", "y"]}
    assert manifest.uris == (f"{tmp_path}/images/a.jpg", f"{tmp_path}/images/b.jpg")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    mixed = pa.array([{"bytes": b"x", "path": "0.jpg"}, {"bytes": None, "path": "images/a.jpg"}], kind)
    manifest = read_parquet(write_table(tmp_path / "m.parquet", {"image": mixed, "labels": [["x"], ["x"]]}))
    assert read_packed(manifest.uris[0]) == b"x"
    assert manifest.uris[1] == f"{tmp_path}/images/a.jpg"


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"labels": [[0], [1]]}, {}, "row 0: the label 0 is an index, and nothing names the classes.*label_names"),
        ({"labels": [[0], [2]]}, {"label_names": ["a", "b"]}, "row 1: class index 2 is out of range; .* 0 to 1"),
        ({"labels": [[0], [-1]]}, {"label_names": ["a", "b"]}, "row 1: the label -1 says that nobody labelled"),
        ({"labels": [[0, 1], [1, 1]]}, {"label_names": ["a", "b"]}, "row 0: .*look like a 0 or 1.*dataset.multi_hot"),
        ({"labels": [[0.0, 1.0], [1.0, 1.0]]}, {}, "look like a 0 or 1 for each class"),
        ({"labels": [[True], [False]]}, {}, "look like a 0 or 1 for each class"),
        ({"labels": [["a"], None]}, {}, "row 1: nothing in labels; an image that shows no class needs an empty list"),
        ({"labels": ["a,b", "a"]}, {}, "row 0: 'a,b' looks like several names, joined by ','.*dataset.separator"),
        ({"labels": ["['a']", "[]"]}, {}, "row 0: \"\\['a'\\]\" is a list written as text"),
        ({"labels": [["a"], ["b"]], "label": [0, 1]}, {}, "labels and label could each be the column of labels"),
        ({"kind": ["a", "b"]}, {}, "no column is known to be the column of labels; name it with dataset.labels_column"),
        ({"labels": ["a", "b"]}, {"image_column": "img"}, "no column 'img', which dataset.image_column names"),
        ({"labels": ["a", "b"], "other": cells(["x", "y"])}, {}, "image and other could each be the column of images"),
        ({"labels": [{"a": 1}, {"a": 2}]}, {}, "the column labels holds struct"),
    ],
)
def test_parquet_refuses_what_it_cannot_tell(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = write_table(tmp_path / "t.parquet", {"image": cells(["0.jpg", "1.jpg"]), **columns})
    with pytest.raises(DatasetError, match=f"t.parquet.*{message}"):
        read_parquet(path, **options)


def test_parquet_settings_decide(tmp_path: Path) -> None:
    def read(labels: Any, **options: Any) -> list[list[str]]:
        path = write_table(tmp_path / "t.parquet", {"image": cells(["0.jpg", "1.jpg"]), "labels": labels})
        return list(says(read_parquet(path, **options)).values())

    hot = [[0, 1], [1, 1]]
    assert read(hot, label_names=["a", "b"], multi_hot=True) == [["b"], ["a", "b"]]
    assert read([[False, True], [True, True]], label_names=["a", "b"], multi_hot=True) == [["b"], ["a", "b"]]
    assert read(hot, label_names=["a", "b"], multi_hot=False) == [["a", "b"], ["b"]]
    assert read(["a; b", ""], separator=";") == [["a", "b"], []]
    assert read(["tench, Tinca tinca", "crane, bird"]) == [["tench, Tinca tinca"], ["crane, bird"]]
    assert read([1, 0], label_names=["a", "b"]) == [["b"], ["a"]]


def test_parquet_refuses_names_that_disagree_damage_and_giant_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = features(generations(["cat", "dog"])["list"])
    path = write_table(tmp_path / "t.parquet", {"image": cells(["0.jpg"]), "labels": [[1]]}, metadata)
    with pytest.raises(DatasetError, match="disagrees with dataset.label_names .*'dog' and 'cow'"):
        read_parquet(path, label_names=["cat", "cow"])
    monkeypatch.setattr("cprfl.data.readers.parquet_columns._MOST_BYTES", 1)
    with pytest.raises(DatasetError, match="row group of 1 images .*row_group_size=100"):
        read_parquet(path)
    Path(path).write_bytes(b"PAR1 no")
    with pytest.raises(DatasetError, match="t.parquet: not readable as a Parquet file"):
        read_parquet(path)
    with pytest.raises(DatasetError, match="gone.parquet: Parquet file not found"):
        read_parquet(f"{tmp_path}/gone.parquet")


def test_parquet_proposes_no_table_that_is_none_of_images(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", {"labels": ["x"], "age": [1]})
    (tmp_path / "b.parquet").write_bytes(b"no")
    assert parquet_table.discover(Tree.of(tmp_path)) == []
    for config in ("red", "blue"):  # two configurations of one data set
        for split in ("train", "validation"):
            write_table(
                tmp_path / f"{config}/{split}-00000-of-00001.parquet", {"image": cells(["0.jpg"]), "label": ["x"]}
            )
    assert [sorted(p.dataset["splits"]) for p in parquet_table.discover(Tree.of(tmp_path))] == [["train", "val"]] * 2
