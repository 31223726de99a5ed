"""A real MLflow server on a database in a file, which can be killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pipelines.tracking.store import answers
from tests.helpers import free_ports, wait_for


class MlflowServer:
    """On the loopback interface, always at the same port.

    Args:
        folder: of its files.
        database: a migrated one without runs, which is copied: migrations take seconds.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        (port,) = free_ports(1)
        self.folder, self.port, self.uri = folder, port, f"http://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(database, folder / "server.db")

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
        ]  # fmt: skip
        own = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        own.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            command, env=own, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(lambda: answers(self.uri))

    def kill(self) -> None:
        """End it at once, with its workers; nothing where it does not run."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
