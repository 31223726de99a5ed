"""What Label Studio's exports say: JSON, a task with all its annotations; or JSON-MIN, a flat row for an annotation."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from cprfl.data.readers.json_text import read_json
from cprfl.data.readers.locate import SUFFIXES
from cprfl.errors import DatasetError

# Keys of JSON-MIN that the export adds, and names that people give to what they label with.
_ABOUT = {"id", "annotator", "annotators", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
_CONTROLS = {"choice", "choices", "label", "labels", "class", "classes", "tag", "tags", "category", "categories"}

Controls = Mapping[str, Sequence[str]]
"""What one annotator chose, by the name of the control in the labelling interface."""


@dataclass(frozen=True)
class Annotation:
    """What one annotator says of an image.

    Attributes:
        labels: of the image and of regions.
        attributes: choices that belong to a region.
        is_truth: whether it is marked as the ground truth.
    """

    labels: Controls
    attributes: Controls
    is_truth: bool


@dataclass(frozen=True)
class Task:
    """An image as it was given to annotators.

    Attributes:
        where: file and id.
        data: what was imported; in JSON-MIN all that may have been.
        annotations: those that were not cancelled; none where nobody annotated it.
    """

    where: str
    data: Mapping[str, Any]
    annotations: tuple[Annotation, ...]


def read_tasks(path: str, label_keys: Sequence[str] | None) -> tuple[list[Task], list[str]]:
    """The tasks of an export, and notes.

    Args:
        path: of a JSON or JSON-MIN file.
        label_keys: the controls that are labels, where the user says it.

    Raises:
        DatasetError: where it is no export, or one in which it cannot be told what the labels are.
    """
    values = read_json(path, "export of Label Studio")
    if not isinstance(values, list) or not values or not all(isinstance(value, dict) for value in values):
        raise DatasetError(f"{path}: no list of tasks; export the project as JSON or JSON-MIN")
    if all(isinstance(value.get("data"), dict) for value in values):
        return [_task(_where(path, number, value), value) for number, value in enumerate(values)], []
    return _tasks_of_min(path, values, label_keys)


def _where(path: str, number: int, value: Mapping[str, Any]) -> str:
    return f"{path}, task {value['id']}" if "id" in value else f"{path}, task number {number} from 0"


def _task(where: str, value: Mapping[str, Any]) -> Task:
    written = value.get("annotations", value.get("completions")) or []
    if not isinstance(written, list) or not all(isinstance(annotation, dict) for annotation in written):
        raise DatasetError(f"{where}: its `annotations` are no list of objects")
    kept = [annotation for annotation in written if not annotation.get("was_cancelled")]
    return Task(where, value["data"], tuple(_annotation(where, annotation) for annotation in kept))


def _annotation(where: str, value: Mapping[str, Any]) -> Annotation:
    results = value.get("result")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise DatasetError(f"{where}: an annotation without a list `result`; an empty one says: no class")
    regions = {result.get("id") for result in results if str(result.get("type")).endswith("labels")} - {None}
    labels: dict[str, list[str]] = {}
    attributes: dict[str, list[str]] = {}
    for result in results:
        kind, written = result.get("type"), result.get("value")
        if not isinstance(kind, str) or not isinstance(written, dict) or not _is_kind(kind) or kind not in written:
            continue  # a text, a rating, a relation, a region without a label
        of_region = not kind.endswith("labels") and result.get("id") in regions
        controls = attributes if of_region else labels
        controls.setdefault(str(result.get("from_name", kind)), []).extend(_names(where, kind, written[kind]))
    return Annotation(labels, attributes, bool(value.get("ground_truth")))


def _is_kind(kind: str) -> bool:
    """Whether a kind of result names classes (``choices``, ``taxonomy``, ``labels``, ``rectanglelabels``, ...)."""
    return kind in ("choices", "taxonomy") or kind.endswith("labels")


def _names(where: str, kind: str, written: Any) -> list[str]:
    names = written if isinstance(written, list) else [written]
    if kind == "taxonomy":  # each is a path of names, or one name
        names = ["/".join(map(str, name)) if isinstance(name, list) else name for name in names]
    strange = [name for name in names if not isinstance(name, str) or not name.strip()]
    if strange:
        raise DatasetError(f"{where}: {strange[0]!r} in its {kind} is no name of a class")
    return names


def _tasks_of_min(
    path: str, rows: Sequence[Mapping[str, Any]], label_keys: Sequence[str] | None
) -> tuple[list[Task], list[str]]:
    """Rows of one task are its annotations."""
    controls, others = _controls(path, rows, label_keys)
    tasks: dict[object, Task] = {}
    for number, row in enumerate(rows):
        where = _where(path, number, row)
        labels = {key: _names_of_min(where, row[key]) for key in controls if row.get(key) is not None}
        data = {key: value for key, value in row.items() if key not in _ABOUT and key not in controls}
        key = str(row["id"]) if "id" in row else number
        earlier = tasks[key].annotations if key in tasks else ()
        tasks[key] = Task(where, data, (*earlier, Annotation(labels, {}, is_truth=False)))
    notes = [f"{path}: {', '.join(map(repr, others))} are data, not labels (dataset.label_keys)"] if others else []
    return list(tasks.values()), notes


def _controls(
    path: str, rows: Sequence[Mapping[str, Any]], label_keys: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """The keys that hold labels, and those that could but are data; text alone tells them apart only by its key."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in _ABOUT)
    if label_keys is not None:
        return [key for key in keys if key in label_keys], []
    told = [key for key in keys if key.lower() in _CONTROLS or any(_says_its_kind(row.get(key)) for row in rows)]
    texts = [
        key
        for key in keys
        if key not in told and all(_is_text(row[key]) and not looks_like_image(row[key]) for row in rows if key in row)
    ]
    if not told and texts:
        raise DatasetError(
            f"{path}: nothing tells which of {', '.join(map(repr, texts))} are labels; name them with "
            "dataset.label_keys: [...]"
        )
    return told, texts


