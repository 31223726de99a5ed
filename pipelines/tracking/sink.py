"""Logging to MLflow from any process, also while its server is away."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from cprfl.data.files import write_aside
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.store import answers, client, mlflow_mistakes, unreachable

_PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # which may go better later


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
        with mlflow_mistakes(self.tracking_uri):
            sent = answers(self.tracking_uri) and self._send(waiting)
        if not sent:
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
        for line in lines:  # each is one request: a batch has a bounded size
            named = mlflow_names(line["metrics"])
            batch = [Metric(name, value, line["time"], line["step"]) for name, value in named.items()]
            try:
                client(self.tracking_uri).log_batch(self.run_id, metrics=batch)
            except MlflowException as error:
                if answers(self.tracking_uri) and error.error_code not in _PASSING:
                    raise  # it answers, and refuses: the run was deleted, for example
                return False
        Path(self.outbox).unlink(missing_ok=True)
        return True
