"""`dataset.stay_inside`: images that annotations say to be outside of a folder are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from pydantic import TypeAdapter

from cprfl.data.manifest import Manifest
from cprfl.errors import DatasetError
from cprfl.experiment import AnyDataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set's folder with an image, another image beside it, and a link to that."""
    root = tmp_path / "data"
    root.mkdir()
    for place in (root / "in.png", tmp_path / "out.png", tmp_path / "data-too.png"):
        Image.new("RGB", (8, 8)).save(place)
    (root / "link.png").symlink_to(tmp_path / "out.png")
    (root / "folder").symlink_to(tmp_path)
    return root


def read(root: Path, image: str, **more: object) -> Manifest:
    (root / "train.csv").write_text(f"image,labels\nin.png,dog\n{image},cat\n")
    dataset = {"name": "csv", "splits": {"train": "train.csv"}, **more}
    found: Manifest = TypeAdapter(AnyDataset).validate_python(dataset, context={"data_root": str(root)}).read()
    return found


OUTSIDE = ["../out.png", "{root}/../out.png", "link.png", "folder/out.png", "../data-too.png", "s3://bucket/a.png"]


@pytest.mark.parametrize("image", [*OUTSIDE, "http://127.0.0.1/a.png", "file://{root}/../out.png"])
def test_an_image_outside_is_refused_where_all_must_stay_inside(root: Path, image: str) -> None:
    image = image.format(root=root)
    with pytest.raises(DatasetError, match=r"outside of .*data \(dataset.stay_inside\)|outside of .*data/\."):
        read(root, image, stay_inside=".")


@pytest.mark.parametrize("image", ["./in2.png", "below/../in2.png", "{root}/in2.png"])
def test_an_image_inside_is_read_however_it_is_written(root: Path, image: str) -> None:
    Image.new("RGB", (8, 8)).save(root / "in2.png")
    assert len(read(root, image.format(root=root), stay_inside=".")) == 2


def test_images_may_be_anywhere_unless_it_is_said(root: Path) -> None:
    assert len(read(root, "../out.png")) == 2
