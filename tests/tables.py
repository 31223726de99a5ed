"""Tables in short: written, read, and what comes out of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cprfl.data.manifest import Manifest
from cprfl.data.readers.csv_table import CsvDataset

Shown = dict[str, set[str]]

HEAD = "image,labels\n"


def put(folder: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(folder: Path, text: str | bytes | Mapping[str, str | bytes], **options: Any) -> Manifest:
    texts = {"train": text} if isinstance(text, str | bytes) else text
    put(folder, {f"{split}.csv": content for split, content in texts.items()})
    splits = {split: str(folder / f"{split}.csv") for split in texts}
    return CsvDataset.model_validate({"splits": splits, **options}).read()


def shown(manifest: Manifest) -> Shown:
    """What each image shows, by its id."""
    return {
        image: {manifest.class_names[label] for label in labels}
        for image, labels in zip(manifest.image_ids, manifest.labels, strict=True)
    }


def unknown(manifest: Manifest) -> Shown:
    """Of which classes nobody knows, by the image's id."""
    listed = manifest.unknown or ((),) * len(manifest)
    return {
        image: {manifest.class_names[label] for label in labels}
        for image, labels in zip(manifest.image_ids, listed, strict=True)
    }


def names_of(*labels: str) -> list[set[str]]:
    """``"dog;boat"`` in short for the names of an image."""
    return [{name for name in own.split(";") if name} for own in labels]
