"""A Ray that we start listens on the loopback interface, asks for a token, and tells nobody what was given to it."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import psutil
import pytest
import ray
from ray.util.state import list_jobs

from cprfl.errors import ClusterError
from cprfl.experiment import load
from pipelines.background import in_background
from pipelines.cluster.connection import connect, disconnect
from pipelines.cluster.joining import INSIST, check_guarded
from pipelines.stages.train import train_stage
from tests.helpers import call, command_line

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
SECRET = "the-secret-key-of-a-bucket"
# By which code is run or read: of the GCS, the raylet, a worker, the dashboard's agent.
CALLS = (
    "NodeInfoGcsService/CheckAlive", "JobInfoGcsService/AddJob", "NodeManagerService/RequestWorkerLease",
    "CoreWorkerService/PushTask", "ReporterService/HealthCheck",
)  # fmt: skip
REFUSED, UNKNOWN = grpc.StatusCode.UNAUTHENTICATED, {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}


def ray_processes() -> list[psutil.Process]:
    """All that belongs to our Ray: this process started its guardian, and that the rest."""
    return psutil.Process().children(recursive=True)


def listening() -> list[tuple[str, str, int]]:
    """Command line, address and port of whatever in our Ray takes connections, this process among it."""
    found: list[tuple[str, str, int]] = []
    for process in [psutil.Process(), *ray_processes()]:
        try:
            sockets, line = process.net_connections("inet"), command_line(process)
        except psutil.Error:  # it ended just now
            continue
        found += [(line, *each.laddr) for each in sockets if each.status == "LISTEN"]
    return found


@pytest.mark.usefixtures("ray_session")
def test_everything_listens_on_the_loopback_interface(small_config: Path) -> None:
    """Also while it trains: the two workers of a training meet somewhere."""
    seen: set[tuple[str, str, int]] = set()

    def look(stop: object) -> None:
        while not stop.wait(0.05):  # type: ignore[attr-defined]
            seen.update(listening())

    with in_background(look):
        train_stage(load(small_config, ["resources.num_workers=2", "train.epochs=20", "decisions.folds=0"]))
    assert {"RayTrainWorker" in process for process, _, _ in seen} == {True, False}
    assert {(process, address) for process, address, _ in seen if address not in LOOPBACK} == set()


def answer(port: int, call: str, token: str | None) -> grpc.StatusCode:
    """What a stranger's call is answered with."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask = channel.unary_unary(
            f"/ray.rpc.{call}", request_serializer=lambda sent: sent, response_deserializer=lambda got: got
        )
        try:
            ask(b"", timeout=10, metadata=[("authorization", f"Bearer {token}")] if token else None)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.usefixtures("ray_session")
def test_without_the_token_nobody_is_let_in() -> None:
    ray.get(ray.remote(lambda: None).remote())  # a worker
    ports = {port: process for process, _, port in listening()}
    refused = set()
    for port in ports:
        for call_ in CALLS:
            codes = {answer(port, call_, token) for token in (None, "a" * 64)}
            assert codes <= {REFUSED} or codes <= UNKNOWN, (ports[port], call_)
            refused |= {call_} if REFUSED in codes else set()
    assert refused == set(CALLS)
    dashboard = ray._private.worker._global_node.webui_url
    for path in ("api/jobs/", "api/version", "nodes?view=summary"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://{dashboard}/{path}", timeout=10)


@pytest.fixture
def _own_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that is started with a secret in the environment and one among the options of the command."""
    disconnect()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setattr("sys.argv", ["cprfl", "train", "small.yaml", "--set", f"data_root=s3://me:{SECRET}@bucket"])
    connect(dashboard=True)


@pytest.mark.usefixtures("_own_ray")
def test_secrets_are_in_no_file_no_command_line_and_no_metadata() -> None:
    ray.get(ray.remote(lambda: None).remote())
    folder = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent
    token = (folder / "token").read_text()
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert "RAY_AUTH_TOKEN" not in os.environ
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "token").stat().st_mode & 0o777 == 0o600
    kept = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.name != "token"]
    assert len(kept) > 10  # logs
    for path in kept:
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert token.encode() not in content, path
    lines = " ".join(map(command_line, ray_processes()))
    assert "raylet" in lines
    assert token not in lines
    assert SECRET not in lines
    (job,) = list_jobs(ray.get_runtime_context().gcs_address, detail=True)
    assert job.metadata["job_name"] == "cprfl train small.yaml"
    assert SECRET not in str(job)
    disconnect()
    assert not folder.exists()
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


@pytest.mark.parametrize("mode", ["disabled", None])
def test_a_cluster_that_asks_nobody_for_a_token_is_refused(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ClusterError, match="anybody on the network runs code there as you"):
        check_guarded("10.0.0.7:6379")
    for loopback in ("127.0.0.1:6379", "[::1]:6379", "localhost:6379"):
        check_guarded(loopback)
    monkeypatch.setenv(INSIST, "1")
    check_guarded("10.0.0.7:6379")
    monkeypatch.delenv(INSIST)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_guarded("10.0.0.7:6379")


def test_the_command_line_refuses_it_too(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disconnect()
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    status, _, err = call(monkeypatch, capsys, "train", str(small_config), "--set", "resources.num_workers=1")
    assert status == 2
    assert "RAY_AUTH_MODE=token" in err
