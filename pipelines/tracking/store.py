"""Where MLflow keeps its runs: opened once by whoever starts a stage, and handed on."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from cprfl.data.locks import exclusive
from cprfl.errors import TrackingError
from pipelines.lock import LOCKS
from pipelines.tracking.addresses import check_kind, is_server, without_password
from pipelines.tracking.database import ARTIFACTS, check_database, database_error, follow_the_folder, schema_mend
from pipelines.tracking.server import CREDENTIALS, answers, check_server, unreachable

__all__ = [
    "MACHINE_LEARNING", "Store", "answers", "check_server", "client", "mlflow_mistakes", "once_more",
    "open_existing_store", "open_store", "tracking_uri", "ui_address", "unreachable", "use_store", "without_password",
]  # fmt: skip

MACHINE_LEARNING = "workflowType=machine_learning"
"""Of an address in MLflow's UI: without it, and without the experiment's kind, it shows a page for language models."""

T = TypeVar("T")

_KIND, _OURS = "mlflow.experimentKind", "custom_model_development"


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
                self._experiments[name] = once_more(lambda: self._find_or_make(name))
        return self._experiments[name]

    def _find_or_make(self, name: str) -> str:
        found = mlflow.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"MLflow's experiment {name!r} was deleted; restore it with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}` "
                f"(MLFLOW_TRACKING_URI={without_password(self.uri)}), or give another name"
            )
        made = str(found.experiment_id if found else mlflow.create_experiment(name, self.artifact_root))
        if found is None or _KIND not in found.tags:
            client().set_experiment_tag(made, _KIND, _OURS)  # or it opens on a page for language models
        return made


def once_more(write: Callable[[], T]) -> T:
    """What a call to MLflow gives that may be repeated, repeated where somebody else wrote the same just now.

    MLflow looks for an experiment, a data set, a tag or an alias, and adds it where there is none. Of two who do so at
    the same moment, the database refuses one, who finds it there the second time.
    """
    try:
        return write()
    except MlflowException as error:
        if error.error_code not in ("BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"):
            raise
        return write()


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
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds, for the same reason
    os.environ.setdefault("AWS_RETRY_MODE", "standard")  # of boto3, by which it writes artifacts to S3
    os.environ.setdefault("AWS_MAX_ATTEMPTS", "8")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for told in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
        logging.getLogger(told).setLevel(logging.CRITICAL)  # what ails them is told where metrics of ours are logged
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri, artifact_root = tracking_uri(output_dir), None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        folder = Path(output_dir) / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        artifact_root = (Path(output_dir) / ARTIFACTS).as_uri()
    uri = use_store(uri)
    lock = Path(output_dir) / LOCKS / ".mlflow.lock"  # two who make its tables at once break them
    making = exclusive(lock, "opening MLflow's database") if artifact_root is not None else nullcontext()
    with making, mlflow_mistakes(uri):
        if artifact_root is not None and (folder / "mlflow.db").exists():
            follow_the_folder(folder / "mlflow.db", artifact_root)
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
        TrackingError: where it names no store, or one that cannot be used.
    """
    check_kind(uri)
    server = urlsplit(uri)
    credentials, _, host = server.netloc.rpartition("@")
    if is_server(uri) and credentials:
        name, _, password = credentials.partition(":")
        os.environ |= {"MLFLOW_TRACKING_USERNAME": unquote(name), "MLFLOW_TRACKING_PASSWORD": unquote(password)}
        uri = urlunsplit(server._replace(netloc=host))
    named = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)  # which sets the variable too
    if not named:  # or the next experiment of this process would take the store for one that the user named
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    if is_server(uri):
        check_server(uri)
    elif server.scheme:
        check_database(uri)
    return uri


@contextmanager
def mlflow_mistakes(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into what the user can do about it.

    Raises:
        TrackingError: in place of MLflow's own exceptions.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise database_error(uri, error) from None
    except sqlite3.Error as error:  # where we look into its file ourselves
        raise database_error(uri, SQLAlchemyError(str(error))) from None
    except MlflowException as error:
        if isinstance(error.__cause__, SQLAlchemyError):
            raise database_error(uri, error.__cause__) from None
        if not answers(uri):
            raise unreachable(uri, "stopped answering") from None
        reason = str(error).strip().splitlines()[0][:300]
        if "out-of-date database schema" in reason:
            reason, mend = reason.partition(". ")[0], schema_mend(uri, reason)
        elif error.error_code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            mend = CREDENTIALS
        elif error.error_code == "RESOURCE_DOES_NOT_EXIST":
            mend = "it was deleted in MLflow, or never there; `cprfl ui` shows what is"
        else:
            mend = "`cprfl ui` shows what the store holds"
        raise TrackingError(f"MLflow ({without_password(uri)}): {reason}; {mend}") from None


def client(uri: str | None = None) -> MlflowClient:
    """MLflow's client of a store, or of the one that it points at."""
    return MlflowClient(tracking_uri=uri)


def ui_address(uri: str, port: int = 5000) -> str:
    """Where a browser finds the UI: the server's, or the one that `cprfl ui` starts for a store in a file.

    A server that commands know by a name of their own network is one that ``CPRFL_MLFLOW_UI`` names for browsers.
    """
    if not is_server(uri):
        return f"http://127.0.0.1:{port}"
    return without_password(os.environ.get("CPRFL_MLFLOW_UI", uri).rstrip("/"))
