"""Small folders of annotations, and what comes out of them; for the tests of COCO, VOC, YOLO and CVAT."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from cprfl.data.manifest import Manifest
from cprfl.data.readers import coco, cvat, voc, yolo
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Tree

Files = dict[str, str | bytes]
"""Contents by path."""

READERS: dict[str, tuple[ModuleType, type[Any]]] = {
    "coco": (coco, coco.CocoDataset), "voc": (voc, voc.VocDataset),
    "yolo": (yolo, yolo.YoloDataset), "cvat": (cvat, cvat.CvatDataset),
}  # fmt: skip


def put(root: Path, files: Files) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def images(*names: str) -> Files:
    """Files of which the readers want no more than that they are there."""
    return dict.fromkeys(names, b"")


def read(reader: type[DatasetConfig], root: Path, **settings: Any) -> Manifest:
    """What a reader makes of a folder."""
    return reader.model_validate(settings, context={"data_root": str(root)}).read()


def says(manifest: Manifest) -> dict[str, str]:
    """The classes of each image, in one line, by the name of its file, which must be there."""
    assert all(Path(uri).is_file() for uri in manifest.uris)
    names = [",".join(manifest.class_names[label] for label in labels) for labels in manifest.labels]
    return dict(zip((Path(uri).name for uri in manifest.uris), names, strict=True))


def proposed(root: Path, reader: str) -> Manifest:
    """What comes out where a folder is read as it is proposed."""
    [proposal] = READERS[reader][0].discover(Tree.of(root))
    settings = dict(proposal.dataset)
    assert settings.pop("name") == reader
    for other in READERS.keys() - {reader}:
        assert READERS[other][0].discover(Tree.of(root)) == []
    return read(READERS[reader][1], root, **settings)
