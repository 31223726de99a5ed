"""Photographs of animals: made ones, and an experiment on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from cprfl.data.manifest import Manifest
from cprfl.experiment import Experiment, load

CLASSES = ("cat", "dog", "fish", "snail", "newt")


def photo(number: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of large soft shapes with some grain, as photographs have."""
    rng = np.random.default_rng(number)
    shapes = Image.fromarray(rng.integers(0, 256, size=(6, 8, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grain = np.asarray(shapes, dtype=np.int16) + rng.integers(-12, 13, size=(size[1], size[0], 3))
    return Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8))


def manifest_of(folder: Path, rows: Sequence[tuple[str, str, str]], unknown: dict[str, str] | None = None) -> Manifest:
    """Rows of an image's name, its split, and its labels separated by blanks."""
    index = {name: label for label, name in enumerate(CLASSES)}
    ids = tuple(name for name, _, _ in rows)
    return Manifest(
        CLASSES,
        ids,
        tuple(str(folder / name) for name in ids),
        tuple(split for _, split, _ in rows),
        tuple(tuple(sorted(index[label] for label in labels.split())) for _, _, labels in rows),
        tuple((index[unknown[name]],) if name in unknown else () for name in ids) if unknown else (),
    )


def experiment_at(folder: Path, **more: object) -> Experiment:
    path = folder / "e.yaml"
    values = {
        "name": "animals",
        "data_root": str(folder),
        "output_dir": str(folder / "outputs"),
        "dataset": {"name": "csv", "splits": {"train": "train.csv", "test": "test.csv"}},
        "encoder": {"name": "torchvision", "model": "squeezenet1_1", "pretrained": "random", "image_size": 64},
        "text_encoder": {"name": "random", "dim": 16},
        "model": {"name": "linear_probe"},
        **more,
    }
    path.write_text(yaml.safe_dump(values))
    return load(path)
