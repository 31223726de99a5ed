"""Logging to MLflow from any process, also while its server is away."""

from __future__ import annotations

import json
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cprfl.data.files import write_aside
from cprfl.errors import TrackingError


@dataclass(frozen=True)
class MetricsSink:
    """Names a run, so that any process can log to it.

    What a server does not take because it is gone is kept in ``outbox``, a JSON line per step, and sent with the next
    step for which it answers.
    """

    tracking_uri: str
    run_id: str
    outbox: str

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of one step in one request, with those that are still to be sent."""
        now = int(time.time() * 1000)
        waiting = [*self._waiting(), {"metrics": metrics, "step": step, "time": now}]
        if not (answers(self.tracking_uri) and self._send(waiting)):
            with write_aside(Path(self.outbox)) as aside:
                aside.write_text("".join(f"{json.dumps(line)}\n" for line in waiting))

    def flush(self) -> None:
        """Send what is kept."""
        waiting = self._waiting()
        if waiting and not self._send(waiting):
            raise unreachable(self.tracking_uri, "stopped answering")

    def _waiting(self) -> list[dict[str, Any]]:
        outbox = Path(self.outbox)
        return [json.loads(line) for line in outbox.read_text().splitlines()] if outbox.exists() else []

    def _send(self, lines: list[dict[str, Any]]) -> bool:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException, RestException

        for line in lines:  # each is one request: a batch has a bounded size
            batch = [Metric(name, value, line["time"], line["step"]) for name, value in line["metrics"].items()]
            try:
                client(self.tracking_uri).log_batch(self.run_id, metrics=batch)
            except RestException:
                raise  # it answers, and refuses
            except MlflowException:
                return False
        Path(self.outbox).unlink(missing_ok=True)
        return True


def answers(uri: str) -> bool:
    """Whether a server answers; a file always does."""
    if not uri.startswith(("http://", "https://")):
        return True
    try:
        _ask(uri)
    except (OSError, ValueError):
        return False
    return True


def check_server(uri: str) -> None:
    try:
        _ask(uri)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: no MLflow server answers at {without_password(uri)} ({reason}); start it, or "
            "unset the variable to use a sqlite file under output_dir"
        ) from None


def _ask(uri: str) -> None:
    with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
        pass


def unreachable(uri: str, what: str) -> TrackingError:
    return TrackingError(
        f"MLFLOW_TRACKING_URI: the MLflow server at {without_password(uri)} {what}; nothing is lost: when it is back, "
        "the same command (a sweep with --resume) goes on where it stopped and sends what was kept"
    )


def without_password(uri: str) -> str:
    return uri.rpartition("@")[2]


def client(uri: str | None = None) -> Any:
    """MLflow's client of a store, or of the one that `open_store` pointed at."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
