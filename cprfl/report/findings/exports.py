"""Images that somebody is to look at, as files for tables and annotation tools: CSV, Label Studio, FiftyOne."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import quoteattr

from cprfl.data.files import fingerprint, write_aside, write_json, write_text
from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.images import open_image
from cprfl.data.packed import is_packed
from cprfl.data.synthetic import SCHEME
from cprfl.plain import no_formula

Value = str | int | float | bool | None

_SERVED = "/data/local-files/?d="  # where Label Studio serves files of its own machine
_IMAGE, _CHOICES = "image", "labels"  # names within Label Studio's labelling interface


@dataclass(frozen=True)
class Question:
    """An image that an annotator is asked about.

    Attributes:
        image_id: of the image.
        uri: where it is.
        labels: what is proposed for it: names of classes with their probabilities.
        score: how much it is worth to look at; Label Studio sorts by it.
        facts: whatever else there is to know.
    """

    image_id: str
    uri: str
    labels: Mapping[str, float]
    score: float
    facts: Mapping[str, Value] = field(default_factory=dict)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Value]]) -> None:
    """Write a table; no cell is a formula to the program that opens it, whatever a file or class is called."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(value) for value in row] for row in rows)
    with write_aside(path) as aside:
        aside.write_text(text.getvalue(), encoding="utf-8", newline="")


def _cell(value: Value) -> Value:
    if isinstance(value, str):
        return no_formula(value)
    return f"{value:.6g}" if isinstance(value, float) else value


def write_label_studio(path: Path, questions: Sequence[Question], version: str) -> None:
    """Write tasks with predictions, as Label Studio imports them; their interface is `labelling_interface`.

    Images that are no files (rendered scenes, members of archives) are written beside, see `address`.

    Args:
        path: of the JSON file.
        questions: the images.
        version: of the model that made the proposals, as the annotator reads it.

    Raises:
        UnreadableImageError: where an image has to be written and does not decode.
    """
    write_json(path, [_task(question, path, version) for question in questions])


def _task(question: Question, path: Path, version: str) -> dict[str, Any]:
    address_ = address(question.uri, path)
    if not is_remote(address_):
        address_ = _SERVED + quote(address_.lstrip("/"))
    choices = {
        "from_name": _CHOICES,
        "to_name": _IMAGE,
        "type": "choices",
        "value": {"choices": list(question.labels)},
    }
    return {
        "data": {_IMAGE: address_, "image_id": question.image_id, **question.facts},
        "predictions": [
            {"model_version": version, "score": question.score, "result": [choices] if question.labels else []},
        ],
    }


def labelling_interface(class_names: Sequence[str]) -> str:
    """The interface for the tasks of `write_label_studio`: the XML to give in a project's settings."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in class_names)
    return (
        f'<View>\n  <Image name="{_IMAGE}" value="${_IMAGE}"/>\n'
        f'  <Choices name="{_CHOICES}" toName="{_IMAGE}" choice="multiple">\n{choices}\n  </Choices>\n</View>'
    )


def write_labelling_interface(path: Path, class_names: Sequence[str]) -> None:
    """Write `labelling_interface` into a file."""
    write_text(path, f"{labelling_interface(class_names)}\n")


def write_fiftyone(path: Path, questions: Sequence[Question], class_names: Sequence[str]) -> None:
    """Write the labels file of a ``FiftyOneImageClassificationDataset``, each image with a list of ``Classifications``.

    FiftyOne reads it with ``fo.Dataset.from_dir(dataset_type=fo.types.FiftyOneImageClassificationDataset,
    labels_path=FILE)``; images are named by their absolute paths, so no folder is needed. An image for which nothing is
    proposed has an empty list. What else is known of the image is an attribute of each of its labels.

    Raises:
        UnreadableImageError: where an image has to be written (`address`) and does not decode.
    """
    labels = {
        address(question.uri, path): [
            {"label": name, "confidence": probability, "attributes": {"image_id": question.image_id, **question.facts}}
            for name, probability in question.labels.items()
        ]
        for question in questions
    }
    write_json(path, {"classes": list(class_names), "labels": labels})


def address(uri: str, beside: Path) -> str:
    """The absolute path or remote address at which another program finds an image.

    One that is rendered, or inside of an archive, is written as a PNG into a folder named after the file ``beside``.

    Raises:
        UnreadableImageError: where it has to be written and does not decode.
    """
    if not is_packed(uri) and urlsplit(uri).scheme != SCHEME:
        return uri if is_remote(uri) else str(local_path(uri).absolute())
    path = beside.with_name(f"{beside.stem}_images") / f"{fingerprint(uri)}.png"
    if not path.exists():
        image = open_image(uri)
        with write_aside(path) as aside:
            image.save(aside, "PNG")
    return str(path.absolute())
