"""What a JSON file of labelme says of its image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cprfl.data.readers.json_text import read_json
from cprfl.data.readers.shards import files_below
from cprfl.data.storage import join
from cprfl.errors import DatasetError

_NO_CLASS = {"__ignore__", "_background_"}  # of labelme's own converters


@dataclass(frozen=True)
class Document:
    """A JSON file.

    Attributes:
        path: of the file below the folder that was read.
        where: path or URI of the file.
        image: the image's path as it is written, seen from the file.
        labels: of the shapes.
        flags: of the image, and whether each is true.
        is_embedded: whether a copy of the image is in the file.
    """

    path: str
    where: str
    image: str
    labels: tuple[str, ...]
    flags: dict[str, bool]
    is_embedded: bool


def read_documents(folder: str) -> tuple[list[Document], list[str]]:
    """The JSON files of labelme below a folder, by name, and notes.

    Raises:
        DatasetError: where there is none, or one is malformed.
    """
    files = [file for file in files_below(folder)[0] if file.lower().endswith(".json")]
    values = {file: _without_image(read_json(join(folder, file), "annotation of labelme")) for file in files}
    documents = [_document(file, join(folder, file), value) for file, value in values.items() if is_labelmes(value)]
    if not documents:
        raise DatasetError(f"{folder}: no JSON file of labelme (`shapes` and `imagePath`) in it; check the path")
    notes = []
    others = [file for file, value in values.items() if not is_labelmes(value)]
    if others:
        notes.append(f"{folder}: {len(others)} JSON files are passed over as not labelme's, such as {others[0]}")
    passed_over = Counter(label for document in documents for label in document.labels if label in _NO_CLASS)
    if passed_over:
        some = " and ".join(f"{label!r} ({count} images)" for label, count in passed_over.items())
        notes.append(f"{folder}: {some} are no classes to labelme, and are passed over")
    return documents, notes


def _without_image(value: Any) -> Any:
    """The same without the copy of the image: thousands of them would not fit into memory."""
    return (
        value | {"imageData": bool(value["imageData"])} if isinstance(value, dict) and "imageData" in value else value
    )


def labels_of(document: Document, with_flags: bool) -> Sequence[str]:
    """The classes that the image shows: its shapes', and its flags that are true."""
    flags = [flag for flag, is_true in document.flags.items() if is_true] if with_flags else []
    return [label for label in dict.fromkeys((*document.labels, *flags)) if label not in _NO_CLASS]


def is_labelmes(value: Any) -> bool:
    """Whether a JSON value means to be one of labelme's."""
    return isinstance(value, dict) and ("shapes" in value or "imagePath" in value)


def _document(path: str, where: str, value: dict[str, Any]) -> Document:
    image, shapes, flags = value.get("imagePath"), value.get("shapes"), value.get("flags") or {}
    if not isinstance(image, str) or not image:
        raise DatasetError(f"{where}: no `imagePath` that names its image")
    if not isinstance(shapes, list):
        raise DatasetError(f"{where}: no list `shapes`; an empty one says that the image shows no class")
    if not isinstance(flags, dict) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise DatasetError(f"{where}: `flags` {str(flags)[:60]} are not names with true or false")
    labels = dict.fromkeys(_label(where, number, shape) for number, shape in enumerate(shapes))
    return Document(path, where, image, tuple(labels), flags, bool(value.get("imageData")))


def _label(where: str, number: int, shape: Any) -> str:
    label = shape.get("label") if isinstance(shape, dict) else None
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise DatasetError(f"{where}, shapes[{number}]: its label {label!r} is no name of a class")
    return str(label)
