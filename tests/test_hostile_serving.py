"""Requests of strangers: what the server refuses, and what no answer of its shows."""

from __future__ import annotations

import base64
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from cprfl.encoders.base import ImageEncoder
from cprfl.errors import CheckpointError
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import load
from cprfl.inference.predictor import Predictor
from cprfl.models import LinearProbe
from pipelines.serving import guard
from pipelines.serving.app import create_app
from pipelines.serving.champion import Champion, Served
from pipelines.serving.guard import Impatient
from pipelines.serving.limits import Gate, Limits, RefusedError
from tests.helpers import facts_of

SECRET = "/srv/secret place/model"


class Source:
    """One version, and a second one that is damaged."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder, self.now = encoder, "1"

    def version(self) -> str:
        return self.now

    def load(self, version: str) -> Served:
        if version != "1":
            raise CheckpointError(f"{SECRET}: damaged")
        torch.manual_seed(0)
        method = LinearProbe.Config().build(facts_of(2, 6, 512))
        return Served("birds", version, Predictor(method, self.encoder, Decisions.unfitted(("a", "b"))))


@pytest.fixture
def champion(small_config: Path, tmp_path: Path) -> Champion:
    return Champion(Source(load(small_config, []).encoder.build(tmp_path)))


@pytest.fixture
def client(champion: Champion) -> Iterator[TestClient]:
    app = create_app(champion, Limits(images=3, body=2_000_000, pixels=10_000))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def picture(width: int = 8, height: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_an_image_of_too_many_pixels_is_refused_however_it_is_sent(client: TestClient) -> None:
    large, text = picture(101, 100), base64.b64encode(picture(101, 100)).decode()
    for answer in (
        client.post("/predict", content=large, headers={"Content-Type": "image/png"}),
        client.post("/predict", json={"images": [base64.b64encode(picture()).decode(), text]}),
        client.post("/predict", files=[("images", ("a.png", large, "image/png"))]),
        client.post("/attention?class_name=a", content=large, headers={"Content-Type": "image/png"}),
        client.post("/invocations", json={"instances": [text]}),
    ):
        assert answer.status_code == 413, answer.text
        assert "101 x 100 pixels are more than 10,000" in answer.json()["error"]


def test_an_image_that_says_it_has_144_megapixels_is_refused_by_default(champion: Champion) -> None:
    head = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    with TestClient(create_app(champion, Limits()), base_url="http://127.0.0.1") as client:
        answer = client.post("/predict", content=b"\x89PNG\r\n\x1a\n" + chunk, headers={"Content-Type": "image/png"})
    assert answer.status_code in (400, 413)


BOMBS = {
    "a deep list": "[" * 100_000,
    "a deep object": '{"a":' * 100_000,
    "a long number": '{"image":' + "9" * 100_000 + "}",
    "half a character": '{"image": "\\ud800"}',
    "many objects": '{"images": [' + "{}," * 100_000 + "{}]}",
    "many texts": '{"images": [' + '"",' * 100_000 + '""]}',
    "many instances": '{"instances": [' + '"",' * 100_000 + '""]}',
    "many records": '{"dataframe_records": [' + "{}," * 100_000 + "{}]}",
    "many rows": '{"dataframe_split": {"columns": ["image"], "data": [' + '[""],' * 100_000 + '[""]]}}',
    "many inputs": '{"inputs": {"image": [' + '"",' * 100_000 + '""]}}',
    "nothing": "null",
    "not a number": '{"image": NaN}',
    "a table of nothing": '{"dataframe_split": 5}',
    "lists of lists": '{"instances": [[[[["a"]]]]]}',
    "a path": '{"image": "/etc/passwd"}',
    "paths": '{"instances": ["/etc/passwd", "file:///etc/passwd", "s3://bucket/key"]}',
    "a column of numbers": '{"dataframe_split": {"columns": ["image"], "data": [[1], [2.5]]}}',
    "columns of one name": '{"dataframe_split": {"columns": ["image", "image"], "data": [["a", "b"]]}}',
}


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_json_that_means_no_good_is_refused_in_words(client: TestClient, path: str, bomb: str) -> None:
    answer = client.post(path, content=BOMBS[bomb].encode(), headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert len(answer.json()["error"]) < 1000
    assert "root:" not in answer.text
    assert "Traceback" not in answer.text
    assert "site-packages" not in answer.text


@pytest.mark.parametrize("content", [b"image\n" + b"a\n" * 100_000, b"\0\0", b'"', b"image,image\na,b\n", b"\xff"])
def test_csv_that_means_no_good_is_refused_in_words(client: TestClient, content: bytes) -> None:
    answer = client.post("/invocations", content=content, headers={"Content-Type": "text/csv"})
    assert 400 <= answer.status_code < 500, answer.text


def test_a_page_of_another_site_may_not_ask(client: TestClient) -> None:
    for origin, status in (("http://127.0.0.1", 200), ("http://evil.example", 403), ("null", 403)):
        headers = {"Content-Type": "image/png", "Origin": origin}
        assert client.post("/predict", content=picture(), headers=headers).status_code == status, origin
    assert client.post("/predict", content=picture(), headers={"Content-Type": "image/png"}).status_code == 200
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400


def test_each_answer_tells_the_browser_to_be_careful(client: TestClient) -> None:
    for path in ("/", "/docs", "/health", "/metrics", "/openapi.json", "/nowhere"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    refused = client.post("/predict", content=b"", headers={"Origin": "http://evil.example"})
    assert refused.headers["X-Content-Type-Options"] == "nosniff"


def test_a_problem_says_what_it_is_and_not_where(
    client: TestClient, champion: Champion, capsys: pytest.CaptureFixture[str]
) -> None:
    champion._source.now = "2"  # type: ignore[attr-defined]
    champion.look()
    problem = client.get("/health").json()["problem"]
    assert "damaged" in problem
    assert "/" not in problem
    assert SECRET in capsys.readouterr().err  # the log has it whole


def test_all_requests_together_hold_no_more_than_they_may() -> None:
    gate = Gate(queue=10, memory=100)
    with gate.holding() as first:
        first(60)
        with pytest.raises(RefusedError) as refused, gate.holding() as second:
            second(30)
            second(30)
        assert refused.value.status == 503
        assert gate.bytes == 60
    assert gate.bytes == 0


def test_a_connection_that_never_says_what_it_wants_is_closed(
    champion: Champion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "_PATIENCE", 0.2)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(champion, Limits()), http=Impatient, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=20) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            with socket.create_connection(listening.getsockname(), timeout=20) as quick:
                quick.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert quick.recv(12) == b"HTTP/1.1 200"
            assert slow.recv(1) == b""  # closed by the server
    finally:
        server.should_exit = True
        thread.join(20)


def test_a_head_without_end_is_refused(champion: Champion) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(champion, Limits()), http=Impatient, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=20) as sender:
            sender.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000)
            assert sender.recv(12) in (b"HTTP/1.1 400", b"")
    except ConnectionError:
        pass  # closed while it was still sending
    finally:
        server.should_exit = True
        thread.join(20)
