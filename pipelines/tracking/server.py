"""Whether an MLflow server answers, and what it says instead."""

from __future__ import annotations

import re
from typing import Any

import requests
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from cprfl.errors import TrackingError
from pipelines.tracking.addresses import is_server, without_password

CREDENTIALS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what it takes"
_HEALTH, _SEARCH = "/health", "/api/2.0/mlflow/experiments/search"
_SECONDS_FOR_HEALTH, _SECONDS_FOR_SEARCH = 5, 10
_AWAY = (502, 503, 504)  # of a proxy whose server is gone
_WHY = re.compile(r"\[Errno -?\d+\] [^'\")>]+|timed out|CERTIFICATE_VERIFY_FAILED[^'\")]*")
_OF_SEARCH = {"experiments", "next_page_token"}


def answers(uri: str) -> bool:
    """Whether a server is there, whatever it answers; a database always is."""
    if not is_server(uri):
        return True
    try:
        return _ask(uri, "GET", _HEALTH, _SECONDS_FOR_HEALTH).status_code not in _AWAY
    except MlflowException:  # no connection, no answer in time
        return False


def check_server(uri: str) -> None:
    """Make sure that an MLflow server answers, that it is one, and that it lets us in.

    Raises:
        TrackingError: where it is not so.
    """
    shown = without_password(uri)
    try:
        answer = _ask(uri, "POST", _SEARCH, _SECONDS_FOR_SEARCH, json={"max_results": 1})
    except MlflowException as error:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: no MLflow server answers at {shown} ({_reason(error)}); start it, correct the "
            "address, or unset the variable to use a sqlite file under output_dir"
        ) from None
    status = answer.status_code
    if status in (401, 403):
        raise TrackingError(f"MLFLOW_TRACKING_URI: the server at {shown} refuses us (status {status}); {CREDENTIALS}")
    if status in _AWAY:
        raise TrackingError(f"MLFLOW_TRACKING_URI: a proxy answers at {shown}, its server not ({status}); start it")
    if status >= 500 or status == 429:
        raise TrackingError(f"MLFLOW_TRACKING_URI: the server at {shown} fails (status {status}); its log says why")
    if status != 200 or not _is_mlflows(answer):
        kind = answer.headers.get("Content-Type", "of no type").partition(";")[0]
        raise TrackingError(
            f"MLFLOW_TRACKING_URI: something else than MLflow answers at {shown} (status {status}, {kind}); correct "
            "the address and its path, or let no proxy answer for it (NO_PROXY)"
        )


def unreachable(uri: str, what: str) -> TrackingError:
    """The error for a server that was there before."""
    return TrackingError(
        f"MLFLOW_TRACKING_URI: the MLflow server at {without_password(uri)} {what}; nothing is lost: when it is back, "
        "the same command (a sweep with --resume) goes on where it stopped and sends what was kept"
    )


def _ask(uri: str, method: str, path: str, seconds: int, **more: Any) -> requests.Response:
    """One request as MLflow itself would send it, with its credentials and certificates, but once."""
    answer: requests.Response = http_request(
        get_default_host_creds(uri), path, method, timeout=seconds, max_retries=0, raise_on_status=False, **more
    )
    return answer


def _is_mlflows(answer: requests.Response) -> bool:
    try:
        values = answer.json()
    except requests.JSONDecodeError:
        return False
    return isinstance(values, dict) and values.keys() <= _OF_SEARCH


def _reason(error: MlflowException) -> str:
    """Why there was no answer, without the names of libraries' classes."""
    text = str(error)
    if found := _WHY.search(text):
        return found.group()
    return text.splitlines()[0].rpartition("failed with exception ")[2][:200]
