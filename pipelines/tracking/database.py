"""The database in which MLflow keeps its runs: whether it can be used, and what its errors mean."""

from __future__ import annotations

import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import sqlalchemy
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from cprfl.environment import check_folder
from cprfl.errors import TrackingError
from pipelines.tracking.addresses import without_password

SECONDS = 10  # that another process may hold it
ARTIFACTS = "mlflow/artifacts"  # of a store in a file, under output_dir
_PLACES = {  # where MLflow's database says where files lie
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}
_DAMAGED = (
    "it is damaged, or no database; put a backup in its place, or move it away: then runs are recorded anew, and the "
    "models and results under output_dir stay"
)
_MENDS = (
    (r"disk is full", "make room there; the same command then goes on where it stopped"),
    (r"readonly|unable to open", "have its owner give you the right to write there, or name your own output_dir"),
    (r"is locked", "another process holds it; when that is done, the same command goes on where it stopped"),
    (r"malformed|not a database|file is encrypted", _DAMAGED),
    (r"disk I/O", "the disk or the network share fails; mend it, and the same command goes on where it stopped"),
    (r"authentication|[Aa]ccess denied|password", "correct name and password in MLFLOW_TRACKING_URI"),
    (r"connect|translate host|server", "start the database, or correct MLFLOW_TRACKING_URI"),
)  # fmt: skip


def check_database(uri: str) -> None:
    """Connect once: MLflow would try for minutes.

    Raises:
        TrackingError: where it cannot be reached or opened, or is damaged.
        OSError: where it cannot be made.
    """
    try:
        url = sqlalchemy.make_url(uri)
        embedded = url.get_backend_name() == "sqlite"
        if embedded and not url.database:
            raise TrackingError(f"MLFLOW_TRACKING_URI: {uri} names no file; give one: sqlite:////folder/mlflow.db")
        if embedded and not (file := Path(url.database or "")).exists():
            check_folder(file.parent)  # where MLflow will make it
            return
        patience = "timeout" if url.get_backend_name() in ("sqlite", "mssql") else "connect_timeout"
        engine = sqlalchemy.create_engine(url, connect_args={patience: SECONDS})
        with engine.connect() as connection:
            if embedded and (found := connection.execute(sqlalchemy.text("PRAGMA quick_check(1)")).scalar()) != "ok":
                raise TrackingError(f"MLflow ({without_password(uri)}): {found}; {_DAMAGED}")
        engine.dispose()
    except SQLAlchemyError as error:
        raise database_error(uri, error) from None
    except ImportError as error:  # the driver of a kind of database
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: {without_password(uri)}: {error}; install the database's driver for Python"
        ) from None


def database_error(uri: str, error: SQLAlchemyError) -> TrackingError:
    """What the user can do about an error of the database."""
    said = str(error.orig if isinstance(error, DBAPIError) and error.orig is not None else error)
    reason = said.strip().splitlines()[0][:300]
    mend = next((mend for pattern, mend in _MENDS if re.search(pattern, said)), "its own log says more")
    return TrackingError(f"MLflow ({without_password(uri)}): {reason}; {mend}")


def schema_mend(uri: str, reason: str) -> str:
    """What the user can do about a database of another version of MLflow."""
    found = re.search(r"found version (\w+)", reason)
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if found and not any(versions.glob(f"{found[1]}_*.py")):
        return f"a newer MLflow than this one ({mlflow.__version__}) has written it; install that, or use another store"
    return f"back it up and run `mlflow db upgrade {without_password(uri)}`"


def follow_the_folder(database: Path, artifact_root: str) -> None:
    """Where the folder of a store in a file was moved or copied, tell its database where the files lie now.

    Raises:
        sqlite3.Error: where it cannot be read or written.
    """
    with closing(sqlite3.connect(database, timeout=SECONDS)) as connection, connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables >= _PLACES.keys():  # of another version, which opening it will say
            return
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in found:
            if old is None or old == artifact_root or not old.endswith(f"/{ARTIFACTS}"):
                continue
            print(f"the folder of {database} was {old} before; its artifacts are looked for beside it", file=sys.stderr)
            for table, columns in _PLACES.items():
                for column in columns:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (artifact_root, len(old) + 1, len(old), old),
                    )
