"""Runs: opened for a block of work, found again after an interruption."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.exceptions import MlflowException

from cprfl.config import flatten
from cprfl.experiment import Experiment
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.sink import MetricsSink
from pipelines.tracking.store import Store, client, mlflow_mistakes, without_password

_PROCESS, _HOST, _KEY = "cprfl.process", "cprfl.host", "cprfl.training_key"


@dataclass(frozen=True)
class Run:
    """A run that is open in this process.

    Attributes:
        id: its id.
        sink: by which any process logs metrics as they come.
    """

    id: str
    sink: MetricsSink

    def log_results(self, metrics: dict[str, float], *artifacts: Path) -> None:
        """Log metrics that come once, and files or folders."""
        mlflow.log_metrics(mlflow_names(metrics))
        for artifact in artifacts:
            if artifact.is_dir():
                mlflow.log_artifacts(str(artifact), artifact.name)
            else:
                mlflow.log_artifact(str(artifact))

    def log_json(self, values: dict[str, Any], artifact: str) -> None:
        """Log values as a JSON or YAML artifact."""
        mlflow.log_dict(values, artifact)

    def log_tags(self, tags: dict[str, str]) -> None:
        """Tag the run."""
        mlflow.set_tags({name: value[:5000] for name, value in tags.items()})


@contextmanager
def open_run(
    store: Store,
    experiment: Experiment,
    *,
    run_id: str | None = None,
    tags: dict[str, str] | None = None,
    own_metrics: bool = True,
) -> Iterator[Run]:
    """A run that ends FINISHED, or FAILED where the block raises.

    ``run_id`` goes on with an earlier one; ``own_metrics`` records what this machine does meanwhile.

    Raises:
        TrackingError: where the server is gone when results are due, or the run was deleted.
    """
    experiment_id = store.experiment_id(experiment.name)
    mlflow.set_system_metrics_sampling_interval(5)
    with mlflow_mistakes(store.uri):
        close_orphans(experiment_id)
        with mlflow.start_run(
            run_id=run_id, experiment_id=experiment_id, run_name=experiment.name, log_system_metrics=own_metrics
        ) as active:
            mlflow.set_tags({**process_tags(), **_source_tags(), "protocol": experiment.protocol, **(tags or {})})
            if run_id is None:  # what an earlier run was made with stands there
                settings = experiment.model_dump(mode="json", exclude={"variants"})
                mlflow.log_params(mlflow_names(flatten(settings)))
                mlflow.log_dict(settings, "experiment.yaml")
            run = Run(active.info.run_id, metrics_sink(store, experiment, active.info.run_id))
            run.sink.flush()
            yield run
            run.sink.flush()


def close_orphans(experiment_id: str) -> None:
    """Mark runs as FAILED whose process on this machine is gone: it was killed and could not say so itself."""
    running = f"attributes.status = 'RUNNING' and tags.`{_HOST}` = '{socket.gethostname()}'"
    for run in client().search_runs([experiment_id], running):
        pid, _, started = run.data.tags[_PROCESS].partition("@")
        if not psutil.pid_exists(int(pid)) or f"{psutil.Process(int(pid)).create_time():.0f}" != started:
            client().set_terminated(run.info.run_id, "FAILED")


def process_tags() -> dict[str, str]:
    """Of a run that this process writes: where it is gone, the next command closes the run."""
    return {_PROCESS: f"{os.getpid()}@{psutil.Process().create_time():.0f}", _HOST: socket.gethostname()}


def training_tag(key: str) -> dict[str, str]:
    """The tag by which `interrupted_run` finds a run."""
    return {_KEY: key}


def metrics_sink(store: Store, experiment: Experiment, run_id: str) -> MetricsSink:
    """Where any process logs the metrics of a run of this experiment."""
    return MetricsSink(store.uri, run_id, str(experiment.folder / "unsent" / f"{run_id}.jsonl"))


def interrupted_run(store: Store, experiment: Experiment, key: str) -> str | None:
    """The newest unfinished run of this training, to go on with."""
    wanted = f"tags.`{_KEY}` = '{key}' and attributes.status != 'FINISHED'"
    with mlflow_mistakes(store.uri):
        found = client().search_runs([store.experiment_id(experiment.name)], wanted, max_results=1)
    return str(found[0].info.run_id) if found else None


def has_tags(store: Store, run_id: str, tags: dict[str, str]) -> bool:
    """Whether a run that this store knows, and that was not deleted, has these tags."""
    with mlflow_mistakes(store.uri):
        try:
            found = client().get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False  # of another store
    return found.info.lifecycle_stage == "active" and tags.items() <= found.data.tags.items()


def run_url(store: Store, run_id: str) -> str:
    """Where a browser finds a run: on the server, or on the one that `cprfl ui` starts for a store in a file."""
    server = store.uri.rstrip("/") if store.uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    scheme, _, address = server.partition("://")
    with mlflow_mistakes(store.uri):
        found = client().get_run(run_id).info
    return f"{scheme}://{without_password(address)}/#/experiments/{found.experiment_id}/runs/{run_id}"


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