def _says_its_kind(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, dict) and any(map(_is_kind, item)) for item in values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _names_of_min(where: str, written: Any) -> list[str]:
    """The names in ``"cat"``, ``{"choices": ["cat", "dog"]}`` and ``[{"rectanglelabels": ["cat"], "x": 1}, ...]``."""
    names: list[str] = []
    for item in written if isinstance(written, list) else [written]:
        if isinstance(item, dict):
            for kind in filter(_is_kind, item):
                names += _names(where, kind, item[kind])
        else:
            names += _names(where, "labels", item)
    return names


def image_key(tasks: Sequence[Task], given: str | None) -> str:
    """The key of the tasks' data that says where the image is.

    Raises:
        DatasetError: where a task lacks it, or where none or several could be it.
    """
    keys = Counter(key for task in tasks for key in task.data)
    everywhere = [key for key, count in keys.items() if count == len(tasks)]
    found = [key for key in everywhere if all(looks_like_image(task.data[key]) for task in tasks)]
    if len(found) > 1:  # what Label Studio shows is an address; a name beside it is for people
        addresses = [key for key in found if all(_is_address(task.data[key]) for task in tasks)]
        found = addresses or found
    if given is not None:
        found = [given]
        strange = next((task for task in tasks if not isinstance(task.data.get(given), str)), None)
        if strange is not None:
            raise DatasetError(f"{strange.where}: no text {given!r} in its data, which dataset.image_key names")
    found = found or [key for key in everywhere if key.lower() in ("image", "img", "$undefined$")]
    if len(found) != 1 or not all(isinstance(task.data[found[0]], str) for task in tasks):
        several = f"{' and '.join(map(repr, found))} could each be" if len(found) > 1 else "none of them is known to be"
        raise DatasetError(
            f"{tasks[0].where}: its data have {', '.join(map(repr, tasks[0].data))}, and {several} the path of the "
            "image; name it with dataset.image_key"
        )
    return found[0]


def looks_like_image(value: Any) -> bool:
    """Whether a value is a path or address of an image."""
    return isinstance(value, str) and PurePosixPath(path_in(value).lower()).suffix in SUFFIXES


def _is_address(value: str) -> bool:
    return value.startswith("/data/") or "://" in value


def path_in(address: str) -> str:
    """The path in an address as it is written there: below the folder of local files, or the name of an upload."""
    if "/data/local-files/" in address and "d=" in address:
        return address.partition("d=")[2].partition("&")[0]
    if address.startswith(("http://", "https://")):
        address = urlsplit(address).path
    below = re.sub(r"^[A-Za-z0-9+.-]+://[^/]*/", "", address)
    return re.sub(r"^/data/upload/(\d+/)?", "", below).replace("\\", "/")


def is_elsewhere(address: str) -> bool:
    """Whether an address can be read as it is: it is neither a path nor one of Label Studio's own server."""
    return "://" in address and "/data/upload/" not in address and "/data/local-files/" not in address


def controls_of(tasks: Iterable[Task]) -> Counter[str]:
    """How many labels each control gave."""
    counts = Counter[str]()
    for task in tasks:
        for annotation in task.annotations:
            counts.update({control: len(names) for control, names in annotation.labels.items()})
    return counts
