"""`cprfl schedule`: Dagster's web server and daemon."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import yaml
from dagster import DagsterInvalidDefinitionError

from cprfl.errors import ConfigError
from pipelines.retraining.assets import build
from pipelines.retraining.schedules import SCHEDULES, UI_PORT, load_schedules


def serve(path: Path, home: Path, port: int, ui_port: int = 5000, host: str = "127.0.0.1") -> None:
    """Become Dagster's web server and daemon, on the loopback interface unless told otherwise.

    Args:
        path: the schedules.
        home: folder of Dagster's store.
        port: of the UI.
        ui_port: of `cprfl ui`, to which links to MLflow lead where the store is a file.
        host: address to listen on. Dagster asks nobody for a password: on others than this machine's own, whoever
            reaches it starts retrainings.

    A mistake in an experiment is said, and stops that experiment's retraining only.

    Raises:
        ConfigError: for mistakes in the schedules, or a port that is taken: Dagster would go on without its UI.
    """
    schedules = load_schedules(path)
    os.environ |= {SCHEDULES: str(path.absolute()), UI_PORT: str(ui_port)}
    try:
        build(schedules)
    except DagsterInvalidDefinitionError as error:  # a cron line or a time zone
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise ConfigError(f"--port {port}: something listens there already; give another port")
    for name, schedule in schedules.items():
        if (mistake := schedule.mistake) is not None:
            print(f"{name}: cannot be retrained until this is mended\n  {mistake}", file=sys.stderr, flush=True)
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        settings.write_text(
            yaml.safe_dump(
                {
                    "telemetry": {"enabled": False},
                    "nux": {"enabled": False},
                    "concurrency": {"runs": {"max_concurrent_runs": 1}},
                }
            )
        )
    os.environ["DAGSTER_HOME"] = str(home)
    print(f"Dagster  http://{host}:{port}  (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"{host}: other machines may start retrainings; nobody is asked for a password", file=sys.stderr)
    command = ["-m", "dagster", "dev", "-m", "pipelines.retraining.definitions", "-h", host, "-p", str(port)]
    os.execv(sys.executable, [sys.executable, *command])
