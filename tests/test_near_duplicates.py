"""Pictures that are nearly the same, found by features and confirmed by pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from cprfl.experiment import load
from cprfl.preparation import Prepared, prepare
from cprfl.report.findings.near_duplicates import (
    SAME,
    correlation,
    near_duplicates,
    similar_pairs,
    small_copy,
    write_near_duplicates,
)

COPIES = 5  # of each kind


def changed(kind: str, image: Image.Image, number: int) -> tuple[Image.Image, int]:
    """Another version of a picture, and the quality that it is saved in."""
    if kind == "encoded":
        return image, 25
    if kind == "resized":
        factor = (0.5, 0.7, 1.5)[number % 3]
        return image.resize((round(image.width * factor), round(image.height * factor))), 85
    if kind == "cropped":  # 5 % of width and height
        left, top = round(image.width * 0.05 * (number % 3) / 2), round(image.height * 0.05 * (number % 2))
        return image.crop((left, top, left + round(image.width * 0.95), top + round(image.height * 0.95))), 90
    return ImageEnhance.Brightness(image).enhance((0.65, 0.8, 1.3)[number % 3]), 90


KINDS = ("encoded", "resized", "cropped", "brighter")


@pytest.fixture(scope="module")
def planted(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """60 photographs, every other of the first 40 with one changed copy in the other split, with features."""
    folder = tmp_path_factory.mktemp("planted")
    photos = sorted((shared / "data/coco_mini/images").rglob("*.jpg"))[:60]
    rows = {"train": ["image,labels"], "test": ["image,labels"]}
    for number, photo in enumerate(photos):
        rows["train" if number % 3 else "test"].append(f"{photo},{'ab'[number % 2]}")
    for number in range(COPIES * len(KINDS)):
        kind = KINDS[number % len(KINDS)]
        image, quality = changed(kind, Image.open(photos[2 * number]).convert("RGB"), number)
        path = folder / f"{photos[2 * number].stem}-{kind}.jpg"
        image.save(path, quality=quality)
        rows["test" if (2 * number) % 3 else "train"].append(f"{path},{'ab'[number % 2]}")
    for split, lines in rows.items():
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    config = folder / "planted.yaml"
    config.write_text(
        f"""
name: planted
output_dir: {folder / "outputs"}
dataset: {{name: csv, splits: {{train: {folder / "train.csv"}, test: {folder / "test.csv"}}}}}
encoder:
  name: torchvision
  model: squeezenet1_1
  weights: {shared / "data/weights/squeezenet1_1_imagenet.safetensors"}
  image_size: 128
text_encoder: {{name: random, dim: 8}}
model: {{name: logistic_regression}}
"""
    )
    return prepare(load(config))


def test_planted_copies_are_found_and_nothing_else(planted: Prepared) -> None:
    assert planted.store is not None
    found = near_duplicates(planted.manifest, planted.store)
    right = [pair for pair in found if len({Path(uri).stem.partition("-")[0] for uri in pair.uris}) == 1]
    assert len(right) == len(found)
    assert len(right) >= 0.9 * COPIES * len(KINDS)
    assert all(pair.leaks for pair in found)
    assert {Path(uri).stem.partition("-")[2] for pair in right for uri in pair.uris} - {""} == set(KINDS)


def test_leaks_come_first_and_are_written(planted: Prepared, tmp_path: Path) -> None:
    assert planted.store is not None
    rows = [split if number % 4 else "train" for number, split in enumerate(planted.manifest.splits)]
    found = near_duplicates(replace(planted.manifest, splits=tuple(rows)), planted.store)
    leaks = [pair.leaks for pair in found]
    assert leaks == sorted(leaks, reverse=True)
    write_near_duplicates(tmp_path / "near_duplicates.csv", found)
    assert len((tmp_path / "near_duplicates.csv").read_text().splitlines()) == len(found) + 1


def test_a_picture_that_is_gone_is_named_without_a_correlation(planted: Prepared, tmp_path: Path) -> None:
    assert planted.store is not None
    gone = tuple(str(tmp_path / Path(uri).name) for uri in planted.manifest.uris)
    found = near_duplicates(replace(planted.manifest, uris=gone), planted.store)
    assert found and all(pair.correlation is None for pair in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 1.3), st.integers(-20, 20))
def test_exposure_does_not_count(seed: int, contrast: float, level: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(60, 160, size=(6, 6, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC)
    other = Image.fromarray((np.asarray(image, dtype=float) * contrast + level).clip(0, 255).astype(np.uint8))
    assert correlation(small_copy(image), small_copy(other)) > SAME
    mirrored = image.transpose(Image.Transpose.ROTATE_180)
    assert correlation(small_copy(image), small_copy(image)) >= correlation(small_copy(image), small_copy(mirrored))


@pytest.mark.parametrize("num_images", [2, 3, 7, 2500])
def test_pairs_are_found_whatever_the_number_of_images(num_images: int) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_images, 32)).astype(np.float32)
    if num_images > 3:
        features[-1] = features[0] + 0.01 * rng.normal(size=32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pairs, similarity = similar_pairs(features)
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)
    if num_images > 3:
        assert [0, num_images - 1] in pairs.tolist()
    assert np.allclose(similarity, (features[pairs[:, 0]] * features[pairs[:, 1]]).sum(axis=1), atol=1e-5)
