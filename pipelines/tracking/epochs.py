"""The progress of a training, wherever it runs, from the metrics that reach MLflow."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.background import in_background
from pipelines.tracking.sink import MetricsSink
from pipelines.tracking.store import answers, client

_SECONDS_BETWEEN_LINES = 15


@contextmanager
def follow_epochs(sink: MetricsSink, epochs: int, what: str) -> Iterator[None]:
    """Show a training's progress on stderr while the block runs."""
    with in_background(partial(_follow, sink, epochs, what)):
        yield


def _follow(sink: MetricsSink, epochs: int, what: str, stop: threading.Event) -> None:
    terminal = sys.stderr.isatty()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
        TimeElapsedColumn(), TextColumn("{task.fields[loss]}"),
        console=Console(stderr=True), disable=not terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=epochs, loss="")
        shown, last_line = 0, time.monotonic()
        while not stop.wait(1.0):
            history = _history(sink)
            if not history:
                continue
            latest = max(history, key=lambda metric: metric.step)
            bar.update(task, completed=latest.step, loss=f"loss {latest.value:.4f}")
            if not terminal and latest.step > shown and time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                print(f"{what}: epoch {latest.step}/{epochs}, loss {latest.value:.4f}", file=sys.stderr, flush=True)
                shown, last_line = latest.step, time.monotonic()


def _history(sink: MetricsSink) -> list[Any]:
    """The losses logged so far; none while the server is away."""
    try:
        uri = sink.tracking_uri
        return list(client(uri).get_metric_history(sink.run_id, "train/loss")) if answers(uri) else []
    except MlflowException:  # it went away in between
        return []
