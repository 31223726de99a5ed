"""Files of strangers: whatever is in them, they are read, or refused in words; nothing hangs, nothing fills memory."""

from __future__ import annotations

import io
import json
import os
import random
import re
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from cprfl.data.images import Reading, open_image
from cprfl.data.manifest import Manifest
from cprfl.data.readers import parquet_values, tar_members, text
from cprfl.data.readers.json_text import parse_json
from cprfl.data.readers.xml_file import parse_xml
from cprfl.errors import DatasetError, UnreadableImageError, UserError
from cprfl.experiment import AnyDataset
from cprfl.starting.reading import read_what_is_there
from tests.exports import EXPORTS, photographs

PIECES = [
    b"\0", b"[", b"{", b'"', b"<", b"&", b"null", b"-1", b"1e999", b"NaN", b"9" * 30, b"9" * 5000, b"true",
    b"\xff\xfe", b"\xed\xa0\x80", b"\n", b"\r", b";", b",", b"\t", b"\\ud800", b"\\u0000", b"\x1b[31m", b"/", b"../",
    b"\xef\xbb\xbf", b"&#0;", b":", b"s3:", b"-", b"x" * 300,
]  # fmt: skip


def settings_of(kind: str, root: Path) -> tuple[dict[str, Any], list[Path]]:
    """An export, how it is read, and its files of annotations."""
    EXPORTS[kind](root, photographs(8))
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".jpg")
    return dict(read_what_is_there(root).dataset), files or sorted(root.rglob("*.jpg"))


def read(dataset: dict[str, Any], root: Path) -> Manifest:
    found: Manifest = TypeAdapter(AnyDataset).validate_python(dict(dataset), context={"data_root": str(root)}).read()
    return found


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, Any], list[Path]]]:
    made: dict[str, tuple[Path, dict[str, Any], list[Path]]] = {}

    def export(kind: str) -> tuple[Path, dict[str, Any], list[Path]]:
        if kind not in made:
            root = tmp_path_factory.mktemp(kind) / "data"
            made[kind] = (root, *settings_of(kind, root))
        return made[kind]

    return export


def changed(content: bytes, chance: random.Random) -> bytes:
    """A file with a flipped bit, an end cut off, a piece put in, left out or said twice, or another word."""
    place = chance.randrange(len(content) + 1)
    end = min(len(content), place + chance.randrange(1, 60))
    piece = chance.choice(PIECES)
    words = list(re.finditer(rb'"[^"]*"|[\w.]+', content))
    word = chance.choice(words) if words else None
    flipped = content[: place - 1] + bytes([content[place - 1] ^ 1 << chance.randrange(8)]) + content[place:]
    return chance.choice([
        flipped if place else content, content[:place], content[:place] + piece + content[place:],
        content[:place] + content[end:], content[:end] + content[place:], content[:place] + piece + content[end:],
        content[: word.start()] + piece + content[word.end() :] if word else content,
    ])  # fmt: skip


