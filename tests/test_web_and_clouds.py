"""Files on web servers, on Google's and on Azure's storage, against small servers of this machine's own."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from cprfl.data import clouds, trouble, web
from cprfl.data.images import image_stamps, open_image
from cprfl.data.packed import read_packed, tar_uri
from cprfl.data.storage import Folder, local_copy, read_bytes, stamps
from cprfl.errors import StorageError, UnreadableImageError

MODIFIED = "Wed, 25 Nov 2026 10:00:00 GMT"


class Server(ThreadingHTTPServer):
    """Serves ``files`` by path; ``log`` has what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.log: list[str] = []
        self.broken = 0  # so many answers are 503
        self.has_parts = True
        self.headers = {"Last-Modified": MODIFIED}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, server = unquote(urlsplit(self.path).path), self.server
        server.log.append(self.command + " " + self.path)
        if server.broken > 0:
            server.broken -= 1
            self.answer(503, b"busy", {"Retry-After": "3600"})
        elif path.startswith("/moved/"):
            self.answer(302, b"", {"Location": path.removeprefix("/moved")})
        elif path.startswith("/forbidden/"):
            self.answer(403, b"no", {})
        elif path.startswith("/storage/v1/b/"):  # Google's
            self.google(path)
        elif "comp=list" in self.path:  # Azure's
            self.answer(200, b'<?xml version="1.0"?><EnumerationResults><Blobs/></EnumerationResults>', {})
        elif path not in server.files:
            self.answer(404, b"no such file", {"x-ms-error-code": "BlobNotFound"})
        else:
            self.part_of(server.files[path])

    do_HEAD = do_GET

    def part_of(self, content: bytes) -> None:
        wanted = self.headers.get("x-ms-range") or self.headers.get("Range")
        azures = {
            "x-ms-blob-type": "BlockBlob", "x-ms-creation-time": MODIFIED, "x-ms-lease-state": "available",
            "x-ms-lease-status": "unlocked", "x-ms-server-encrypted": "true", "x-ms-has-immutability-policy": "false",
            "x-ms-has-legal-hold": "false", "ETag": '"1"',
        }  # fmt: skip
        headers = self.server.headers | (azures if self.headers.get("x-ms-version") else {})
        if wanted is None or not self.server.has_parts:
            self.answer(200, content, headers)
            return
        first, last = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        range_of = f"bytes {first}-{first + len(part) - 1}/{len(content)}" if part else f"bytes */{len(content)}"
        self.answer(206 if part else 416, part, headers | {"Content-Range": range_of})

    def google(self, path: str) -> None:
        name = path.partition("/o/")[2]
        content = self.server.files.get(f"/{name}")
        if content is None:
            self.answer(404, b"{}", {})
        elif "alt=media" in self.path:
            self.part_of(content)
        else:
            about = {"name": name, "bucket": "bucket", "size": str(len(content)), "generation": "1"}
            self.answer(200, json.dumps(about | {"updated": "2026-11-25T10:00:00Z"}).encode(), {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def png(tmp_path: Path) -> bytes:
    Image.fromarray(np.full((8, 9, 3), 77, np.uint8)).save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def test_a_web_image_is_read_by_one_request(server: Server, tmp_path: Path) -> None:
    server.files = {"/a b/ü.png": png(tmp_path)}
    uri = f"{server.url}/a b/ü.png?size=full"
    assert open_image(uri).size == (9, 8)
    assert len(server.log) == 1
    assert open_image(f"{server.url}/moved/a b/ü.png").size == (9, 8)
    with local_copy(f"{server.url}/a b/ü.png") as path:
        assert path.read_bytes() == server.files["/a b/ü.png"]


def test_what_a_server_says_instead_of_a_file_is_told_apart(server: Server) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{server.url}/none.png")
    with pytest.raises(UnreadableImageError, match="file not found"):
        open_image(f"{server.url}/none.png")
    with pytest.raises(StorageError, match="the server answers 403") as caught:
        open_image(f"{server.url}/forbidden/a.png?signature=secret")
    assert "secret" not in str(caught.value)
    server.files = {"/page.png": b"<html>log in</html>", "/empty.png": b""}
    with pytest.raises(UnreadableImageError, match="begins with b'<html>log in"):
        open_image(f"{server.url}/page.png")
    with pytest.raises(UnreadableImageError, match="an empty file"):
        open_image(f"{server.url}/empty.png")
    with pytest.raises(StorageError, match="no credentials in a URI"):
        read_bytes(server.url.replace("//", "//me:secret@") + "/a.png")


def test_a_busy_server_is_asked_again_and_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "PATIENCE", dict.fromkeys(trouble.Trouble, 2.0))
    monkeypatch.setattr(trouble, "PATIENCE_AT_FIRST", dict.fromkeys(trouble.Trouble, 2.0))
    server.files = {"/a": b"abc"}
    server.broken = 2
    assert read_bytes(f"{server.url}/a") == b"abc"
    server.broken = 99
    start = time.monotonic()
    with pytest.raises(StorageError, match="the server answers 503"):
        read_bytes(f"{server.url}/a")
    with pytest.raises(StorageError, match="127.0.0.1:9/a: .*Connection refused"):
        read_bytes("http://127.0.0.1:9/a")
    assert time.monotonic() - start < 15


def test_a_server_that_says_nothing_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_TIMEOUT", 0.2)
    monkeypatch.setattr(trouble, "PATIENCE_AT_FIRST", dict.fromkeys(trouble.Trouble, 0.0))
    web._pool.cache_clear()
    server.files = {"/a": b"abc"}
    monkeypatch.setattr(Handler, "do_GET", lambda _: time.sleep(2))
    with pytest.raises(StorageError, match="timed out"):
        read_bytes(f"{server.url}/a")
    web._pool.cache_clear()


def test_stamps_of_web_files_change_with_them(server: Server) -> None:
    names = [f"/{number}.png" for number in range(30)]
    server.files = {name: b"x" * (number + 1) for number, name in enumerate(names)} | {"/empty": b""}
    uris = [f"{server.url}{name}" for name in [*names, "/none.png", "/empty"]]
    before = image_stamps(uris)
    assert [stamp[0] for stamp in before] == [*range(1, 31), -1, 0]
    server.headers = {"Last-Modified": "Thu, 26 Nov 2026 10:00:00 GMT"}
    later = image_stamps(uris)
    assert all(a != b for a, b in zip(before[:30], later[:30], strict=True))
    server.headers, server.has_parts = {"ETag": '"a"'}, False
    tagged = stamps(uris)
    assert [stamp[0] for stamp in tagged] == [*range(1, 31), -1, 0]
    assert tagged == stamps(uris)
    server.headers = {"ETag": '"b"'}
    assert all(a != b for a, b in zip(tagged[:30], stamps(uris)[:30], strict=True))


def test_parts_of_a_web_file_are_read_alone(server: Server, tmp_path: Path) -> None:
    image = png(tmp_path)
    server.files = {"/a.tar": bytes(100_000) + image + bytes(100_000)}
    uri = tar_uri(f"{server.url}/a.tar", 100_000, len(image), "one.png")
    assert read_packed(uri) == image
    assert open_image(uri).size == (9, 8)
    assert Folder(server.url).open("a.tar").size() == 200_000 + len(image)
    server.has_parts = False
    with pytest.raises(StorageError, match="gives no parts of a file; download it"):
        open_image(uri)
    with pytest.raises(StorageError, match="can only be read"):
        Folder(server.url).write("b", b"x")


def _read_in_another_process(uri: str, found: multiprocessing.Queue) -> None:
    found.put([read_bytes(uri) for _ in range(20)])


def test_processes_share_no_connection(server: Server) -> None:
    """Those that decode images are forked from one that has read some."""
    server.files = {"/a": b"a" * 1000, "/b": b"b" * 1000}
    assert read_bytes(f"{server.url}/a") == server.files["/a"]
    context = multiprocessing.get_context("fork")
    found: multiprocessing.Queue = context.Queue()
    process = context.Process(target=_read_in_another_process, args=(f"{server.url}/b", found))
    process.start()
    assert {read_bytes(f"{server.url}/a") for _ in range(20)} == {server.files["/a"]}
    assert {*found.get(timeout=20)} == {server.files["/b"]}
    process.join(10)


def test_googles_storage_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another process: Arrow lets no thread of this one go on while it waits for Google's server."""
    with Server() as server:
        server.files = {"/photos/a.png": png(tmp_path)}
        process = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
        process.start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        assert open_image("gs://bucket/photos/a.png").size == (9, 8)
        assert [stamp[0] for stamp in stamps(["gs://bucket/photos/a.png"])] == [len(server.files["/photos/a.png"])]
        with pytest.raises(UnreadableImageError, match="file not found"):
            open_image("gs://bucket/photos/none.png")
        process.terminate()
        process.join()


def test_googles_storage_that_cannot_be_reached_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "_GIVE_UP", timedelta(seconds=1))
    monkeypatch.setattr(trouble, "PATIENCE_AT_FIRST", dict.fromkeys(trouble.Trouble, 2.0))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StorageError, match="gs://bucket/a.png"):
        read_bytes("gs://bucket/a.png")
    assert time.monotonic() - start < 15


