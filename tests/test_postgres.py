"""MLflow on a real PostgreSQL: two writers at once lose nothing, the alias moves whole, a backup is restored."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from pipelines.tracking.store import open_store
from tests.helpers import free_ports

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
WRITER = """
import sys, mlflow
from pipelines.tracking.store import open_store
name = sys.argv[1]
experiment = open_store(sys.argv[2]).experiment_id("shared")
for number in range(5):
    with mlflow.start_run(experiment_id=experiment, run_name=f"{name} {number}"):
        mlflow.log_params({"writer": name, "number": number})
        for step in range(20):
            mlflow.log_metrics({"train/loss": 1 / (step + 1), "val/mAP": float(step)}, step=step)
client = mlflow.MlflowClient()
for version in ("1", "2") * 10:
    client.set_registered_model_alias("birds", "champion", version)
"""


def postgres(*words: str | Path, input: str | None = None) -> str:
    """Run one of PostgreSQL's programs as somebody whom it serves: it refuses root."""
    assert PROGRAMS is not None
    command = [str(PROGRAMS / words[0]), *map(str, words[1:])]
    if getpass.getuser() == "root":
        command = ["runuser", "-u", "postgres", "--", *command]
    done = subprocess.run(command, capture_output=True, text=True, input=input, cwd="/", timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server() -> Iterator[list[str]]:
    """A server on the loopback interface, as the options of its programs."""
    if PROGRAMS is None:
        pytest.skip("no PostgreSQL on this machine; Debian: apt install postgresql")
    # Not below pytest's folders, which nobody but their owner may enter; the server runs as somebody else.
    with tempfile.TemporaryDirectory(prefix="cprfl-postgres-") as name:
        folder = Path(name)
        if getpass.getuser() == "root":
            shutil.chown(folder, "postgres")
        (port,) = free_ports(1)
        postgres("initdb", "-D", folder / "data", "-A", "trust", "-U", "mlflow", "--no-sync")
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder}"
        postgres("pg_ctl", "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
        try:
            yield ["-h", "127.0.0.1", "-p", str(port), "-U", "mlflow"]
        finally:
            postgres("pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")


@pytest.mark.slow
def test_two_writers_lose_nothing_and_a_backup_is_restored(
    server: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres("createdb", *server, "mlflow")
    address = f"postgresql://mlflow@127.0.0.1:{server[3]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/mlflow")
    experiment = open_store(str(tmp_path)).experiment_id("shared")
    client = mlflow.MlflowClient()
    client.create_registered_model("birds")
    for _ in range(2):
        client.create_model_version("birds", str(tmp_path))
    client.set_registered_model_alias("birds", "champion", "1")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, str(tmp_path)], env=environment, cwd=tmp_path)
        for name in ("first", "second")
    ]
    seen = set[str]()
    while any(writer.poll() is None for writer in writers):
        seen.add(str(client.get_model_version_by_alias("birds", "champion").version))  # there is one at every moment
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"1", "2"}

    def written() -> dict[str, list[float]]:
        return {
            run.info.run_name: [
                found.value for found in mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/mAP")
            ]
            for run in mlflow.MlflowClient().search_runs([experiment])
        }

    before = written()
    assert before == {
        f"{name} {n}": [float(step) for step in range(20)] for name in ("first", "second") for n in range(5)
    }
    dump = postgres("pg_dump", *server, "mlflow")
    postgres("createdb", *server, "restored")
    postgres("psql", *server, "-q", "-d", "restored", input=dump)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{address}/restored")
    open_store(str(tmp_path))
    assert written() == before
    assert str(mlflow.MlflowClient().get_model_version_by_alias("birds", "champion").version) in ("1", "2")
