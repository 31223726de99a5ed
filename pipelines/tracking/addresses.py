"""What a tracking URI names, and what of it may be shown."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from cprfl.errors import TrackingError

_KINDS = {"http", "https", "sqlite", "postgresql", "mysql", "mssql"}
_OF_MLFLOW = ("databricks", "uc")  # which MLflow looks after itself


def check_kind(uri: str) -> None:
    """Make sure that a tracking URI is one of those that can be used.

    Raises:
        TrackingError: where it is not.
    """
    scheme, separator, _ = uri.partition("://")
    if uri.startswith(_OF_MLFLOW) or (separator and scheme.partition("+")[0] in _KINDS and _splits(uri)):
        return
    raise TrackingError(
        f"MLFLOW_TRACKING_URI: {without_password(uri)!r} names no MLflow store; give a server (http://host:5000) or a "
        "database (sqlite:////folder/mlflow.db, postgresql://...), or unset the variable to use a sqlite file under "
        "output_dir"
    )


def is_server(uri: str) -> bool:
    """Whether it is MLflow's server that a tracking URI names."""
    return uri.startswith(("http://", "https://"))


def without_password(uri: str) -> str:
    """What may be shown of a URI: all but a name and a password."""
    if not _splits(uri):
        return uri.rpartition("@")[2]
    parts = urlsplit(uri)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urlunsplit(shown) if shown.netloc != parts.netloc else uri


def _splits(uri: str) -> bool:
    try:
        urlsplit(uri).port  # noqa: B018  (it is looked at when it is asked for)
    except ValueError:
        return False
    return True