@pytest.mark.parametrize("kind", EXPORTS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_changed_file_is_read_or_refused_in_words(
    exports: Callable[[str], tuple[Path, dict[str, Any], list[Path]]], kind: str, seed: int
) -> None:
    root, dataset, files = exports(kind)
    chance = random.Random(seed)
    path = chance.choice(files)
    sound = path.read_bytes()
    path.write_bytes(changed(sound, chance))
    try:
        for attempt in (lambda: read(dataset, root), lambda: read_what_is_there(root)):
            try:
                attempt()
            except UserError as error:
                assert str(error)
        for picture in sorted(root.rglob("*.jpg"))[:2]:
            try:
                open_image(str(picture))
            except UnreadableImageError as error:
                assert str(error)
    finally:
        path.write_bytes(sound)


@pytest.fixture
def odd_places(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """What is no file, by what it is."""
    places = {name: tmp_path / "odd" / name for name in ("pipe", "socket", "folder", "nowhere", "circle")}
    (tmp_path / "odd").mkdir()
    os.mkfifo(places["pipe"])
    places["folder"].mkdir()
    places["nowhere"].symlink_to(tmp_path / "nothing")
    places["circle"].symlink_to(places["circle"])
    with socket.socket(socket.AF_UNIX) as listening:
        with chdir(tmp_path / "odd"):  # a socket's path is short
            listening.bind("socket")
        yield places | {"device": Path("/dev/zero")}


ODD = ["pipe", "socket", "folder", "nowhere", "circle", "device"]


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_is_no_image(odd_places: dict[str, Path], odd: str) -> None:
    with pytest.raises(UnreadableImageError):
        open_image(str(odd_places[odd]))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", [kind for kind in EXPORTS if kind != "folders"])
def test_what_is_no_file_holds_no_annotations(odd_places: dict[str, Path], odd: str, kind: str, tmp_path: Path) -> None:
    if (kind, odd) == ("labelme", "folder"):
        return  # a folder below it is one to look in
    root = tmp_path / "data"
    dataset, files = settings_of(kind, root)
    files[0].unlink()
    files[0].symlink_to(odd_places[odd])
    with pytest.raises(UserError) as refused:
        read(dataset, root)
    assert files[0].name in str(refused.value)
    if len(files) == 1:  # others would tell enough
        with pytest.raises(UserError):
            read_what_is_there(root)


DEEP = 200_000


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[" * DEEP, "nested too deeply"),
        ('{"a":' * DEEP, "nested too deeply"),
        ("9" * 100_000, "digits"),
        ('["\\ud800"]', "half a character"),
        ('{"\\udfff": 1}', "half a character"),
        ("[1", "line 1"),
    ],
)
def test_json_that_python_cannot_bear_is_refused(content: str, why: str) -> None:
    for given_ in (content, content.encode()):
        with pytest.raises(DatasetError, match=why):
            parse_json(given_, "file.json")


@pytest.mark.parametrize("kind", ["coco", "labelme", "labelstudio", "yolo"])
@pytest.mark.parametrize("content", ["[" * DEEP, '{"images":' + "[" * DEEP, "names: " + "[" * DEEP, "9" * 100_000])
def test_deep_nests_and_long_numbers_end_no_reader(kind: str, content: str, tmp_path: Path) -> None:
    dataset, files = settings_of(kind, tmp_path / "data")
    for path in files:
        path.write_text(content)
    with pytest.raises(UserError):
        read(dataset, tmp_path / "data")
    with pytest.raises(UserError):
        read_what_is_there(tmp_path / "data")


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">'
    "<!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>]><annotation>&c;</annotation>"
)
OUTSIDE = '<!DOCTYPE annotation [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize("content", [LAUGHS, OUTSIDE, OUTSIDE.replace("file:", "http:")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "cp1252"])
def test_xml_with_a_document_type_is_refused(content: str, encoding: str) -> None:
    declared = "" if content.startswith("<?xml") else f'<?xml version="1.0" encoding="{encoding}"?>'
    with pytest.raises(DatasetError, match="document type"):
        parse_xml((declared + content).encode(encoding), "a.xml", "annotation", "annotation")


@pytest.mark.parametrize("encoding", ["punycode", "idna", "undefined", "zip", "hex", "rot13", "nothing"])
def test_xml_in_no_encoding_of_texts_is_refused(encoding: str) -> None:
    content = f'<?xml version="1.0" encoding="{encoding}"?><annotation/>'.encode()
    with pytest.raises(DatasetError, match="no encoding"):
        parse_xml(content, "a.xml", "annotation", "annotation")


def test_deep_xml_is_read_without_recursion() -> None:
    content = b"<annotation>" + b"<a>" * DEEP + b"</a>" * DEEP + b"</annotation>"
    assert parse_xml(content, "a.xml", "annotation", "annotation").tag == "annotation"


@pytest.mark.parametrize("kind", ["labelme", "labelstudio", "cvat", "voc", "coco", "table", "list_files", "yolo"])
def test_a_file_that_is_larger_than_any_of_its_kind_is_not_read(kind: str, tmp_path: Path) -> None:
    dataset, files = settings_of(kind, tmp_path / "data")
    size = 2**40  # of a file that takes no room on the disk, and would take it in memory
    os.truncate(files[0], size)
    with pytest.raises(UserError, match=re.escape(f"{size:,}")):
        read(dataset, tmp_path / "data")
    assert text.STRUCTURED_BYTES < text.TEXT_BYTES < size