def test_without_googles_credentials_it_is_asked_for_what_is_public(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setattr(clouds, "_is_googles", lambda: False)
    asked: list[bool] = []
    monkeypatch.setattr(clouds.fs, "GcsFileSystem", lambda anonymous, **_: asked.append(anonymous))
    clouds.new_gcs()
    (tmp_path / "application_default_credentials.json").write_text("{}")
    clouds.new_gcs()
    assert asked == [True, False]


def test_azures_storage_is_read(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = f"AccountName=me;AccountKey=a2V5;BlobEndpoint={server.url}/me"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    server.files = {"/me/photos/a/b.png": png(tmp_path)}
    for uri in ("abfs://photos/a/b.png", "abfss://photos@me.dfs.core.windows.net/a/b.png"):
        assert open_image(uri).size == (9, 8)
        with pytest.raises(UnreadableImageError, match="file not found"):
            open_image(uri.replace("b.png", "c.png"))


def test_azure_without_credentials_is_refused_rather_than_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    uri = "abfs://photos@nobodys.dfs.core.windows.net/a.png"
    with pytest.raises(StorageError, match=r"set AZURE_STORAGE_ACCOUNT_KEY.*nobodys.blob.core.windows.net/photos"):
        read_bytes(uri)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "not base64!")
    with pytest.raises(StorageError, match="Base64"):
        read_bytes(uri)
    with pytest.raises(StorageError, match="of which account"):
        read_bytes("abfs://photos/a.png")
