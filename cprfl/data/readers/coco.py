"""COCO's instances JSON, read through pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any, Literal

from pycocotools.coco import COCO

from cprfl.config import Config
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.text import read_text
from cprfl.data.storage import DataPath, join
from cprfl.errors import DatasetError


class CocoSplit(Config):
    """One annotation file and the folder its ``file_name`` entries are relative to."""

    annotations: DataPath
    images: DataPath


class CocoDataset(DatasetConfig):
    """Image-level labels of object annotations; an image without any is kept as an all-negative row.

    Classes are the categories in ascending order of COCO's own, non-contiguous ids. ``crowd`` tells whether crowd
    annotations count as labels, as they do in the published lists.
    """

    name: Literal["coco"] = "coco"
    splits: dict[SplitName, CocoSplit]
    crowd: bool = True

    def read_annotations(self) -> Annotations:
        """Class names, and the rows of each split in the file's order."""
        class_names: list[str] = []
        rows: dict[SplitName, list[Row]] = {}
        for split, source in self.splits.items():
            names, rows[split] = self._read_split(source)
            class_names += [name for name in names if name not in class_names]
        return Annotations(class_names, rows)

    def _read_split(self, source: CocoSplit) -> tuple[list[str], list[Row]]:
        path = source.annotations
        coco = _index(path)
        categories = sorted(coco.cats.values(), key=lambda category: category["id"])
        names = {category["id"]: str(category["name"]) for category in categories}
        rows = []
        for image in coco.dataset["images"]:
            labels = []
            for annotation in coco.imgToAnns[image["id"]]:
                if annotation["category_id"] not in names:
                    raise DatasetError(
                        f"{path}, annotation {annotation.get('id')}: category {annotation['category_id']} is not in "
                        "`categories`"
                    )
                if self.crowd or not annotation.get("iscrowd"):
                    labels.append(names[annotation["category_id"]])
            uri = join(source.images, image["file_name"])
            rows.append(Row(image["file_name"], uri, labels, f"{path}, image {image['id']}"))
        return list(names.values()), rows


def _index(path: str) -> Any:
    """A pycocotools index of the file, after checks that pycocotools does not make."""
    try:
        dataset = json.loads(read_text(path, "COCO annotations"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    for section, keys in {
        "images": ("id", "file_name"),
        "categories": ("id", "name"),
        "annotations": ("image_id", "category_id"),
    }.items():
        if not isinstance(dataset, dict) or not isinstance(dataset.get(section), list):
            raise DatasetError(
                f"{path}: no list `{section}`; an instances file of COCO has images, annotations, categories"
            )
        for position, entry in enumerate(dataset[section]):
            missing = [key for key in keys if key not in entry]
            if missing:
                raise DatasetError(f"{path}, {section}[{position}]: no `{missing[0]}`")
    if not dataset["images"]:
        raise DatasetError(f"{path}: `images` is empty")
    known: set[int] = set()
    for image in dataset["images"]:
        if image["id"] in known:
            raise DatasetError(f"{path}, image {image['id']}: listed twice; remove one")
        known.add(image["id"])
    for annotation in dataset["annotations"]:
        if annotation["image_id"] not in known:
            raise DatasetError(
                f"{path}, annotation {annotation.get('id')}: image {annotation['image_id']} is not in `images`"
            )
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco
