"""The feature store: found again, never stale, whole shards only, damage is named."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cprfl.data import feature_store
from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import open_image
from cprfl.data.manifest import Manifest
from cprfl.encoders import extraction
from cprfl.encoders.cnn import CnnEncoder
from cprfl.encoders.image import ImageEncoder
from cprfl.errors import BadImagesError, FeatureStoreError, UnreadableImageError


def build(tmp_path: Path, **options: object) -> ImageEncoder:
    settings = {"model": "squeezenet1_1", "pretrained": "random", "image_size": 64} | options
    return CnnEncoder.Config.model_validate(settings).build(tmp_path)


def manifest_of(folder: Path) -> Manifest:
    files = sorted(folder.glob("*.png"))
    ids = tuple(file.stem for file in files)
    return Manifest(("x",), ids, tuple(map(str, files)), ("train",) * len(ids), ((0,),) * len(ids))


def extract(folder: Path, tmp_path: Path, encoder: ImageEncoder, on_bad_image: str = "error") -> FeatureStore:
    return extraction.extract(
        manifest_of(folder), encoder, tmp_path / "stores", on_bad_image=on_bad_image, report=tmp_path / "bad.csv"
    )


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "ROWS_PER_SHARD", 10)


def test_features_are_the_encoders_and_are_found_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build(tmp_path, views=2, batch_size=5)
    store = extract(photos, tmp_path, encoder)
    features = store.read()
    assert len(store) == 48
    assert features.image_ids[:3] == ("00", "00", "01")
    assert features.views[:4].tolist() == [0, 1, 0, 1]
    assert features.grid.shape == (48, 9, 512)
    image = encoder.transform(open_image(str(photos / "07.png")))
    with torch.inference_mode():
        expected = encoder(image[None])
    assert np.allclose(features.grid[14], expected.grid_BVD[0], atol=2e-3)
    assert np.allclose(features.global_features[14], expected.global_BE[0], atol=2e-3)
    store.verify()
    monkeypatch.setattr(extraction, "open_image", lambda _: pytest.fail("encoded again"))
    assert extract(photos, tmp_path, encoder).path == store.path


def test_a_changed_image_or_encoder_never_reads_the_old_store(photos: Path, tmp_path: Path) -> None:
    first = extract(photos, tmp_path, build(tmp_path)).path
    assert extract(photos, tmp_path, build(tmp_path, resize="crop")).path != first
    Image.new("RGB", (30, 30)).save(photos / "03.png")
    assert extract(photos, tmp_path, build(tmp_path)).path != first


def test_an_interrupted_extraction_goes_on_with_the_missing_shards(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract(photos, tmp_path / "whole", build(tmp_path)).read()
    opened: list[str] = []

    def dies_at_the_thirteenth(uri: str) -> Image.Image:
        opened.append(uri)
        if len(opened) == 13:
            raise KeyboardInterrupt
        return open_image(uri)

    monkeypatch.setattr(extraction, "open_image", dies_at_the_thirteenth)
    with pytest.raises(KeyboardInterrupt):
        extract(photos, tmp_path, build(tmp_path))
    (folder,) = (tmp_path / "stores").iterdir()
    assert [file.name for file in folder.iterdir()] == ["features-00000.parquet"]
    with pytest.raises(FeatureStoreError, match="no finished feature store"):
        FeatureStore.open(str(folder))
    opened.clear()
    opened.extend(["elsewhere"] * 13)
    again = extract(photos, tmp_path, build(tmp_path)).read()
    assert len(opened) == 13 + 14  # the first shard's ten images were not opened again
    assert again.image_ids == whole.image_ids
    assert again.grid.tobytes() == whole.grid.tobytes()


def test_damage_is_named_with_its_mend(photos: Path, tmp_path: Path) -> None:
    store = extract(photos, tmp_path, build(tmp_path))
    shard = store.path / "features-00001.parquet"
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 1
    shard.write_bytes(bytes(flipped))
    for reading in (store.verify, store.read):
        with pytest.raises(FeatureStoreError, match=r"features-00001.parquet: damaged shard .*preprocess again"):
            reading()
    shard.write_bytes(content[:1000])
    with pytest.raises(FeatureStoreError, match="damaged shard"):
        store.read()
    shard.write_bytes((store.path / "features-00002.parquet").read_bytes())
    with pytest.raises(FeatureStoreError, match="belongs to another store"):
        store.read()
    shard.unlink()
    with pytest.raises(FeatureStoreError, match="features-00001.parquet: shard missing"):
        FeatureStore.open(str(store.path))


def test_bad_images_are_reported_together_or_skipped(photos: Path, tmp_path: Path) -> None:
    manifest = manifest_of(photos)
    (photos / "02.png").write_bytes(b"no image")
    (photos / "15.png").unlink()
    (photos / "20.png").write_bytes((photos / "21.png").read_bytes()[:200])
    encoder = build(tmp_path)

    def run(on_bad_image: str) -> FeatureStore:
        return extraction.extract(
            manifest, encoder, tmp_path / "stores", on_bad_image=on_bad_image, report=tmp_path / "bad.csv"
        )

    with pytest.raises(BadImagesError, match=r"(?s)3 of 24 images are missing or do not decode.*02.*15: file not"):
        run("error")
    rows = list(csv.DictReader((tmp_path / "bad.csv").open()))
    assert [row["image_id"] for row in rows] == ["02", "15", "20"]
    store = run("skip")
    assert len(store) == 21
    assert [bad.image_id for bad in store.bad_images] == ["02", "15", "20"]
    with pytest.raises(BadImagesError):
        run("error")


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1"])
def test_images_of_every_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 4), 40_000, dtype=np.uint16))
    else:
        image = Image.new("RGB", (4, 5), (200, 200, 200)).convert(mode)
    path = tmp_path / f"x.{'tiff' if mode == 'CMYK' else 'png'}"
    image.save(path)
    opened = open_image(str(path))
    assert (opened.mode, opened.size) == ("RGB", (4, 5))
    if mode not in ("1", "CMYK"):
        assert abs(np.asarray(opened).mean() - (155.6 if mode == "I;16" else 200)) < 5


def test_exif_orientation_is_applied_and_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "r.jpg", exif=exif)
    assert open_image(str(tmp_path / "r.jpg")).size == (4, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImageError):
        open_image(str(tmp_path / "r.jpg"))
