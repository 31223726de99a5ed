"""Where MLflow keeps its runs: opened once by whoever starts a stage, and handed on."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from cprfl.errors import TrackingError

MACHINE_LEARNING = "workflowType=machine_learning"
"""Of an address in MLflow's UI: without it, and without the experiment's kind, it shows a page for language models."""

_KIND, _OURS = "mlflow.experimentKind", "custom_model_development"
_ARTIFACTS = "mlflow/artifacts"  # of a store in a file, under output_dir
_PLACES = {  # where MLflow's database says where files lie
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}


@dataclass(frozen=True)
class Store:
    """An MLflow store that answers, and that MLflow points at.

    Attributes:
        uri: without name and password.
        artifact_root: where the artifacts of new experiments go; the server's own place where there is one.
        family: name of the MLflow experiment that takes all runs; each experiment has its own unless given.
    """

    uri: str
    artifact_root: str | None
    family: str | None = None
    _experiments: dict[str, str] = field(default_factory=dict)

    def of_family(self, name: str) -> Store:
        """This store with all runs in the MLflow experiment of this name: variants stand beside what they vary."""
        return replace(self, family=name)

    def experiment_id(self, name: str) -> str:
        """The id of the MLflow experiment for an experiment of this name, made if there is none.

        Raises:
            TrackingError: where it was deleted in MLflow.
        """
        name = self.family or name
        if name not in self._experiments:
            with mlflow_mistakes(self.uri):
                found = mlflow.get_experiment_by_name(name)
                if found is not None and found.lifecycle_stage == "deleted":
                    raise TrackingError(
                        f"MLflow's experiment {name!r} was deleted; restore it with `mlflow experiments restore "
                        f"--experiment-id {found.experiment_id}` (MLFLOW_TRACKING_URI={self.uri}), or give another name"
                    )
                made = found.experiment_id if found else mlflow.create_experiment(name, self.artifact_root)
                if found is None or _KIND not in found.tags:
                    client().set_experiment_tag(str(made), _KIND, _OURS)  # or it opens on a page for language models
                self._experiments[name] = str(made)
        return self._experiments[name]


def tracking_uri(output_dir: str) -> str:
    """The server or store named by ``MLFLOW_TRACKING_URI``, or a sqlite file under ``output_dir``."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{output_dir}/mlflow/mlflow.db"


def open_store(output_dir: str) -> Store:
    """Make sure that the store answers, and point MLflow at it.

    Raises:
        TrackingError: where a server does not answer, or the store is not one that this MLflow takes.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default holds a training up for minutes
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri, artifact_root = tracking_uri(output_dir), None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        folder = Path(output_dir) / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        artifact_root = (Path(output_dir) / _ARTIFACTS).as_uri()
        _follow_the_folder(folder / "mlflow.db", artifact_root)
    uri = use_store(uri)
    with mlflow_mistakes(uri):
        mlflow.search_experiments(max_results=1)  # a database of another version is better known before the work
    return Store(uri, artifact_root)


def open_existing_store(output_dir: str) -> Store:
    """`open_store`, but for whoever only looks: where there is none, none is made.

    Raises:
        TrackingError: where there is no store under ``output_dir``.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (Path(output_dir) / "mlflow" / "mlflow.db").exists():
        raise TrackingError(
            f"{output_dir}/mlflow: no MLflow store here; `cprfl run CONFIG` makes one, --output-dir names another"
        )
    return open_store(output_dir)


def use_store(uri: str) -> str:
    """Point MLflow at a store.

    A name and password in the URI go into the variables where MLflow looks for them too: a URI is printed and stored.

    Returns:
        The URI without them.

    Raises:
        TrackingError: where a server does not answer.
    """
    server = urlsplit(uri)
    credentials, _, host = server.netloc.rpartition("@")
    if server.scheme in ("http", "https") and credentials:
        name, _, password = credentials.partition(":")
        os.environ |= {"MLFLOW_TRACKING_USERNAME": unquote(name), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
        uri = urlunsplit(server._replace(netloc=host))
    named = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # which sets the variable too
    if not named:  # or the next experiment of this process would take the store for one that the user named
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    if server.scheme in ("http", "https"):
        check_server(uri)
    return uri


def _follow_the_folder(database: Path, artifact_root: str) -> None:
    """Where the folder of a store in a file was moved or copied, tell its database where the files lie now."""
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables >= _PLACES.keys():  # of another version, which opening it will say
            return
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in found:
            if old is None or old == artifact_root or not old.endswith(f"/{_ARTIFACTS}"):
                continue
            print(f"the folder of {database} was {old} before; its artifacts are looked for beside it", file=sys.stderr)
            for table, columns in _PLACES.items():
                for column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (artifact_root, len(old) + 1, len(old), old),
                    )


@contextmanager
def mlflow_mistakes(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into what the user can do about it.

    Raises:
        TrackingError: in place of MLflow's own exceptions.
    """
    try:
        yield
    except MlflowException as error:
        if not answers(uri):
            raise unreachable(uri, "stopped answering") from None
        reason = str(error).strip().splitlines()[0]
        if "out-of-date database schema" in reason:
            mend = f"back it up and run `mlflow db upgrade {without_password(uri)}`"
        elif error.error_code == "RESOURCE_DOES_NOT_EXIST":
            mend = "it was deleted in MLflow, or never there; `cprfl ui` shows what is"
        else:
            mend = "`cprfl ui` shows what the store holds"
        raise TrackingError(f"MLflow ({without_password(uri)}): {reason}; {mend}") from None


def client(uri: str | None = None) -> MlflowClient:
    """MLflow's client of a store, or of the one that it points at."""
    return MlflowClient(tracking_uri=uri)


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
    """Make sure that a server answers.

    Raises:
        TrackingError: where none does.
    """
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
    """The error for a server that was there before."""
    return TrackingError(
        f"MLFLOW_TRACKING_URI: the MLflow server at {without_password(uri)} {what}; nothing is lost: when it is back, "
        "the same command (a sweep with --resume) goes on where it stopped and sends what was kept"
    )


def ui_address(uri: str, port: int = 5000) -> str:
    """Where a browser finds the UI: the server's, or the one that `cprfl ui` starts for a store in a file."""
    if not uri.startswith(("http://", "https://")):
        return f"http://127.0.0.1:{port}"
    scheme, _, address = uri.rstrip("/").partition("://")
    return f"{scheme}://{without_password(address)}"


def without_password(uri: str) -> str:
    """What may be shown of a URI."""
    return uri.rpartition("@")[2]
