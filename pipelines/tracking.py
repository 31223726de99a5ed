"""Everything that knows MLflow: runs, metrics as they come, artifacts, the registered model."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import psutil

from cprfl.config import flatten
from cprfl.experiment import Experiment
from pipelines.background import in_background
from pipelines.metrics_sink import MetricsSink, answers, check_server, client, unreachable, without_password

_PROCESS, _HOST, _KEY = "cprfl.process", "cprfl.host", "cprfl.training_key"


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
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default holds a training up for minutes
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = tracking_uri(experiment.output_dir)
    location = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        store = _store(experiment.output_dir)
        store.mkdir(parents=True, exist_ok=True)
        location = (store / "artifacts").as_uri()
    use_store(uri)
    found = mlflow.get_experiment_by_name(experiment.name)
    experiment_id: str = found.experiment_id if found else mlflow.create_experiment(experiment.name, location)
    _close_orphans(experiment_id)
    return experiment_id


def use_store(uri: str) -> None:
    """Point MLflow at a store.

    A name and password in the URI go into the variables where MLflow looks for them too: a URI is printed and stored.

    Raises:
        TrackingError: where a server does not answer.
    """
    import mlflow

    server = urlsplit(uri)
    credentials, _, host = server.netloc.rpartition("@")
    if server.scheme in ("http", "https") and credentials:
        name, _, password = credentials.partition(":")
        os.environ |= {"MLFLOW_TRACKING_USERNAME": unquote(name), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
        uri = urlunsplit(server._replace(netloc=host))
    named = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # which sets the variable too
    if named is None:  # or the next experiment of this process would take the store for one that the user named
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    if server.scheme in ("http", "https"):
        check_server(uri)


def _close_orphans(experiment_id: str) -> None:
    """Mark runs as FAILED whose process on this machine is gone: it was killed and could not say so itself."""
    store = client()
    running = f"attributes.status = 'RUNNING' and tags.`{_HOST}` = '{socket.gethostname()}'"
    for run in store.search_runs([experiment_id], running):
        pid, _, started = run.data.tags[_PROCESS].partition("@")
        if not psutil.pid_exists(int(pid)) or f"{psutil.Process(int(pid)).create_time():.0f}" != started:
            store.set_terminated(run.info.run_id, "FAILED")


@contextmanager
def run(
    experiment: Experiment, *, run_id: str | None = None, tags: dict[str, str] | None = None, own_metrics: bool = True
) -> Iterator[MetricsSink]:
    """An MLflow run that ends FINISHED, or FAILED where the block raises.

    ``run_id`` goes on with an earlier one; ``own_metrics`` records what this machine does meanwhile.

    Raises:
        TrackingError: where the server is gone when results are due.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    experiment_id = open_store(experiment)
    uri = mlflow.get_tracking_uri()
    mlflow.set_system_metrics_sampling_interval(5)
    try:
        with mlflow.start_run(
            run_id=run_id, experiment_id=experiment_id, run_name=experiment.name, log_system_metrics=own_metrics
        ) as active:
            mlflow.set_tags({**process_tags(), **_source_tags(), "protocol": experiment.protocol, **(tags or {})})
            if run_id is None:  # what an earlier run was made with stands there
                settings = experiment.model_dump(mode="json", exclude={"variants"})
                mlflow.log_params({mlflow_name(name): value for name, value in flatten(settings).items()})
                mlflow.log_dict(settings, "experiment.yaml")
            sink = metrics_sink(experiment, active.info.run_id)
            sink.flush()
            yield sink
            sink.flush()
    except MlflowException:
        if answers(uri):
            raise
        raise unreachable(uri, "stopped answering") from None


def process_tags() -> dict[str, str]:
    """Of a run that this process writes: where it is gone, the next command closes the run."""
    return {_PROCESS: f"{os.getpid()}@{psutil.Process().create_time():.0f}", _HOST: socket.gethostname()}


def metrics_sink(experiment: Experiment, run_id: str) -> MetricsSink:
    """Where any process logs the metrics of a run of this experiment."""
    import mlflow

    return MetricsSink(mlflow.get_tracking_uri(), run_id, str(experiment.folder / "unsent" / f"{run_id}.jsonl"))


def interrupted_run(experiment: Experiment, key: str) -> str | None:
    """The newest unfinished run of this training, to go on with."""
    experiment_id = open_store(experiment)
    wanted = f"tags.`{_KEY}` = '{key}' and attributes.status != 'FINISHED'"
    found = client().search_runs([experiment_id], wanted, max_results=1)
    return found[0].info.run_id if found else None


def read_run_id(record: Path) -> str | None:
    """The run that an earlier process wrote down in this file, if it did."""
    return str(json.loads(record.read_text())["run_id"]) if record.exists() else None


def run_url(run_id: str) -> str:
    """Where a browser finds a run: on the server, or on the one that `cprfl ui` starts for a store in a file."""
    import mlflow

    uri = mlflow.get_tracking_uri()
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    scheme, _, address = server.partition("://")
    found = client().get_run(run_id).info
    return f"{scheme}://{without_password(address)}/#/experiments/{found.experiment_id}/runs/{run_id}"


def has_tags(run_id: str, tags: dict[str, str]) -> bool:
    """Whether a run that is still known has these tags."""
    from mlflow.exceptions import MlflowException

    try:
        found = client().get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False  # of another store
    return tags.items() <= found.items()


def training_tag(key: str) -> dict[str, str]:
    """The tag by which `interrupted_run` finds a run."""
    return {_KEY: key}


def mlflow_name(name: str) -> str:
    """The name of a metric or parameter with what MLflow does not take in names (``AP/fish & chips``) replaced."""
    return "/".join(re.sub(r"[^\w\-. :]", "_", part).strip(" .") or "_" for part in name.split("/"))


def log_tags(tags: dict[str, str]) -> None:
    """Tag the active run."""
    import mlflow

    mlflow.set_tags(tags)


def log_json(values: dict[str, Any], artifact: str) -> None:
    """Log values as a JSON or YAML artifact of the active run."""
    import mlflow

    mlflow.log_dict(values, artifact)


def log_results(metrics: dict[str, float], *artifacts: Path) -> None:
    """Log metrics that come once, and files, to the active run."""
    import mlflow

    mlflow.log_metrics({mlflow_name(name): value for name, value in metrics.items()})
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
    with in_background(partial(_follow, sink, epochs, what)):
        yield


def _follow(sink: MetricsSink, epochs: int, what: str, stop: threading.Event) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    store = client(sink.tracking_uri)
    terminal = sys.stderr.isatty()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} epochs"),
        TimeElapsedColumn(), TextColumn("{task.fields[loss]}"),
        console=Console(stderr=True), disable=not terminal, transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=epochs, loss="")
        shown, last_line = 0, time.monotonic()
        while not stop.wait(1.0):
            history = _history(store, sink)
            if not history:
                continue
            latest = max(history, key=lambda metric: metric.step)
            bar.update(task, completed=latest.step, loss=f"loss {latest.value:.4f}")
            if not terminal and latest.step > shown and time.monotonic() - last_line > 15:
                print(f"{what}: epoch {latest.step}/{epochs}, loss {latest.value:.4f}", file=sys.stderr, flush=True)
                shown, last_line = latest.step, time.monotonic()


def _history(store: Any, sink: MetricsSink) -> list[Any]:
    """The losses logged so far; none while the server is away."""
    from mlflow.exceptions import MlflowException

    try:
        return list(store.get_metric_history(sink.run_id, "train/loss")) if answers(sink.tracking_uri) else []
    except MlflowException:  # it went away in between
        return []
