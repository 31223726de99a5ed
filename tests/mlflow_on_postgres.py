"""MLflow's server as `infra/compose.yaml` starts it, on a PostgreSQL of its own, with artifacts in a bucket."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from pipelines.tracking.store import answers
from tests.compose_here import COMPOSE, PROGRAMS, as_served, program
from tests.helpers import free_ports, wait_for

PASSWORD = "password-of-the-tests"


class Postgres:
    """A server on the loopback interface that asks for a password, with an empty database ``mlflow``.

    Attributes:
        environment: by which PostgreSQL's programs find it.
        uri: of the database, by which MLflow does, if the password is in ``PGPASSWORD``.
    """

    def __init__(self, folder: Path) -> None:
        (port,) = free_ports(1)
        self.folder = folder
        self.environment = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGPASSWORD": PASSWORD}
        self.uri = f"postgresql://mlflow@127.0.0.1:{port}/mlflow"

    def run(self, name: str, *words: str | Path) -> str:
        """What one of PostgreSQL's programs prints."""
        done = subprocess.run(
            as_served([program(name), *map(str, words)]), cwd="/", env={**os.environ, **self.environment},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        """Make its files, and start it."""
        data, password = self.folder / "data", self.folder / "password"
        password.write_text(PASSWORD)
        self.run("initdb", "-D", data, "-A", "scram-sha-256", "-U", "mlflow", f"--pwfile={password}", "--no-sync")
        port = self.environment["PGPORT"]
        options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-D", data, "-o", options, "-l", self.folder / "log", "-w", "start")
        self.run("createdb", "-U", "mlflow", "mlflow")

    def stop(self) -> None:
        """End it at once: its files go too."""
        self.run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")


@contextmanager
def postgres() -> Iterator[Postgres]:
    """One that lives as long as the block; the test is skipped where none is installed."""
    if PROGRAMS is None:
        pytest.skip("no PostgreSQL on this machine; Debian: apt install postgresql")
    # Not below pytest's folders, which nobody but their owner may enter; the server runs as somebody else.
    with tempfile.TemporaryDirectory(prefix="cprfl-postgres-") as name:
        if getpass.getuser() == "root":
            shutil.chown(name, "postgres")
        server = Postgres(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def mlflow_server(store: str, bucket: str, log: Path) -> Iterator[str]:
    """The address of a server that lives as long as the block.

    Args:
        store: URI of the database.
        bucket: URI of the bucket for artifacts.
        log: file for what it prints.
    """
    (port,) = free_ports(1)
    own = {
        "postgresql://mlflow@database/mlflow": store, "s3://mlflow": bucket, "0.0.0.0": "127.0.0.1",
        ":5000": f":{port}", "--workers=2": f"--workers=1 --port={port}",
    }  # fmt: skip
    service = yaml.safe_load(COMPOSE.read_text())["services"]["mlflow"]
    words = " ".join(service["command"])
    for theirs, ours in own.items():
        assert theirs in words
        words = words.replace(theirs, ours)
    environment = {**os.environ, "PGPASSWORD": PASSWORD, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", *service["entrypoint"], *words.split()]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=file, stderr=file)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(lambda: process.poll() is not None or answers(address))
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it would end in ten seconds otherwise
        process.wait()
