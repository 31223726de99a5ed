"""Data sets in tar files are read as they were written, or refused with their place and the mend."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.packed import read_packed
from cprfl.data.readers import webdataset
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.shards import expanded
from cprfl.data.readers.webdataset import WebdatasetDataset
from cprfl.data.storage import Folder
from cprfl.errors import DatasetError
from tests.data_sets import EVERY_DIALECT, clean, data_sets, says, sorted_labels, touch


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
