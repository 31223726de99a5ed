"""Paths and URIs: one way to join them and one way to read, on a disk, on S3 and in memory."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel

from cprfl.data import filesystems
from cprfl.data.files import write_aside
from cprfl.data.filesystems import filesystem
from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.data.readers.coco import CocoDataset
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.data.readers.list_files import ListFilesDataset
from cprfl.data.readers.voc import VocDataset
from cprfl.data.storage import DataPath, Folder, join, local_copy, parent, read_bytes, stamps
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.text import GloveText, NpzText
from cprfl.errors import StorageError

NAMES = ("cat", "dog")


@pytest.mark.parametrize(
    ("folder", "path", "expected"),
    [
        ("photos", "a.jpg", "photos/a.jpg"),
        ("photos/", "a.jpg", "photos/a.jpg"),
        ("s3://bucket/photos/", "a/b.jpg", "s3://bucket/photos/a/b.jpg"),
        ("photos", "/absolute/a.jpg", "/absolute/a.jpg"),
        ("photos", "s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("s3://bucket", "file:///a.jpg", "file:///a.jpg"),
        ("", "a.jpg", "a.jpg"),
        ("photos", ".", "photos"),
        ("photos", "", "photos"),
    ],
)
def test_a_path_goes_behind_a_folder_unless_it_is_absolute_or_a_uri(folder: str, path: str, expected: str) -> None:
    assert join(folder, path) == expected


@given(st.sampled_from(["", "/data", "s3://bucket", "rel/ative", "memory://x/"]), st.text("abc/", max_size=6))
def test_what_is_joined_twice_to_a_rooted_folder_stays(folder: str, path: str) -> None:
    once = join(folder, path)
    if "://" in once or once.startswith("/"):
        assert join("elsewhere", once) == once


def test_the_folder_of_a_file() -> None:
    assert [parent(path) for path in ("a/b.csv", "/b.csv", "b.csv", "s3://x/b.csv")] == ["a", "/", ".", "s3://x"]


def test_settings_that_are_paths_follow_data_root() -> None:
    class Section(BaseModel):
        path: DataPath

    context = {"data_root": "s3://bucket/data"}
    assert Section.model_validate({"path": "x.csv"}, context=context).path == "s3://bucket/data/x.csv"
    assert Section.model_validate({"path": "/x.csv"}, context=context).path == "/x.csv"


def test_files_are_read_the_same_way_everywhere(root: str) -> None:
    folder = Folder(root)
    folder.write("a.txt", b"hello")
    uri = join(root, "a.txt")
    assert read_bytes(uri) == b"hello"
    with local_copy(uri) as path:
        assert path.read_bytes() == b"hello"
        assert path.name == "a.txt"
    sizes = [stamp[0] for stamp in stamps([uri, join(root, "none.txt")])]
    assert sizes == [5, -1]
    for read in (read_bytes, lambda missing: local_copy(missing).__enter__()):
        with pytest.raises(FileNotFoundError):
            read(join(root, "none.txt"))


def put(root: str, name: str, content: bytes | str) -> str:
    """Write a file below the root, in a folder of its own if need be."""
    folder, _, file = join(root, name).rpartition("/")
    if not filesystems.is_remote(folder):
        filesystems.local_path(folder).mkdir(parents=True, exist_ok=True)
    Folder(folder).write(file, content.encode() if isinstance(content, str) else content)
    return join(root, name)


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    path = tmp_path / "one.png"
    Image.fromarray(np.full((8, 9, 3), 77, np.uint8)).save(path)
    return path.read_bytes()


def test_every_reader_reads_from_every_storage(root: str, png: bytes) -> None:
    for name in ("photos/a.png", "VOC/JPEGImages/a.jpg"):
        put(root, name, png)
    put(root, "labels.txt", "cat 0\ndog 1\n")
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2}],
    }
    xml = "<annotation><object><name>dog</name></object></annotation>"
    absolute = join(root, "photos/a.png")
    readers: dict[str, tuple[type[Any], dict[str, Any]]] = {
        "csv": (CsvDataset, {"splits": {"train": put(root, "t.csv", "image,labels\nphotos/a.png,dog\n")}}),
        "csv with URIs": (CsvDataset, {"splits": {"train": put(root, "u.csv", f"image,labels\n{absolute},dog\n")}}),
        "list files": (
            ListFilesDataset,
            {"splits": {"train": put(root, "l.txt", "a.png 1\n")}, "images": join(root, "photos/"),
             "labels": join(root, "labels.txt")},
        ),
        "coco": (
            CocoDataset,
            {"splits": {"train": {"annotations": put(root, "c.json", json.dumps(coco)), "images": f"{root}/photos"}}},
        ),
        "voc": (VocDataset, {"splits": {"train": {"root": join(root, "VOC"), "image_set": "t"}}, "classes": NAMES}),
    }  # fmt: skip
    put(root, "VOC/ImageSets/Main/t.txt", "a\n")
    put(root, "VOC/Annotations/a.xml", xml)
    for name, (reader, settings) in readers.items():
        classes = {"classes": list(NAMES)} if "csv" in name else {}
        manifest: Manifest = reader.model_validate(classes | settings).read()
        assert manifest.class_names == NAMES, name
        assert manifest.labels == ((1,),), name
        assert "//" not in manifest.uris[0].partition("://")[2].lstrip("/"), name
        assert open_image(manifest.uris[0]).size == (9, 8), name


def test_embeddings_and_weights_are_read_from_every_storage(root: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", classes=np.array(NAMES), key=np.eye(2, dtype=np.float32))
    npz = NpzText(path=put(root, "t.npz", (tmp_path / "t.npz").read_bytes()), key="key")
    glove = GloveText(path=put(root, "g.txt", "cat 1 0\ndog 0 1\n"))
    for text in (npz, glove):
        assert text.embed(NAMES, tmp_path).embeddings_CM.tolist() == [[1, 0], [0, 1]]
    from safetensors.torch import save_file

    encoder = CnnEncoder.Config(model="squeezenet1_1", pretrained="random").build(tmp_path)
    state = {f"features.{name.removeprefix('cnn.')}": value for name, value in encoder.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    uri = put(root, "w.safetensors", (tmp_path / "w.safetensors").read_bytes())
    assert CnnEncoder.Config(model="squeezenet1_1", weights=uri).build(tmp_path).fingerprint() == encoder.fingerprint()


@pytest.mark.parametrize(
    "uri", ["s3://key:secret@bucket/x", "s3://key@bucket/x", "abfs://account:secret@host/x", "http://me:secret@host/x"]
)
def test_credentials_in_a_uri_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="no credentials in a URI") as caught:
        filesystem(uri)
    assert "secret" not in str(caught.value)


def test_a_bucket_is_asked_for_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    _, path = filesystem("gs://bucket/a/b.jpg")
    assert path == "bucket/a/b.jpg"


def test_an_unknown_kind_of_storage_is_named() -> None:
    with pytest.raises(StorageError, match="foo://x: no such kind of storage as 'foo'"):
        read_bytes("foo://x/y")


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Also where both have the same process id: containers that share storage."""
    barrier = threading.Barrier(2)

    def write(text: str) -> None:
        with write_aside(tmp_path / "f") as aside:
            aside.write_text(text)
            barrier.wait(10)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (tmp_path / "f").read_text() in ("a", "b")
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
