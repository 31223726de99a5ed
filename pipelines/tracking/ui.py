"""MLflow's own web server on a store in a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipelines.tracking.store import open_existing_store


def serve(output_dir: Path, port: int) -> None:
    """Become MLflow's web server, on the loopback interface.

    Raises:
        TrackingError: where there is no store under ``output_dir``.
    """
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the store of this folder is meant
    store = open_existing_store(str(output_dir))
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its job workers take 1 GB and are of no use here
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri,
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    os.execv(sys.executable, command)
