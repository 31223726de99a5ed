"""What Labelme and Label Studio export, in short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cprfl.data.manifest import Manifest
from cprfl.data.readers.labelme import LabelmeDataset
from cprfl.data.readers.labelstudio import LabelStudioDataset


def document(image: str, labels: Sequence[Any], **changes: Any) -> dict[str, Any]:
    drawn = {"points": [[1, 1], [2, 2]], "shape_type": "rectangle", "flags": {"occluded": True}}
    shapes = [{"label": label, **drawn} for label in labels]
    return {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None} | changes


def read_labelme(folder: Path, **options: Any) -> Manifest:
    return LabelmeDataset.model_validate({"splits": {"train": str(folder)}, **options}).read()


def result(kind: str, names: Any, control: str = "choice", **changes: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": control, "to_name": "image", "value": {kind: names, "x": 1.0}, **changes}


def task(number: int, image: str, *results: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    annotations = [{"id": 10 * number + n, "was_cancelled": False, "result": own} for n, own in enumerate(results)]
    predictions = [{"result": [result("choices", ["predicted"])]}]
    return {"id": number, "data": {"image": image, "note": "x"}, "annotations": annotations,
            "predictions": predictions} | changes  # fmt: skip


def read_studio(path: str, **options: Any) -> Manifest:
    return LabelStudioDataset.model_validate({"splits": {"train": path}, **options}).read()


def in_min(number: int, image: str, labels: list[str], kind: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": number, "image": image, "annotator": 1, "annotation_id": number, "lead_time": 1.5}
    if kind == "choices" and labels:
        row["choice"] = labels[0] if len(labels) == 1 else {"choices": labels}
    elif labels:
        row["marks"] = [{"x": 1, kind: [label]} for label in labels]
    return row
