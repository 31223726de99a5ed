"""The progress of a training, wherever it runs, from the metrics that reach MLflow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException

from cprfl.progress import Meter
from pipelines.background import in_background
from pipelines.tracking.sink import MetricsSink
from pipelines.tracking.store import answers, client


@contextmanager
def follow_epochs(sink: MetricsSink, epochs: int, what: str) -> Iterator[None]:
    """Show a training's progress on stderr while the block runs, its last epoch included."""
    with in_background(partial(_follow, sink, epochs, what)):
        yield


def _follow(sink: MetricsSink, epochs: int, what: str, stop: threading.Event) -> None:
    """Look once a second, and once more when the training has ended.

    A bar stands from the first epoch to the last one: what is done on folds before and after has bars of its own.
    """
    ended, shown = False, 0
    with Meter(what, epochs, "epoch") as meter:
        while not ended and shown < epochs:
            ended = stop.wait(1.0)
            history = _history(sink)
            if history and (latest := max(history, key=lambda metric: metric.step)).step != shown:
                shown = latest.step
                meter.show(shown, f"loss {latest.value:.4f}")


def _history(sink: MetricsSink) -> list[Any]:
    """The losses logged so far; none while the server is away."""
    try:
        uri = sink.tracking_uri
        return list(client(uri).get_metric_history(sink.run_id, "train/loss")) if answers(uri) else []
    except MlflowException:  # it went away in between
        return []
