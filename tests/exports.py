"""The same labelled photographs as the tools of the trade export them, each writer after the tool's documentation."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Labels = dict[str, tuple[str, ...]]
"""Class names that each photograph shows, by its file name."""

CLASSES = ("boat", "dog", "Möhre", "traffic light")


def photographs(count: int, seed: int = 0) -> Labels:
    """Labels of so many photographs, long-tailed; every one shows something."""
    rng = np.random.default_rng(seed)
    likely = 0.7 * 0.5 ** np.arange(len(CLASSES))
    shown = rng.random((count, len(CLASSES))) < likely
    shown[~shown.any(axis=1), 0] = True
    shown[: len(CLASSES)] |= np.eye(len(CLASSES), dtype=bool)[: len(shown)]
    return {
        f"photo {number:03d}.jpg": tuple(name for name, there in zip(CLASSES, row, strict=True) if there)
        for number, row in enumerate(shown.tolist())
    }


def picture(name: str) -> bytes:
    """The JPEG of a photograph, another one for each name."""
    number = int(name.split()[1].split(".")[0])
    pixels = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((48, 36)).save(buffer, "JPEG")
    return buffer.getvalue()


def _pictures(folder: Path, labels: Labels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in labels:
        (folder / name).write_bytes(picture(name))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def coco(root: Path, labels: Labels) -> None:
    """COCO's instances, as CVAT exports them: annotations/ beside images/."""
    _pictures(root / "images", labels)
    ids = {name: number for number, name in enumerate(CLASSES, 1)}
    images = [{"id": n, "file_name": name, "width": 48, "height": 36} for n, name in enumerate(labels, 1)]
    shown = [(n, name) for n, names in enumerate(labels.values(), 1) for name in names]
    annotations = [
        {"id": n, "image_id": image, "category_id": ids[name], "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
        for n, (image, name) in enumerate(shown, 1)
    ]
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()]
    everything = {"images": images, "annotations": annotations, "categories": categories}
    _write(root / "annotations/instances_default.json", json.dumps(everything))


def voc(root: Path, labels: Labels) -> None:
    """Pascal VOC: JPEGImages, Annotations, ImageSets."""
    _pictures(root / "JPEGImages", labels)
    for name, names in labels.items():
        objects = "".join(
            f"<object><name>{escape(label)}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax>"
            "</bndbox></object>"
            for label in names
        )
        _write(
            root / f"Annotations/{Path(name).stem}.xml",
            f"<annotation><filename>{name}</filename>{objects}</annotation>",
        )
    _write(root / "ImageSets/Main/default.txt", "".join(f"{Path(name).stem}\n" for name in labels))


def yolo(root: Path, labels: Labels) -> None:
    """Ultralytics' YOLO: data.yaml, images/ and labels/."""
    _pictures(root / "images/train", labels)
    for name, names in labels.items():
        lines = [f"{CLASSES.index(label)} 0.5 0.5 0.2 0.2\n" for label in names]
        _write(root / f"labels/train/{Path(name).stem}.txt", "".join(lines))
    names_ = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    _write(root / "data.yaml", f"path: .\ntrain: images/train\nnames:\n{names_}")


def cvat(root: Path, labels: Labels) -> None:
    """CVAT for images 1.1."""
    _pictures(root / "images", labels)
    listed = "".join(f"<label><name>{escape(name)}</name><attributes/></label>" for name in CLASSES)
    images = "".join(
        f'<image id="{n}" name={quoteattr(name)} width="48" height="36">'
        + "".join(f'<box label={quoteattr(label)} xtl="1" ytl="1" xbr="5" ybr="5" occluded="0"/>' for label in names)
        + "</image>"
        for n, (name, names) in enumerate(labels.items())
    )
    meta = f"<version>1.1</version><meta><task><labels>{listed}</labels></task></meta>"
    _write(root / "annotations.xml", f'<?xml version="1.0" encoding="utf-8"?><annotations>{meta}{images}</annotations>')


def labelme(root: Path, labels: Labels) -> None:
    """labelme: a JSON beside each photograph."""
    _pictures(root, labels)
    for name, names in labels.items():
        shapes: list[dict[str, Any]] = [
            {"label": label, "points": [[1, 1], [5, 5]], "shape_type": "rectangle", "flags": {}, "group_id": None}
            for label in names
        ]
        described: dict[str, Any] = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": name,
                                     "imageData": None, "imageHeight": 36, "imageWidth": 48}  # fmt: skip
        _write(root / f"{Path(name).stem}.json", json.dumps(described))


