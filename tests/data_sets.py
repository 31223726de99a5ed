"""Small labelled data sets that tests write in some format, and what a manifest must say of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest

ALPHABET = st.characters(categories=["L", "N"], max_codepoint=0x2FF) | st.sampled_from(" -_.#%+&'")
CLASSES = st.lists(
    st.text(ALPHABET, min_size=1, max_size=8).map(lambda name: " ".join(name.split())).filter(lambda n: n.strip("#.")),
    min_size=1,
    max_size=4,
    unique_by=str.casefold,
)
STEMS = st.text("abzäß 0-_", min_size=1, max_size=6).map(str.strip).filter(bool)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[list[str], dict[str, list[str]]]:
    """Classes, and the labels of images by file name; every class is shown."""
    classes = draw(CLASSES)
    names = draw(st.lists(STEMS, min_size=1, max_size=6, unique_by=str.casefold))
    images = {
        f"{name}.{draw(st.sampled_from(['jpg', 'JPEG', 'png']))}": draw(st.lists(st.sampled_from(classes), unique=True))
        for name in names
    }
    first = next(iter(images))
    shown = {label for labels in images.values() for label in labels}
    images[first] += [name for name in classes if name not in shown]
    return classes, images


EVERY_DIALECT = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def says(manifest: Manifest) -> dict[str, list[str]]:
    """Labels by id."""
    labels = [sorted(manifest.class_names[label] for label in own) for own in manifest.labels]
    return dict(zip(manifest.image_ids, labels, strict=True))


def sorted_labels(images: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The same of what was written."""
    return {name: sorted(labels) for name, labels in images.items()}


def clean(folder: Path) -> Path:
    """An empty folder of a new name."""
    path = folder / f"example-{len(list(folder.iterdir()))}"
    path.mkdir()
    return path


def touch(*paths: Path) -> None:
    """Files that stand for images: their names are their bytes."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def write_json(path: Path, value: Any) -> str:
    """A JSON file; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)
