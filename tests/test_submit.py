"""Jobs on a real Ray head with token authentication on: what is sent, how they end, what goes wrong."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cprfl.errors import ClusterError, ConfigError
from pipelines import submit
from pipelines.cluster import jobs
from tests.helpers import call, free_ports, wait_for

ROOT = Path(__file__).parent.parent


class Head(NamedTuple):
    url: str
    token: str


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of one node of its own, which asks for a token."""
    token, (gcs, dashboard, agent, clients) = secrets.token_hex(16), free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    own = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an image: python is the one with Ray
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "PATH": own}
    url = f"http://127.0.0.1:{dashboard}"
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus", "2",
            "--port", str(gcs), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard),
            "--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(clients),
            "--object-store-memory", str(150 * 2**20), "--temp-dir", folder, "--disable-usage-stats",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        request = urllib.request.Request(f"{url}/api/version", headers={"Authorization": f"Bearer {token}"})
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(request, timeout=2).close()
                break
            except OSError:
                time.sleep(0.2)
        yield Head(url, token)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def authorised(head: Head, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    return head.url


@pytest.mark.slow
def test_a_job_runs_is_followed_and_gives_its_status(
    small_config: Path, tmp_path: Path, authorised: str, head: Head,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    common = ["--address", authorised, "--packages", "image"]
    status, out, err = call(monkeypatch, capfd, "submit", "preprocess", str(small_config), *common)
    assert status == 0, out + err
    assert (tmp_path / "outputs" / "small" / "prepared.json").exists()
    job = err.split()[1]
    status, out, _ = call(monkeypatch, capfd, "jobs", "status", job, "--address", authorised)
    assert "SUCCEEDED" in out

    # In the default environment: nodes install what the lock pins and they lack, here nothing.
    wrong = ["--address", authorised, "--set", "dataset.splits.train=nowhere.csv"]
    status, out, err = call(monkeypatch, capfd, "submit", "preprocess", str(small_config), *wrong)
    assert status == 2  # the job's own
    assert "nowhere.csv: CSV file not found" in out
    assert head.token not in out + err

    long = ["--set", "train.epochs=100000", "--set", "resources.num_workers=1", "--no-wait"]
    status, out, _ = call(monkeypatch, capfd, "submit", "train", str(small_config), *common, *long)
    assert status == 0
    job = out.strip().splitlines()[-1]
    wait_for(lambda: list((tmp_path / "outputs" / "small" / "training").glob("*/checkpoint_*")))
    assert "stopping" in call(monkeypatch, capfd, "jobs", "stop", job, "--address", authorised)[1]
    status, _, err = call(monkeypatch, capfd, "jobs", "follow", job, "--address", authorised)
    assert status == 1
    assert "STOPPED" in err


@pytest.mark.slow
def test_what_is_wrong_with_address_token_or_job_is_said(
    small_config: Path, head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another token")
    with pytest.raises(ClusterError, match=r"(?i)invalid authentication token") as caught:
        jobs.status(head.url, "some-job")
    assert "another token" not in str(caught.value)
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)
    with pytest.raises(ClusterError, match="the cluster knows no such job"):
        jobs.follow(head.url, "some-job")
    with pytest.raises(ClusterError, match="Failed to connect"):
        jobs.status("http://127.0.0.1:9", "some-job")
    with pytest.raises(ClusterError, match="expected the URL"):
        jobs.status("127.0.0.1:9", "some-job")


def test_only_what_the_cluster_can_use_is_submitted(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    nobody = "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=r"output_dir: 'outputs' is relative .* --set output_dir=/shared"):
        submit.submit(nobody, "run", Path("configs/demo.yaml"))
    with pytest.raises(ConfigError, match=r"data_root: 'data' is relative"):
        submit.submit(nobody, "run", Path("configs/own_csv.yaml"), ["output_dir=/shared/outputs", "data_root=data"])
    with pytest.raises(ConfigError, match="STAGE: got 'predict'"):
        submit.submit(nobody, "predict", small_config)
    with pytest.raises(ConfigError, match="--sweep: train takes no sweep; tune and retrain do"):
        submit.submit(nobody, "train", small_config, sweep=small_config)
    with pytest.raises(ConfigError, match="--resume: retrain goes on by itself"):
        submit.submit(nobody, "retrain", small_config, resume=True)
    with pytest.raises(ConfigError, match="--sweep: tune needs the YAML file of a sweep"):
        submit.submit(nobody, "tune", small_config)
    with pytest.raises(ConfigError, match="--env NOT_SET_HERE: not set"):
        submit.variables(["NOT_SET_HERE"])
    for secret in ("AWS_SECRET_ACCESS_KEY=abc", "HF_TOKEN=abc", "MLFLOW_TRACKING_URI=https://me:abc@host/"):
        with pytest.raises(ConfigError, match="a secret; Ray keeps") as refused:
            submit.variables([secret])
        assert "abc" not in str(refused.value)
    usual = {"A": "b=c", "TOKENIZERS_PARALLELISM": "false", "MLFLOW_TRACKING_URI": "http://host:5000"}
    assert submit.variables([f"{name}={value}" for name, value in usual.items()]) == usual


def test_the_lock_gives_every_package_that_is_needed_and_no_tool() -> None:
    locked = {line.split("==")[0].lower(): line for line in submit.locked_requirements(ROOT / "constraints.txt")}
    assert {"torch", "ray", "mlflow", "pyarrow", "aiohttp", "sqlalchemy"} <= locked.keys()
    assert not {"pytest", "moto", "ruff", "mypy"} & locked.keys()
    with pytest.raises(ConfigError, match="the lock file is not there"):
        submit.locked_requirements(ROOT / "nowhere.txt")
