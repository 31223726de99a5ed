"""Everything that knows MLflow: runs, metrics as they come, artifacts, the registered model."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cprfl.config import flatten
from cprfl.errors import TrackingError
from cprfl.experiment import Experiment

_PROCESS, _HOST, _KEY = "cprfl.process", "cprfl.host", "cprfl.training_key"


@dataclass(frozen=True)
class MetricsSink:
    """Names a run, so that any process can log to it."""

    tracking_uri: str
    run_id: str

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Log metrics of one step in one request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(name, value, now, step) for name, value in metrics.items()]
        _client(self.tracking_uri).log_batch(self.run_id, metrics=batch)


def tracking_uri(output_dir: str) -> str:
    """The server or store named by ``MLFLOW_TRACKING_URI``, or a sqlite file under ``output_dir``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_store(output_dir)}/mlflow.db"


def _store(output_dir: str) -> Path:
    return Path(output_dir) / "mlflow"


def open_store(experiment: Experiment) -> str:
    """Make sure that the store answers, point MLflow at it, and close what crashed runs left open.

    Returns:
        The id of the MLflow experiment, made if there is none.

    Raises:
        TrackingError: where a server does not answer.
    """
    import mlflow

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = tracking_uri(experiment.output_dir)
    location = None
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif "MLFLOW_TRACKING_URI" not in os.environ:
        store = _store(experiment.output_dir)
        store.mkdir(parents=True, exist_ok=True)
        location = (store / "artifacts").as_uri()
    use_store(uri)
    found = mlflow.get_experiment_by_name(experiment.name)
    experiment_id: str = found.experiment_id if found else mlflow.create_experiment(experiment.name, location)
    _close_orphans(experiment_id)
    return experiment_id


def use_store(uri: str) -> None:
    """Point MLflow at a store, without the environment variable that it sets beside.

    With it, the next experiment of this process would take the store for one that the user named.
    """
    import mlflow

    named = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if named is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        shown = uri.rpartition("@")[2]  # a URI may carry a password
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: no MLflow server answers at {shown} ({reason}); start it, or unset the variable to "
            "use a sqlite file under output_dir"
        ) from None


def _close_orphans(experiment_id: str) -> None:
    """Mark runs as FAILED whose process on this machine is gone: it was killed and could not say so itself."""
    client = _client()
    running = f"attributes.status = 'RUNNING' and tags.`{_HOST}` = '{socket.gethostname()}'"
    for run in client.search_runs([experiment_id], running):
        pid, _, started = run.data.tags[_PROCESS].partition("@")
        if not psutil.pid_exists(int(pid)) or f"{psutil.Process(int(pid)).create_time():.0f}" != started:
            client.set_terminated(run.info.run_id, "FAILED")


@contextmanager
def run(
    experiment: Experiment, *, run_id: str | None = None, tags: dict[str, str] | None = None
) -> Iterator[MetricsSink]:
    """An MLflow run that ends FINISHED, or FAILED where the block raises; ``run_id`` goes on with an earlier one."""
    import mlflow

    experiment_id = open_store(experiment)
    own = {_PROCESS: f"{os.getpid()}@{psutil.Process().create_time():.0f}", _HOST: socket.gethostname()}
    mlflow.set_system_metrics_sampling_interval(5)
    with mlflow.start_run(
        run_id=run_id, experiment_id=experiment_id, run_name=experiment.name, log_system_metrics=True
    ) as active:
        mlflow.set_tags({**own, **_source_tags(), "protocol": experiment.protocol, **(tags or {})})
        settings = experiment.model_dump(mode="json", exclude={"variants"})
        mlflow.log_params(flatten(settings))
        mlflow.log_dict(settings, "experiment.yaml")
        yield MetricsSink(mlflow.get_tracking_uri(), active.info.run_id)


def interrupted_run(experiment: Experiment, key: str) -> str | None:
    """The newest unfinished run of this training, to go on with."""
    experiment_id = open_store(experiment)
    wanted = f"tags.`{_KEY}` = '{key}' and attributes.status != 'FINISHED'"
    found = _client().search_runs([experiment_id], wanted, max_results=1)
    return found[0].info.run_id if found else None


def training_tag(key: str) -> dict[str, str]:
    """The tag by which `interrupted_run` finds a run."""
    return {_KEY: key}


def log_tags(tags: dict[str, str]) -> None:
    """Tag the active run."""
    import mlflow

    mlflow.set_tags(tags)


def log_evaluation(metrics: dict[str, float], *artifacts: Path) -> None:
    """Log final metrics and files of the active run."""
    import mlflow

    mlflow.log_metrics(metrics)
    for artifact in artifacts:
        (mlflow.log_artifacts if artifact.is_dir() else mlflow.log_artifact)(
            str(artifact), *([artifact.name] if artifact.is_dir() else [])
        )


def _source_tags() -> dict[str, str]:
    """The commit of the code, where it runs from a git checkout."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except FileNotFoundError:  # no git on this machine
        return {}
    return {"git_commit": done.stdout.strip()} if done.returncode == 0 else {}


@contextmanager
def follow_epochs(sink: MetricsSink, epochs: int, what: str) -> Iterator[None]:
    """Show a training's progress on stderr while the block runs, from the metrics that reach MLflow."""
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(sink, epochs, what, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _follow(sink: MetricsSink, epochs: int, what: str, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    client = _client(sink.tracking_uri)
    terminal = sys.stderr.isatty()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
        TimeElapsedColumn(), TextColumn("{task.fields[loss]}"),
        console=Console(stderr=True), disable=not terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=epochs, loss="")
        shown, last_line = 0, time.monotonic()
        while not stop.wait(1.0):
            history = client.get_metric_history(sink.run_id, "train/loss")
            if not history:
                continue
            latest = max(history, key=lambda metric: metric.step)
            bar.update(task, completed=latest.step, loss=f"loss {latest.value:.4f}")
            if not terminal and latest.step > shown and time.monotonic() - last_line > 15:
                print(f"{what}: epoch {latest.step}/{epochs}, loss {latest.value:.4f}", file=sys.stderr, flush=True)
                shown, last_line = latest.step, time.monotonic()


def _client(uri: str | None = None) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
