"""What Hugging Face's `datasets` writes into the schema of a table: the kind of each column, and names of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

_METADATA = b"huggingface"


def features_of(schema: pa.Schema) -> Mapping[str, Any]:
    """The description of each column by name; nothing in a table of another origin."""
    try:
        described = json.loads((schema.metadata or {}).get(_METADATA, b"{}"))
    except (ValueError, RecursionError):
        return {}
    for part in ("info", "features"):
        described = described.get(part) if isinstance(described, dict) else None
    return described if isinstance(described, dict) else {}


def columns_of_images(schema: pa.Schema) -> list[str]:
    """Columns that are said to hold images."""
    return [name for name, feature in features_of(schema).items() if _kind(feature) == "Image" and name in schema.names]


def columns_of_classes(schema: pa.Schema) -> dict[str, Sequence[str]]:
    """Columns that hold indices of classes, dotted where they are fields (``objects.category``), and the names."""
    return {
        column: names for column, names in _classes(features_of(schema), "") if column.partition(".")[0] in schema.names
    }


def _classes(feature: Any, path: str) -> Iterator[tuple[str, Sequence[str]]]:
    feature = _inner(feature)
    if _kind(feature) == "ClassLabel":
        names = _names(feature.get("names"))
        if names:
            yield path, names
    elif isinstance(feature, dict) and "_type" not in feature:
        for name, inner in feature.items():
            yield from _classes(inner, f"{path}.{name}" if path else name)


def _inner(feature: Any) -> Any:
    """What a list is a list of: ``Sequence`` (until 2025), ``List``, ``LargeList``, or a JSON list of one."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and _kind(feature) in ("Sequence", "List", "LargeList") and "feature" in feature:
            feature = feature["feature"]
        else:
            return feature


def _names(written: Any) -> Sequence[str]:
    """Names of classes: a list, or (in dataset cards) a mapping from index to name."""
    if isinstance(written, dict) and all(str(index).isdecimal() for index in written):
        written = [written[index] for index in sorted(written, key=int)]
    return [str(name) for name in written] if isinstance(written, list) else []


def _kind(feature: Any) -> str | None:
    kind = feature.get("_type") if isinstance(feature, dict) else None
    return kind if isinstance(kind, str) else None
