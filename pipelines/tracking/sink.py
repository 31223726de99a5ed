"""Logging to MLflow from any process, also while its server is away."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from cprfl.data.files import sealed, unsealed, write_text
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.store import answers, client, mlflow_mistakes, unreachable

_OF = "of"  # in a line: how many lines were written
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")  # which may go better later


@dataclass(frozen=True)
class MetricsSink:
    """Names a run, so that any process can log to it.

    What a server does not take because it is gone is kept in ``outbox``, a record per line and step, and sent with the
    next step for which it answers. A line that was damaged meanwhile is not sent, and that is said.
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
            lines = [sealed({**line, _OF: len(waiting)}) for line in waiting]
            write_text(Path(self.outbox), "".join(f"{json.dumps(line)}\n" for line in lines))

    def flush(self) -> None:
        """Send what is kept."""
        if Path(self.outbox).exists() and not self._send(self._waiting()):
            raise unreachable(self.tracking_uri, "stopped answering")

    def _waiting(self) -> list[dict[str, Any]]:
        outbox = Path(self.outbox)
        if not outbox.exists():
            return []
        found = [values for line in outbox.read_bytes().splitlines() if (values := _unsealed(line)) is not None]
        if not found or len(found) < found[0][_OF]:
            print(
                f"{outbox}: damaged; metrics of {len(found)} epochs can be sent, the others are missing in run "
                f"{self.run_id}; `cprfl run CONFIG --again` makes a run that has them all",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        return found

    def _send(self, lines: list[dict[str, Any]]) -> bool:
        for line in lines:  # each is one request: a batch has a bounded size
            named = mlflow_names(line["metrics"])
            batch = [Metric(name, value, line["time"], line["step"]) for name, value in named.items()]
            try:
                client(self.tracking_uri).log_batch(self.run_id, metrics=batch)
            except MlflowException as error:
                if answers(self.tracking_uri) and error.error_code not in PASSING:
                    raise  # it answers, and refuses: the run was deleted, for example
                return False
        Path(self.outbox).unlink(missing_ok=True)
        return True


def _unsealed(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return unsealed(values)
