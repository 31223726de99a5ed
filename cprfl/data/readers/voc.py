"""Pascal VOC: one XML file an image, and ImageSets/Main/<set>.txt."""

from __future__ import annotations

from typing import Literal
from xml.etree import ElementTree

from cprfl.config import Config
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.text import read_lines
from cprfl.data.storage import DataPath, join, read_bytes
from cprfl.errors import DatasetError

VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


class VocSplit(Config):
    """A folder with JPEGImages, Annotations and ImageSets, and the set of images to take from it."""

    root: DataPath
    image_set: str


class VocDataset(DatasetConfig):
    """Image-level labels of VOC's objects; ``difficult`` tells whether objects marked so count."""

    name: Literal["voc"] = "voc"
    splits: dict[SplitName, VocSplit]
    classes: list[str] | None = VOC_CLASSES
    difficult: bool = True

    def read_annotations(self) -> Annotations:
        """The configured class names, and the rows of each image set."""
        return Annotations(self.classes or [], {split: self._read_set(source) for split, source in self.splits.items()})

    def _read_set(self, source: VocSplit) -> list[Row]:
        listing = join(source.root, f"ImageSets/Main/{source.image_set}.txt")
        year = source.root.rstrip("/").rpartition("/")[2]  # VOC2007 and VOC2012 both have numbers that may meet
        rows = []
        for number, line in read_lines(listing, "image set"):
            image = line.split()[0]
            path = join(source.root, f"Annotations/{image}.xml")
            labels = self._objects(path, f"{listing}, line {number}")
            uri = join(source.root, f"JPEGImages/{image}.jpg")
            rows.append(Row(f"{year}/{image}", uri, labels, f"{listing}, line {number}"))
        return rows

    def _objects(self, path: str, where: str) -> list[str]:
        try:
            objects = ElementTree.fromstring(read_bytes(path)).findall("object")
        except FileNotFoundError:
            raise DatasetError(f"{path}: annotation not found, though {where} lists it") from None
        except ElementTree.ParseError as error:
            raise DatasetError(f"{path}: not XML: {error}") from None
        names = []
        for position, element in enumerate(objects):
            name = (element.findtext("name") or "").strip()
            if not name:
                raise DatasetError(f"{path}, object {position}: no <name>")
            if self.difficult or (element.findtext("difficult") or "0").strip() != "1":
                names.append(name)
        return names