def labelstudio(root: Path, labels: Labels) -> None:
    """Label Studio's JSON of choices."""
    _pictures(root / "images", labels)
    tasks = [
        {
            "id": n,
            "data": {"image": f"/data/local-files/?d=images/{name.replace(' ', '%20')}"},
            "annotations": [
                {
                    "id": n,
                    "was_cancelled": False,
                    "result": [
                        {"from_name": "what", "to_name": "image", "type": "choices", "value": {"choices": list(names)}}
                    ],
                }
            ],
            "predictions": [],
        }
        for n, (name, names) in enumerate(labels.items(), 1)
    ]
    _write(root / "project-1.json", json.dumps(tasks))


def table(root: Path, labels: Labels) -> None:
    """A spreadsheet's CSV: semicolons, Windows-1252, 0/1 columns, an index."""
    _pictures(root / "photos", labels)
    lines = [";".join(["", "image", *CLASSES])]
    for n, (name, names) in enumerate(labels.items()):
        lines.append(";".join([str(n), f"photos/{name}", *(str(int(c in names)) for c in CLASSES)]))
    (root / "labels.csv").write_bytes(("\r\n".join(lines) + "\r\n").encode("cp1252"))


def literals(root: Path, labels: Labels) -> None:
    """What pandas writes of a column of lists, without suffixes."""
    _pictures(root / "train", labels)
    with (root / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "labels"])
        writer.writerows([Path(name).stem, str(list(names))] for name, names in labels.items())


def long_table(root: Path, labels: Labels) -> None:
    """Open Images: a row for each image and label, with what was verified absent, and names apart."""
    _pictures(root / "images", labels)
    codes = {name: f"/m/0{number}" for number, name in enumerate(CLASSES)}
    rows = ["ImageID,Source,LabelName,Confidence"]
    for name, names in labels.items():
        rows += [f"{Path(name).stem},verification,{codes[c]},{int(c in names)}" for c in CLASSES]
    _write(root / "train-annotations-human-imagelabels.csv", "\n".join(rows) + "\n")
    _write(root / "class-descriptions.csv", "".join(f"{code},{name}\n" for name, code in codes.items()))


def folders(root: Path, labels: Labels) -> None:
    """A folder for each class; a photograph lies in the folder of each class that it shows."""
    for name, names in labels.items():
        for label in names:
            (root / label).mkdir(parents=True, exist_ok=True)
            (root / label / name).write_bytes(picture(name))


def parquet(root: Path, labels: Labels) -> None:
    """Hugging Face's `datasets`: bytes and indices, names in the schema's metadata."""
    indices = [[CLASSES.index(label) for label in names] for names in labels.values()]
    images = [{"bytes": picture(name), "path": name} for name in labels]
    features = {
        "image": {"_type": "Image"},
        "labels": {"feature": {"names": list(CLASSES), "_type": "ClassLabel"}, "_type": "Sequence"},
    }
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("labels", pa.list_(pa.int64()))],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    (root / "data").mkdir(parents=True)
    pq.write_table(
        pa.table([images, indices], schema=schema), root / "data/train-00000-of-00001.parquet", row_group_size=7
    )


def webdataset(root: Path, labels: Labels) -> None:
    """WebDataset: a tar with a picture and a JSON under one key."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "train-000000.tar", "w") as tar:
        for name, names in labels.items():
            described = json.dumps({"labels": list(names)}).encode()
            for member, content in ((name, picture(name)), (f"{Path(name).stem}.json", described)):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def list_files(root: Path, labels: Labels) -> None:
    """The published lists: paths with indices, names with indices."""
    _pictures(root / "images", labels)
    lines = [f"images/{name} {' '.join(str(CLASSES.index(c)) for c in names)}\n" for name, names in labels.items()]
    _write(root / "train.txt", "".join(lines))
    _write(root / "labels.txt", "".join(f"{name} {number}\n" for number, name in enumerate(CLASSES)))


EXPORTS: dict[str, Callable[[Path, Labels], None]] = {
    "coco": coco, "voc": voc, "yolo": yolo, "cvat": cvat, "labelme": labelme, "labelstudio": labelstudio,
    "table": table, "literals": literals, "long_table": long_table, "folders": folders, "parquet": parquet,
    "webdataset": webdataset, "list_files": list_files,
}  # fmt: skip
