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
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException

from cprfl.data.manifest import TEST, Manifest
from cprfl.environment import mendable
from cprfl.evaluation.metrics import Evaluation
from cprfl.experiment import Experiment
from cprfl.progress import standing
from pipelines.lock import is_alone
from pipelines.tracking.classes import explains, log_class_metrics, log_class_table
from pipelines.tracking.datasets import log_data_set
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.notes import DIFFERS, FAILURE, describe
from pipelines.tracking.registry import VERSION
from pipelines.tracking.sink import MetricsSink
from pipelines.tracking.store import MACHINE_LEARNING, Store, client, mlflow_mistakes, ui_address
from pipelines.tracking.titles import PARENT, difference, parameters, title

_PROCESS, _HOST, _FOLDER, _KEY = "cprfl.process", "cprfl.host", "cprfl.folder", "cprfl.training_key"


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
        """Log metrics that come once, and files or folders; what explains metrics has a run of its own below."""
        below = {name: value for name, value in metrics.items() if explains(name)}
        mlflow.log_metrics(mlflow_names({name: value for name, value in metrics.items() if name not in below}))
        if below:
            log_class_metrics(self.id, below)
        for artifact in artifacts:
            if artifact.is_dir():
                mlflow.log_artifacts(str(artifact), artifact.name)
            else:
                mlflow.log_artifact(str(artifact))

    def log_evaluation(self, evaluation: Evaluation, manifest: Manifest, *artifacts: Path) -> None:
        """Log test metrics with a table of the classes, and files."""
        self.log_results(evaluation.prefixed(TEST), *artifacts)
        log_class_table(self.id, manifest, evaluation.metrics)

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
    name: str | None = None,
    tags: dict[str, str] | None = None,
    own_metrics: bool = True,
    data: Manifest | None = None,
) -> Iterator[Run]:
    """A run that ends FINISHED, FAILED where the block raises, or KILLED where the user stops it; it is described then.

    Args:
        store: of the run.
        experiment: what runs.
        run_id: of an earlier run to go on with.
        name: of a new run; what differs from the champion's settings unless given.
        tags: of the run.
        own_metrics: whether to record what this machine does meanwhile.
        data: the run's images.

    Raises:
        TrackingError: where the server is gone when results are due, or the run was deleted.
    """
    experiment_id = store.experiment_id(experiment.name)
    mlflow.set_system_metrics_sampling_interval(5)
    with mlflow_mistakes(store.uri):
        close_orphans(experiment_id, experiment)
        place = {_FOLDER: str(experiment.placed("").folder)}
        own = {**process_tags(), **place, **_source_tags(), "protocol": experiment.protocol, **(tags or {})}
        if run_id is None:
            found = difference(store, experiment, own.get("dataset_digest"))
            name = name or title(experiment, store.family or experiment.name, found)
            own |= {DIFFERS: found.as_tag()}
        own = {key: value[:5000] for key, value in own.items()}
        if run_id is not None:  # before it says that it runs: whoever finds it so must find whose it is
            client().log_batch(run_id, tags=[RunTag(key, value) for key, value in own.items()])
        with (
            mlflow.start_run(
                run_id=run_id, experiment_id=experiment_id, run_name=name, log_system_metrics=own_metrics,
                tags=own if run_id is None else None,
            ) as active,
            _described(active.info.run_id),
        ):  # fmt: skip
            if run_id is None:  # what an earlier run was made with stands there
                mlflow.log_params(parameters(experiment))
                mlflow.log_dict(experiment.model_dump(mode="json", exclude={"variants"}), "experiment.yaml")
                if data is not None:
                    log_data_set(experiment, data)
            run = Run(active.info.run_id, metrics_sink(store, experiment, active.info.run_id))
            run.sink.flush()
            yield run
            run.sink.flush()


@contextmanager
def _described(run_id: str) -> Iterator[None]:
    """Write down what came of a run, why it failed, or that it was stopped."""
    try:
        yield
    except KeyboardInterrupt:
        mlflow.set_tag(FAILURE, f"stopped {standing()}".strip())
        describe(run_id)
        mlflow.end_run("KILLED")
        raise
    except Exception as error:
        known = mendable(error)
        if known is not None:
            mlflow.set_tag(FAILURE, f"failed: {str(known).splitlines()[0]}"[:5000])
            describe(run_id)
        raise
    tags = client().get_run(run_id).data.tags
    if FAILURE in tags:  # of an earlier attempt
        client().delete_tag(run_id, FAILURE)
    text = describe(run_id)
    if VERSION in tags:
        registered, _, version = tags[VERSION].rpartition("/")
        client().update_model_version(registered, version, text)


def close_orphans(experiment_id: str, experiment: Experiment) -> None:
    """Mark runs as FAILED whose process is gone: it was killed and could not say so itself.

    A process of this machine is looked for. That of another one is gone where it worked on the experiment on which this
    thread works alone. A run that is a part of another one has ended with it.
    """
    mine = str(experiment.placed("").folder) if is_alone(experiment) else None
    running = client().search_runs([experiment_id], "attributes.status = 'RUNNING'")
    parts = [run for run in running if _PROCESS not in run.data.tags]
    for run in (run for run in running if _PROCESS in run.data.tags):
        tags = run.data.tags
        here = tags.get(_HOST) == socket.gethostname()
        if not _lives(tags[_PROCESS]) if here else mine is not None and tags.get(_FOLDER) == mine:
            client().set_terminated(run.info.run_id, "FAILED")
    for run in parts:
        whole = run.data.tags.get(PARENT)
        if whole is not None and client().get_run(whole).info.status != "RUNNING":
            client().set_terminated(run.info.run_id, "FAILED")


def process_tags() -> dict[str, str]:
    """Of a run that this process writes: where it is gone, the next command closes the run."""
    return {_PROCESS: f"{os.getpid()}@{_began(os.getpid())}", _HOST: socket.gethostname()}


def _lives(process: str) -> bool:
    """Whether a process of this machine, as `process_tags` names it, is still there: ids are used again."""
    pid, _, began = process.partition("@")
    return psutil.pid_exists(int(pid)) and _began(int(pid)) == began


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; none where it has ended.

    psutil counts from 1970 and moves all beginnings when the clock is set.
    """
    if not psutil.LINUX:
        return f"{psutil.Process(pid).create_time():.0f}"
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else fields[18]


def training_tag(key: str) -> dict[str, str]:
    """The tag of the runs of one training."""
    return {_KEY: key}


def metrics_sink(store: Store, experiment: Experiment, run_id: str) -> MetricsSink:
    """Where any process logs the metrics of a run of this experiment."""
    return MetricsSink(store.uri, run_id, str(experiment.folder / "unsent" / f"{run_id}.jsonl"))


def has_ended_well(store: Store, run_id: str) -> bool:
    """Whether a run of this store is FINISHED."""
    with mlflow_mistakes(store.uri):
        return bool(client().get_run(run_id).info.status == "FINISHED")


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
    with mlflow_mistakes(store.uri):
        found = client().get_run(run_id).info
    return f"{ui_address(store.uri)}/#/experiments/{found.experiment_id}/runs/{run_id}?{MACHINE_LEARNING}"


def experiment_url(store: Store, name: str) -> str:
    """Where a browser finds the runs of an experiment, likewise."""
    return f"{ui_address(store.uri)}/#/experiments/{store.experiment_id(name)}/runs?{MACHINE_LEARNING}"


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
