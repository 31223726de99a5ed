"""Names as MLflow takes them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

from cprfl.data.files import fingerprint

Value = TypeVar("Value")


def mlflow_names(values: Mapping[str, Value]) -> dict[str, Value]:
    """The values under names in which what MLflow does not take (``AP/fish & chips``) is replaced.

    Names that would become the same get a few digits that follow from the name.
    """
    clean = {name: _clean(name) for name in values}
    shared = Counter(clean.values())
    unique = {name: f"{found} {fingerprint(name)[:6]}" if shared[found] > 1 else found for name, found in clean.items()}
    return {unique[name]: value for name, value in values.items()}


def _clean(name: str) -> str:
    return "/".join(re.sub(r"[^\w\-. :]", "_", part).strip(" .") or "_" for part in name.split("/"))
