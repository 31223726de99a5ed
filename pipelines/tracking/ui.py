"""MLflow's own web server on a store in a file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cprfl.errors import TrackingError
from pipelines.tracking.store import MACHINE_LEARNING, open_existing_store, ui_address


def serve(output_dir: Path, port: int) -> int:
    """Run MLflow's web server, on the loopback interface, until it is stopped.

    Returns:
        0 where the user stopped it; its own exit status where it ended by itself.

    Raises:
        TrackingError: where there is no store under ``output_dir``, or the port is taken.
    """
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # the store of this folder is meant
    store = open_existing_store(str(output_dir))
    _check_port(port)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its job workers take 1 GB and are of no use here
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri,
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning",
    ]  # fmt: skip
    print(f"MLflow  {ui_address(store.uri, port)}/#/experiments?{MACHINE_LEARNING}  (Ctrl-C ends it)", flush=True)
    server = subprocess.Popen(command, start_new_session=True)  # which does not hear Ctrl-C: it would say much to it
    try:
        while (status := server.poll()) is None:
            time.sleep(0.2)  # `wait` is not interrupted once polars has been imported, which MLflow does
        return status
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _check_port(port: int) -> None:
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError as error:
            raise TrackingError(
                f"--port {port}: cannot be listened on ({error.strerror}); another `cprfl ui` may have it: look at "
                f"{ui_address('', port)}, or give another, such as --port {port + 1}"
            ) from None


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the workers that it started, without a word."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
