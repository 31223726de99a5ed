"""Data sets in tar and Parquet files are read as they were written, or refused with their place and the mend."""

from __future__ import annotations

import io
import json
import tarfile
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
from cprfl.data.readers import parquet_table, webdataset
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.parquet_table import ParquetDataset
from cprfl.data.readers.shards import expanded
from cprfl.data.readers.webdataset import WebdatasetDataset
from cprfl.data.storage import Folder
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


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def read_tar(source: str | list[str], **options: Any) -> Manifest:
    return WebdatasetDataset.model_validate({"splits": {"train": source}, **options}).read()


def as_labels(form: str, labels: list[str], classes: list[str]) -> tuple[str, bytes]:
    indices = [classes.index(label) for label in labels]
    texts = {
        "json": json.dumps({"labels": labels, "width": 3}),
        "list.json": json.dumps(labels),
        "indices.json": json.dumps({"labels": indices}),
        "txt": "\n".join(labels),
        "cls": "\n".join(labels),
        "indices.cls": ",".join(map(str, indices)),
        "blanks.cls": " ".join(map(str, indices)),
    }
    return form.rpartition(".")[2], texts[form].encode()


@EVERY_DIALECT
@given(
    data=data_sets(),
    form=st.sampled_from(["json", "list.json", "indices.json", "txt", "cls", "indices.cls", "blanks.cls"]),
    tar=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    folder=st.sampled_from(["", "./", "a.b/c/", f"{'long' * 30}/"]),
    apart=st.booleans(),
)
def test_webdataset_reads_back_what_is_written(
    tmp_path: Path, data: tuple[list[str], dict[str, list[str]]], form: str, tar: int, folder: str, apart: bool
) -> None:
    classes, images = data
    if not form.startswith(("indices", "blanks")) and all(name.isdecimal() for name in classes):
        form = "json"  # numbers in text are indices
    pictures = [(f"{folder}{name}", name.encode()) for name in images]
    written = []
    for name, labels in images.items():
        suffix, content = as_labels(form, labels, classes)
        written.append((f"{folder}{name.rpartition('.')[0]}.{suffix}", content))
    members = pictures + written if apart else [m for pair in zip(pictures, written, strict=True) for m in pair]
    root = clean(tmp_path)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    manifest = read_tar(write_tar(root / "train.tar", members, format=tar), multi_hot=False)
    assert manifest.class_names == tuple(classes)
    assert {key.removeprefix(folder.removeprefix("./")): own for key, own in says(manifest).items()} == sorted_labels(
        images
    )
    assert [read_packed(uri).decode() for uri in manifest.uris] == list(images)


def sample(key: str, labels: Any = ("x",)) -> list[tuple[str, bytes]]:
    return [(f"{key}.jpg", key.encode()), (f"{key}.json", json.dumps({"labels": labels}).encode())]


def test_webdataset_reads_shards_by_pattern_from_any_storage(root: str) -> None:
    for number in range(8, 12):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in sample("000", [f"c{number}"]) + sample(str(number), [f"c{number}"]):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        Folder(root).write(f"train-{number:06d}.tar", buffer.getvalue())
    manifest = read_tar(f"{root}/train-{{000008..000011}}.tar")
    assert manifest.image_ids[:2] == ("train-000008/000.jpg", "8.jpg")
    assert says(manifest)["11.jpg"] == ["c11"]
    assert [read_packed(uri) for uri in manifest.uris] == [
        name for number in range(8, 12) for name in (b"000", str(number).encode())
    ]
    assert says(read_tar(f"{root}/train-*.tar")) == says(manifest)
    with pytest.raises(DatasetError, match="train-000012.tar: tar file not found"):
        read_tar(f"{root}/train-{{000011..000012}}.tar")


def test_webdataset_is_found_in_its_folder(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            write_tar(tmp_path / f"{split}/{split}-{number:04d}.tar", sample(f"{split}{number}"))
    write_tar(tmp_path / "other.tar", [("a.txt", b"x")])
    (proposal,) = webdataset.discover(Tree.of(tmp_path))
    assert proposal.dataset["splits"] == {"train": "train/train-*.tar", "val": "val/val-0000.tar"}
    manifest = WebdatasetDataset.model_validate(proposal.dataset, context={"data_root": str(tmp_path)}).read()
    assert manifest.image_ids == ("train0.jpg", "train1.jpg", "val0.jpg")


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([("a.jpg", b"x"), *sample("b")], {}, r"sample a: no file of labels \(.json\); an image that shows no class"),
        ([("a.jpg", b"x")], {}, r"sample a: no labels are here \(samples have .jpg\)"),
        (sample("a", [0]), {}, "sample a: the label 0 is an index, and nothing names the classes"),
        (sample("a", [3]), {"label_names": ["x"]}, "sample a: class index 3 is out of range"),
        (sample("a", [0, "x"]), {}, "the label 0 is of type int, others are not"),
        (sample("a", None), {}, "sample a: 'None' is no list of names"),
        (sample("a", {"x": 1}), {}, "is no list of names or indices"),
        (sample("a", "x;y") + sample("b", "x"), {}, "sample a: 'x;y' looks like several names, joined by ';'"),
        ([("a.jpg", b""), ("a.json", b'{"it": []}')], {}, "no 'labels' in its JSON .*'it'.*dataset.labels_key"),
        ([("a.jpg", b""), ("a.json", b'{"tags": [], "class": []}')], {}, "no 'labels' in its JSON .*'tags', 'class'"),
        ([("a.jpg", b""), ("a.json", b"{")], {}, "sample a, line 1, column 2: not JSON"),
        ([("a.jpg", b""), ("a.cls", b"\xff")], {}, r"sample a: its labels are not UTF-8 text \(byte 0\)"),
        ([*sample("a"), ("a.cls", b"x")], {}, r".json and .cls can each be labels .*dataset.labels"),
        ([*sample("a"), ("a.png", b"")], {}, r"several images \(.jpg and .png\)"),
        ([("a.1.jpg", b""), ("a.2.jpg", b""), ("a.1.json", b"[]")], {}, "several images.*up to the first dot"),
        (sample("a") + sample("a"), {}, "a.jpg is there twice"),
        (
            [m for n in range(30) for m in [(f"{n}.jpg", b""), (f"{n}.txt", b"a dog on %d" % n)]],
            {},
            "looks like a caption",
        ),
    ],
)
def test_webdataset_refuses_what_it_cannot_tell(
    tmp_path: Path, members: list[tuple[str, bytes]], options: dict[str, Any], message: str
) -> None:
    path = write_tar(tmp_path / "t.tar", members)
    with pytest.raises(DatasetError, match=f"t.tar.*{message}"):
        read_tar(path, **options)


