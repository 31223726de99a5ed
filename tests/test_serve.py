"""A served model: what it answers, what it refuses, and how it keeps up with another version."""

from __future__ import annotations

import base64
import io
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from cprfl.encoders.base import ImageEncoder
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import load
from cprfl.inference.predictor import Predictor
from cprfl.models import LinearProbe
from pipelines.serving.app import create_app, is_loopback
from pipelines.serving.batching import Batcher
from pipelines.serving.champion import Champion, Served
from pipelines.serving.limits import Limits
from pipelines.serving.server import serve
from tests.helpers import call, facts_of

NAMES = ("red", "<b>green</b>", "=blue")


class Versions:
    """A source whose versions a test sets."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder, self.now, self.broken = encoder, "1", False

    def version(self) -> str:
        return self.now

    def load(self, version: str) -> Served:
        if self.broken:
            raise CheckpointError("damaged")
        torch.manual_seed(int(version))
        method = LinearProbe.Config().build(facts_of(len(NAMES), 6, 512))
        return Served("birds", version, Predictor(method, self.encoder, Decisions.unfitted(NAMES)))


@pytest.fixture
def source(small_config: Path, tmp_path: Path) -> Versions:
    return Versions(load(small_config, []).encoder.build(tmp_path))


@pytest.fixture
def champion(source: Versions) -> Champion:
    return Champion(source)


@pytest.fixture
def client(champion: Champion) -> Iterator[TestClient]:
    limits = Limits(batch=4, body=200_000, images=3, queue=8)
    with TestClient(create_app(champion, limits), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def picture(seed: int = 0, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def scores(champion: Champion, content: bytes) -> dict[str, float]:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return dict(zip(NAMES, champion.served.predictor.predict([image])[0].tolist(), strict=True))


def answered(image: dict[str, object]) -> dict[str, float]:
    return {each["name"]: each["probability"] for each in image["classes"]}  # type: ignore[attr-defined]


def test_an_image_is_answered_with_the_predictors_scores_however_it_is_sent(
    client: TestClient, champion: Champion
) -> None:
    content = picture()
    text = base64.b64encode(content).decode()
    answers = [
        client.post("/predict", content=content, headers={"Content-Type": "image/png"}),
        client.post("/predict", content=content),
        client.post("/predict", files={"images": ("../../etc/passwd", content, "image/png")}),
        client.post("/predict", json={"image": text}),
        client.post("/predict", json={"images": [text]}),
    ]
    for answer in answers:
        assert answer.status_code == 200
        found = answer.json()
        assert (found["model"], found["version"]) == ("birds", "1")
        assert answered(found["images"][0]) == pytest.approx(scores(champion, content), abs=1e-4)
        ordered = [each["probability"] for each in found["images"][0]["classes"]]
        assert ordered == sorted(ordered, reverse=True)
        assert found["images"][0]["found"] == [
            each["name"] for each in found["images"][0]["classes"] if each["probability"] >= each["threshold"]
        ]


def test_several_images_come_back_in_their_order(client: TestClient, champion: Champion) -> None:
    contents = [picture(seed) for seed in range(3)]
    answer = client.post("/predict", files=[("images", (f"{n}.png", each)) for n, each in enumerate(contents)])
    found = [answered(image) for image in answer.json()["images"]]
    for each, content in zip(found, contents, strict=True):
        assert each == pytest.approx(scores(champion, content), abs=1e-4)


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "inputs", "instances", "csv"])
def test_mlflows_protocol_is_answered_as_mlflow_does(client: TestClient, champion: Champion, form: str) -> None:
    content = picture()
    text = base64.b64encode(content).decode()
    bodies = {
        "dataframe_split": {"columns": ["image"], "data": [[text]]}, "dataframe_records": [{"image": text}],
        "inputs": {"image": [text]}, "instances": [{"image": text}],
    }  # fmt: skip
    if form == "csv":
        answer = client.post("/invocations", content=f"image\n{text}\n", headers={"Content-Type": "text/csv"})
    else:
        answer = client.post("/invocations", json={form: bodies[form]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == [pytest.approx(scores(champion, content), abs=1e-4)]


@pytest.mark.parametrize(
    ("path", "content", "kind", "status"),
    [
        ("/predict", b"no image", "image/png", 400),
        ("/predict", picture()[:200], "image/png", 400),
        ("/predict", b"", "image/png", 400),
        ("/predict", b"<html>", "text/html", 415),
        ("/predict", b"0" * 200_001, "image/png", 413),
        ("/predict", b"{", "application/json", 400),
        ("/predict", b'{"url": "http://127.0.0.1/"}', "application/json", 422),
        ("/predict", b'{"image": 5}', "application/json", 422),
        ("/predict", b'{"image": "/etc/passwd"}', "application/json", 400),
        ("/predict", b'{"image": "http://127.0.0.1:1/x.png"}', "application/json", 400),
        ("/predict", b'{"images": ["", "", "", ""]}', "application/json", 413),
        ("/predict", b'{"images": []}', "application/json", 400),
        ("/predict", b"x", "multipart/form-data", 400),
        ("/invocations", b"[1]", "application/json", 422),
        ("/invocations", b'{"dataframe_split": 5}', "application/json", 422),
        ("/invocations", b'{"inputs": {"other": ["x"]}}', "application/json", 422),
        ("/invocations", b'{"inputs": {"image": [5, null]}}', "application/json", 400),
        ("/invocations", b"image\n/etc/passwd\n", "text/csv", 400),
        ("/invocations", b"\xff\xfe", "text/csv", 400),
        ("/invocations", b"x", "image/png", 415),
        ("/attention", picture(), "image/png", 422),
        ("/attention?class_name=none", picture(), "image/png", 422),
        ("/attention?class_name=red", picture(), "image/png", 404),
        ("/attention?class_name=red&cells=9", picture(), "image/png", 422),
        ("/predict?threshold=0.3", picture(), "image/png", 422),
        ("/invocations?threshold=0.3", b"image\n", "text/csv", 422),
    ],
)
def test_what_cannot_be_scored_is_refused_with_the_reason(
    client: TestClient, path: str, content: bytes, kind: str, status: int
) -> None:
    answer = client.post(path, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert "Traceback" not in answer.text


def test_more_than_the_queue_holds_is_asked_to_come_again(champion: Champion) -> None:
    with TestClient(create_app(champion, Limits(queue=2, images=9)), base_url="http://localhost") as client:
        answer = client.post("/predict", files=[("images", (str(n), picture())) for n in range(3)])
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert client.post("/predict", content=picture()).status_code == 200


def test_only_this_machines_names_are_answered_on_loopback(client: TestClient) -> None:
    assert client.get("/health", headers={"Host": "rebound.example"}).status_code == 400
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0")


def test_the_pages_ask_nobody_else(client: TestClient) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "//" not in answer.text.replace("</", "").partition("<script>")[0].replace("<!--", "")
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/attention", "/invocations", "/health", "/metrics"} == set(paths)
    assert "image/*" in paths["/predict"]["post"]["requestBody"]["content"]


def test_health_and_metrics_say_what_answers(client: TestClient) -> None:
    health = client.get("/health").json()
    assert (health["ready"], health["version"], health["classes"]) == (True, "1", list(NAMES))
    client.post("/predict", content=picture())
    client.post("/predict", content=b"x")
    client.get("/wp-admin")
    text = client.get("/metrics").text
    for line in ('cprfl_requests_total{path="/predict",status="200"} 1.0',
                 'cprfl_requests_total{path="/predict",status="400"} 1.0',
                 'cprfl_requests_total{path="other",status="404"} 1.0',
                 'cprfl_model_info{name="birds",version="1"} 1.0', "cprfl_batch_images_count 1.0"):  # fmt: skip
        assert line in text


def test_another_version_takes_over_and_a_failing_one_does_not(
    client: TestClient, champion: Champion, source: Versions, capsys: pytest.CaptureFixture[str]
) -> None:
    source.now = "2"
    assert champion.look()
    assert client.get("/health").json()["version"] == "2"
    source.now, source.broken = "3", True
    assert not champion.look()
    assert not champion.look()
    health = client.get("/health").json()
    assert (health["version"], health["problem"]) == ("2", "damaged")
    assert capsys.readouterr().err.count("goes on answering: damaged") == 1
    source.broken = False
    assert champion.look()
    assert client.get("/health").json()["problem"] == ""


def test_no_request_fails_while_versions_change_under_eight_clients(
    client: TestClient, champion: Champion, source: Versions
) -> None:
    content = picture()
    expected = {version: source.load(version) for version in ("1", "2")}
    by_version = {
        version: served.predictor.predict([Image.open(io.BytesIO(content)).convert("RGB")])[0]
        for version, served in expected.items()
    }
    wrong: list[object] = []

    def ask() -> None:
        for _ in range(8):
            answer = client.post("/predict", content=content)
            if answer.status_code != 200:
                wrong.append(answer.text)
                continue
            found = answer.json()
            wanted = dict(zip(NAMES, by_version[found["version"]].tolist(), strict=True))
            if answered(found["images"][0]) != pytest.approx(wanted, abs=1e-4):
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for version in "212121":
        source.now = version
        champion.look()
    for thread in threads:
        thread.join()
    assert not wrong


def test_images_that_wait_together_are_scored_together(source: Versions) -> None:
    predictor, sizes = source.load("1").predictor, list[int]()
    batcher = Batcher(4, 10.0, sizes.append)
    pixels = predictor.encoder.transform.scored(Image.new("RGB", (64, 64)))
    answers = [batcher.ask(predictor, pixels) for _ in range(8)]
    assert all(answer.result(30).shape == (len(NAMES),) for answer in answers)
    batcher.close()
    assert sizes == [4, 4]


def test_images_of_two_versions_are_not_scored_together(source: Versions) -> None:
    one, two, sizes = source.load("1").predictor, source.load("2").predictor, list[int]()
    batcher = Batcher(4, 0.2, sizes.append)
    pixels = one.encoder.transform.scored(Image.new("RGB", (64, 64)))
    answers = [batcher.ask(predictor, pixels) for predictor in (one, one, two, two)]
    first, second = answers[0].result(30), answers[2].result(30)
    batcher.close()
    assert sizes == [2, 2]
    assert not np.allclose(first, second)


def test_a_batch_that_fails_is_told_to_those_who_asked_and_to_nobody_else(source: Versions) -> None:
    predictor = source.load("1").predictor
    batcher = Batcher(1, 0.0, lambda images: None)
    with pytest.raises(RuntimeError):
        batcher.ask(predictor, torch.zeros(1, 4, 64, 64)).result(30)
    assert batcher.ask(predictor, torch.zeros(1, 3, 64, 64)).result(30).shape == (len(NAMES),)
    batcher.close()


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="--port"):
            serve("nothing", tmp_path, "127.0.0.1", port, Limits())
        status, _, said = call(monkeypatch, capsys, "serve", "nothing", "--port", str(port))
        assert status == 2 and str(port) in said
