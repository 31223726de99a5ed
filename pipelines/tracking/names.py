"""Names as MLflow takes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from cprfl.data.files import fingerprint

Value = TypeVar("Value")


def mlflow_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The values under names in which what MLflow does not take (``AP/fish & chips``) is replaced.

    A replaced name gets a few digits that follow from the whole name: two may become the same otherwise, and the same
    class must have the same name in every run.
    """
    return {_clean(name): value for name, value in values.items()}


def _clean(name: str) -> str:
    clean = "/".join(re.sub(r"[^\w\-. :]", "_", part).strip(" .") or "_" for part in name.split("/"))
    return clean if clean == name else f"{clean} {fingerprint(name)[:6]}"