def test_labels_in_a_tar_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, _ = settings_of("webdataset", tmp_path / "data")
    monkeypatch.setattr(tar_members, "_MOST_BYTES", 10)
    with pytest.raises(DatasetError, match=r"photo 000.json should say what labels"):
        read(dataset, tmp_path / "data")


@pytest.mark.parametrize("name", ["../../up.jpg", "/abs.jpg", "a/../../b.jpg", "\\up.jpg"])
def test_a_member_of_a_tar_is_read_where_it_is_and_written_nowhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data/train.tar", "w") as tar:
        picture = io.BytesIO()
        Image.new("RGB", (8, 8)).save(picture, "PNG")
        for member, content in ((name, picture.getvalue()), (name.replace(".jpg", ".cls"), b"dog")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    dataset = {"name": "webdataset", "splits": {"train": "train.tar"}}
    before = sorted(tmp_path.rglob("*"))
    manifest = read(dataset, tmp_path / "data")
    assert open_image(manifest.uris[0]).size == (8, 8)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_in_a_tar_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DatasetError, match="symbolic link"):
        read({"name": "webdataset", "splits": {"train": "train.tar"}}, tmp_path)


def test_a_table_whose_few_bytes_stand_for_very_many_values_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_values, "_MOST_VALUES", 1000)
    pq.write_table(
        pa.table({"image": [f"{number}.jpg" for number in range(3)], "labels": [["dog"] * 500] * 3}),
        tmp_path / "train.parquet",
    )
    with pytest.raises(DatasetError, match=r"train.parquet: 1,500 values in the column labels"):
        read({"name": "parquet", "splits": {"train": "train.parquet"}}, tmp_path)


def test_a_long_text_that_stands_in_every_row_does_not_fill_the_memory(tmp_path: Path) -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["x" * 2**21]))
    table = pa.table({"image": [f"{number}.jpg" for number in range(20_000)], "labels": names})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, dictionary_pagesize_limit=2**24, store_schema=False)
    assert path.stat().st_size < 2**20  # of 40 GB
    with pytest.raises(DatasetError, match=r"train.parquet: texts of 2,\d+,\d+ bytes a row in the column labels"):
        read({"name": "parquet", "splits": {"train": "train.parquet"}}, tmp_path)


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\0", "a\u202eb", "a\x9b1m", "\ud800"])
def test_names_that_steer_a_terminal_are_refused_without_doing_so(name: str, tmp_path: Path) -> None:
    for image, label in (("a.jpg", name), (f"{name}.jpg", "dog")):
        chosen = {"from_name": "x", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        task = {"id": 1, "data": {"image": image}, "annotations": [{"id": 1, "result": [chosen]}]}
        (tmp_path / "tasks.json").write_text(json.dumps([task]))
        with pytest.raises(DatasetError) as refused:
            read({"name": "labelstudio", "splits": {"train": "tasks.json"}}, tmp_path)
        assert not re.search("[\x00\x1b\u202e\x9b\ud800]", str(refused.value))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(chunk(kind, content) for kind, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BOMB = zlib.compress(b"x" * 2**28, 9)  # 256 MiB in 256 KiB


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (png(60_000, 60_000), "60000 x 60000 pixels are more than encoder.max_pixels"),
        (png(8, 8, (b"zTXt", b"Comment\0\0" + BOMB)), "Decompressed data too large"),
        (png(8, 8, (b"iCCP", b"icc\0\0" + BOMB)), "Decompressed data too large"),
        (png(8, 8, (b"iTXt", b"Comment\0\1\0\0\0" + BOMB)), "Decompressed data too large"),
    ],
    ids=["pixels", "text", "profile", "international text"],
)
def test_an_image_that_grows_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=why):
        open_image(str(tmp_path / "a.png"), Reading(max_pixels=1_000_000))


@pytest.mark.parametrize("form", ["EPS", "PCX", "SGI", "TGA", "ICO", "IM", "XBM", "PDF"])
def test_formats_that_nobody_trains_on_are_not_opened(form: str, tmp_path: Path) -> None:
    mode = "1" if form == "XBM" else "RGB"
    path = tmp_path / "a.jpg"  # whatever it is called
    Image.new(mode, (16, 16)).save(path, form)
    with pytest.raises(UnreadableImageError, match="no image that Pillow can read"):
        open_image(str(path))
