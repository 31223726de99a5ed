"""Fixtures: shared data where it is at hand, one Ray session, small experiments."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's client is imported; no test downloads
# Two processes run the tests: threads of the one would take the other's core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from pipelines.tracking.store import open_store
from tests.helpers import write_config

SHARED = Path(__file__).parent.parent.parent / "shared"


# Two processes run the tests: what starts Ray waits for its processes half of the time, so it shares one of them, in
# one session; the other takes the rest.
ON_RAY = (
    "test_on_ray", "test_two_nodes", "test_tune", "test_extraction", "test_ray_faults", "test_ray_security",
    "test_ray_mistakes", "test_kills",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # xdist's own reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what needs the suite's Ray, or a cluster of two nodes, first and into one group."""
    first = []
    for item in items:
        module = item.nodeid.partition(".py")[0].rpartition("/")[2]
        if module in ON_RAY or "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("ray"))
            first.append(item)
    chosen = set(first)
    items[:] = first + [item for item in items if item not in chosen]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data, or a skip that says so."""
    if not (SHARED / "data").exists():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture
def ray_session() -> None:
    """One Ray for the whole suite; started again where a test had to end it."""
    from pipelines.cluster.connection import connect

    connect(dashboard=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """A server that speaks S3, as the environment that names it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "access-key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-key-of-the-tests",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    server.stop()


@pytest.fixture
def bucket(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a new bucket."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    place = {"LocationConstraint": s3_server["AWS_DEFAULT_REGION"]}
    boto3.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration=place)
    return f"s3://{name}"


@pytest.fixture(params=["local", "file", "s3", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where files are kept: a folder by path or by URI, a prefix of a bucket, or fsspec's memory."""
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket')}/stores"
    folders = {"local": str(tmp_path / "stores"), "file": f"file://{tmp_path}/stores"}
    return folders.get(request.param, f"memory://{uuid.uuid4().hex}/stores")


@pytest.fixture(autouse=True)
def no_server_and_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses a server or a cluster that the environment names."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database without any run."""
    folder = tmp_path_factory.mktemp("database")
    found = os.environ.pop("MLFLOW_TRACKING_URI", None)
    open_store(str(folder))
    if found is not None:
        os.environ["MLFLOW_TRACKING_URI"] = found
    return folder / "mlflow" / "mlflow.db"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 small images of three classes: red, green or blue, some with two colours. Not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = ["image,labels"]
    for number in range(24):
        colours = sorted({number % 3, (number // 3) % 3})
        pixels = rng.integers(0, 60, size=(48, 64, 3), dtype=np.uint8)
        for half, colour in enumerate(colours):
            pixels[:, half * 32 : 64 if half == len(colours) - 1 else 32, colour] = 220
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{';'.join(('red', 'green', 'blue')[c] for c in colours)}")
    (folder / "train.csv").write_text("\n".join(rows[:17]) + "\n")
    (folder / "test.csv").write_text("\n".join([rows[0], *rows[17:]]) + "\n")
    return folder


@pytest.fixture
def own_photos(tmp_path: Path, photos: Path) -> Path:
    """A copy of the photos that the test may change."""
    return Path(shutil.copytree(photos, tmp_path / "photos"))


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the photos' features are kept, so that one test extracts them for all others."""
    return tmp_path_factory.mktemp("features")


@pytest.fixture
def small_config(tmp_path: Path, photos: Path, features: Path, database: Path) -> Path:
    """An experiment on the photos: seconds to run, in this process."""
    return write_config(tmp_path / "small.yaml", photos, database, feature_dir=str(features))


@pytest.fixture
def own_config(tmp_path: Path, own_photos: Path, database: Path) -> Path:
    """The same of the test's own copy, with features under its outputs."""
    return write_config(tmp_path / "small.yaml", own_photos, database)