def test_webdataset_settings_decide(tmp_path: Path) -> None:
    members = [*sample("a"), ("a.cls", b"y"), ("a.seg.png", b"")]
    path = write_tar(tmp_path / "t.tar", members)
    assert says(read_tar(path, labels="cls", image="jpg")) == {"a.jpg": ["y"]}
    assert says(read_tar(path, labels="json", image="seg.png")) == {"a.seg.png": ["x"]}
    about = [("b.jpg", b""), ("b.json", b'{"width": 3}'), ("b.cls", b"z"), ("info.json", b"{}"), ("._b.jpg", b"")]
    manifest = read_tar(write_tar(tmp_path / "u.tar", about))
    assert says(manifest) == {"b.jpg": ["z"]}
    assert "1 samples of train have no image and are left out, such as info" in manifest.notes
    dotted = write_tar(tmp_path / "v.tar", [("my.photo.jpg", b""), ("my.photo.json", b'{"tags": ["x"], "it": ["y"]}')])
    assert says(read_tar(dotted)) == {"my.photo.jpg": ["x"]}
    assert says(read_tar(dotted, labels_key="it")) == {"my.photo.jpg": ["y"]}
    numbers = [m for n in range(2) for m in sample(str(n), [n, 1])]
    hot = write_tar(tmp_path / "w.tar", numbers)
    with pytest.raises(DatasetError, match="look like a 0 or 1"):
        read_tar(hot, label_names=["x", "y"])
    assert says(read_tar(hot, label_names=["x", "y"], multi_hot=True)) == {"0.jpg": ["y"], "1.jpg": ["x", "y"]}


def test_webdataset_refuses_archives_that_hide_samples(tmp_path: Path) -> None:
    path = Path(write_tar(tmp_path / "t.tar", sample("a") + sample("b")))
    whole = path.read_bytes()
    for content, message in (
        (whole + whole, "there is more behind the end of the archive .*tar --concatenate"),
        (whole[: 4 * 512], "cut off"),
        (whole[: 4 * 512 + 100], "cut off"),
        (b"\x1f\x8b" + whole, r"compressed \(gzip\).*unpack it to a plain .tar"),
        (b"x" * 2000, "no tar file"),
    ):
        path.write_bytes(content)
        with pytest.raises(DatasetError, match=f"t.tar: .*{message}"):
            read_tar(str(path))


def test_webdataset_follows_hard_links_and_refuses_symbolic_ones(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    write_tar(path, sample("a"))
    for kind, name in ((tarfile.LNKTYPE, "b.jpg"), (tarfile.SYMTYPE, "c.jpg")):
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg"
            tar.addfile(info)
            if kind == tarfile.LNKTYPE:
                labels = tarfile.TarInfo("b.json")
                labels.size = 5
                tar.addfile(labels, io.BytesIO(b'["y"]'))
        if kind == tarfile.LNKTYPE:
            manifest = WebdatasetDataset(splits={"train": str(path)}, repeated_images="merge").read()
            assert {read_packed(uri) for uri in manifest.uris} == {b"a"}
        else:
            with pytest.raises(DatasetError, match="c.jpg is a symbolic link.*--dereference"):
                read_tar(str(path))


@pytest.mark.parametrize(
    ("written", "files"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        (["x.tar", "x.tar", "y.tar"], ["x.tar", "y.tar"]),
        ("{x}.tar", ["{x}.tar"]),
    ],
)
def test_patterns_are_spelled_out(written: str | list[str], files: list[str]) -> None:
    assert expanded(written) == files


def test_patterns_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for pattern in ("{9..1}.tar", "{a..z}.tar", "{0..999999}.tar"):
        with pytest.raises(DatasetError, match="expected {first..last} in braces"):
            expanded(pattern)
    with pytest.raises(DatasetError, match="no file matches .*; check the pattern and data_root"):
        expanded(f"{tmp_path}/*.tar")
    touch(tmp_path / "[1]*.tar")
    assert expanded(f"{tmp_path}/[1]*.tar") == [f"{tmp_path}/[1]*.tar"]
