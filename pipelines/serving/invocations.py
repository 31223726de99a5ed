"""MLflow's scoring protocol, read by MLflow's own scoring server: whatever scores its models scores ours."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.scoring_server import CONTENT_TYPE_CSV, CONTENT_TYPE_JSON, infer_and_parse_data, parse_csv_input

from cprfl.errors import UnreadableImageError
from cprfl.inference.pyfunc import Content, images_of
from pipelines.serving.limits import Limits, RefusedError

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def images_of_invocation(kind: str, body: bytes, limits: Limits) -> list[Content]:
    """The images of a request to ``/invocations``: base64 in a column ``image``.

    Args:
        kind: media type of the body, ``application/json`` or ``text/csv``.
        body: of the request.
        limits: of its images, beyond which no table is made of it.

    Raises:
        RefusedError: where it is no such request.
    """
    if kind not in (CONTENT_TYPE_JSON, CONTENT_TYPE_CSV):
        raise RefusedError(415, f"{kind!r}: send {CONTENT_TYPE_JSON} or {CONTENT_TYPE_CSV}")
    try:
        found = _of_csv(body) if kind == CONTENT_TYPE_CSV else _of_json(body, limits)
        if hasattr(found, "columns") and not found.columns.is_unique:
            raise RefusedError(422, "two columns of one name")
        return images_of(found)
    except UnreadableImageError as error:
        raise RefusedError(422, str(error)) from None
    except MlflowException as error:
        raise RefusedError(422, error.message[:500]) from None


def predictions(probability_NC: np.ndarray, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The answer: a record per image, as MLflow makes it of the registered model's table."""
    return {"predictions": [dict(zip(class_names, map(float, row), strict=True)) for row in probability_NC]}


def _of_csv(body: bytes) -> Any:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise RefusedError(400, "no CSV in UTF-8") from None
    return parse_csv_input(io.StringIO(text))


def _of_json(body: bytes, limits: Limits) -> Any:
    wanted = f"send a dictionary with one of {', '.join(_FORMATS)}"
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(400, f"no JSON: {str(error)[:200]}; {wanted}") from None
    if not isinstance(values, dict) or len(values.keys() & set(_FORMATS)) != 1:
        raise RefusedError(422, wanted)
    found = {key: value for key, value in values.items() if key in _FORMATS}
    if (rows := _rows(*found.values())) > limits.images:
        raise RefusedError(413, f"{rows} images in one request; send {limits.images} at most")
    return infer_and_parse_data(found)


def _rows(value: Any) -> int:
    """How many rows there are at least."""
    if isinstance(value, dict):
        return max((len(part) for part in value.values() if isinstance(part, list)), default=0)
    return len(value) if isinstance(value, list) else 0
