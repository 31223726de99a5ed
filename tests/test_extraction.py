"""Extraction on real Ray Data: exact, resumable, shared by two runs, from and to S3, whatever the images are."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from pipelines.preprocess import preprocess

from cprfl.data import store_filling
from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import open_image
from cprfl.errors import BadImagesError, UnreadableImageError, WeightsError
from cprfl.experiment import Experiment, load
from pipelines import cluster, extraction
from tests.conftest import write_config


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_filling, "ROWS_PER_SHARD", 10)


def extract(experiment: Experiment, tmp_path: Path) -> extraction.Extraction:
    return extraction.extract(experiment.dataset.read(), experiment, report=tmp_path / "bad.csv")


@pytest.fixture
def experiment(own_config: Path) -> Experiment:
    return load(own_config)


def changed(experiment: Experiment, **encoder: object) -> Experiment:
    values = experiment.model_dump(mode="json")
    return Experiment.model_validate(values | {"encoder": values["encoder"] | encoder})


@pytest.mark.usefixtures("ray_session")
def test_features_are_the_encoders_and_are_found_again(
    experiment: Experiment, own_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = changed(experiment, views=2, batch_size=5)
    done = extract(experiment, tmp_path)
    ids = experiment.dataset.read().image_ids
    assert done.metrics["extraction/images"] == len(ids) == 24
    assert done.metrics["extraction/images_per_second"] > 0
    store = done.store
    store.verify()
    rows = {batch.image_ids[0]: batch for batch in store.iter_batches(1, views="plain")}
    encoder = experiment.encoder.build(experiment.cache_dir)
    with torch.inference_mode():
        expected = encoder(encoder.transform(open_image(str(own_photos / "07.png")))[None])
    assert torch.allclose(rows["07.png"].grid_BVD.float(), expected.grid_BVD, atol=2e-3)
    assert torch.allclose(rows["07.png"].global_BE.float(), expected.global_BE, atol=2e-3)
    views = [batch.views_B.tolist() for batch in store.iter_batches(4)]
    assert views[0] == [0, 1, 0, 1]
    monkeypatch.setattr(extraction, "_run", lambda *_: pytest.fail("encoded again"))
    again = extract(experiment, tmp_path)
    assert (again.store.folder, again.metrics["extraction/images"]) == (store.folder, 0)


@pytest.mark.usefixtures("ray_session")
def test_a_changed_image_or_encoder_never_reads_the_old_store(
    experiment: Experiment, own_photos: Path, tmp_path: Path
) -> None:
    first = extract(experiment, tmp_path).store.folder
    assert extract(changed(experiment, resize="crop"), tmp_path).store.folder != first
    Image.new("RGB", (30, 30)).save(own_photos / "03.png")
    assert extract(experiment, tmp_path).store.folder != first


@pytest.mark.usefixtures("ray_session")
def test_bad_images_are_reported_together_or_skipped(experiment: Experiment, own_photos: Path, tmp_path: Path) -> None:
    (own_photos / "02.png").write_bytes(b"no image")
    (own_photos / "15.png").unlink()
    (own_photos / "20.png").write_bytes((own_photos / "21.png").read_bytes()[:200])
    (own_photos / "11.png").write_bytes(b"")
    with pytest.raises(BadImagesError, match=r"(?s)4 of 24 images are missing or do not decode.*02.*15.png: file not"):
        extract(experiment, tmp_path)
    rows = list(csv.DictReader((tmp_path / "bad.csv").open()))
    assert [row["image_id"] for row in rows] == ["02.png", "11.png", "15.png", "20.png"]
    values = experiment.model_dump(mode="json")
    skipping = Experiment.model_validate(values | {"dataset": values["dataset"] | {"on_bad_image": "skip"}})
    store = extract(skipping, tmp_path).store
    assert len(store) == 20
    assert sorted(bad.image_id for bad in store.bad_images) == ["02.png", "11.png", "15.png", "20.png"]
    assert len(preprocess(skipping).read_manifest()) == 20
    with pytest.raises(BadImagesError):
        extract(experiment, tmp_path)


@pytest.mark.usefixtures("ray_session")
def test_other_weights_on_a_node_are_an_error(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = experiment.encoder.build(experiment.cache_dir)
    torch.nn.init.zeros_(next(encoder.parameters()))
    monkeypatch.setattr(type(experiment.encoder), "build", lambda *_: encoder)  # in this process, not in the actors
    with pytest.raises(WeightsError, match="the weights on .* differ from those where the run was started"):
        extract(experiment, tmp_path)


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


def test_no_flipped_bit_ends_a_run(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 4), (9, 99, 199)).save(path, exif=exif)
    content = path.read_bytes()
    refused = 0
    for bit in range(8 * 120):  # EXIF and the first tables
        path.write_bytes(bytes([*content[: bit // 8], content[bit // 8] ^ (1 << bit % 8), *content[bit // 8 + 1 :]]))
        try:
            open_image(str(path))
        except UnreadableImageError:
            refused += 1
    assert refused


def command(config: Path, *overrides: str) -> list[str]:
    """`cprfl preprocess` with many views, which make many shards and take some seconds."""
    options = [option for value in ("encoder.views=64", *overrides) for option in ("--set", value)]
    return [sys.executable, "-m", "pipelines.cli", "preprocess", str(config), *options]


def stored(root: Path) -> dict[str, bytes]:
    """Bytes of the shards of the only store, by name."""
    (folder,) = root.iterdir()
    return {file.name: file.read_bytes() for file in folder.glob("features-*.parquet")}


def wait_for_shards(root: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(root.glob("*/features-*"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, bytes]:
    """The shards of an extraction that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    cluster.connect(dashboard=True)
    config = write_config(folder / "small.yaml", photos)
    extract(load(config, ["encoder.views=64", f"feature_dir={folder}/features"]), folder)
    assert len(stored(folder / "features")) == 12
    return stored(folder / "features")


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_with_the_missing_shards(
    small_config: Path, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    root = tmp_path / "killed"
    process = subprocess.Popen(command(small_config, f"feature_dir={root}"), start_new_session=True)
    wait_for_shards(root, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = stored(root)
    assert 3 <= len(there) < 12
    times = {file: file.stat().st_mtime_ns for file in root.glob("*/features-*")}
    process = subprocess.Popen(command(small_config, f"feature_dir={root}"))  # goes on, and loses its workers
    wait_for_shards(root, len(there) + 1)
    victims = [child for child in psutil.Process(process.pid).children(recursive=True)
               if "MapWorker" in " ".join(child.cmdline())]  # fmt: skip
    assert victims
    for victim in victims:
        victim.kill()
    assert process.wait(timeout=180) == 0
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in times.items())
    assert stored(root) == undisturbed


@pytest.mark.slow
def test_two_runs_share_the_work(small_config: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    root = tmp_path / "shared"
    outputs = [tmp_path / "first", tmp_path / "second"]
    commands = [command(small_config, f"feature_dir={root}", f"output_dir={output}") for output in outputs]
    processes = [subprocess.Popen(each) for each in commands]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    assert stored(root) == undisturbed
    encoded = [
        json.loads((output / "small" / "prepared.json").read_text())["metrics"]["extraction/images"]
        for output in outputs
    ]
    assert 24 <= sum(encoded) < 48
    (folder,) = root.iterdir()
    FeatureStore.open(str(folder)).verify()


@pytest.mark.slow
def test_images_and_features_on_s3_and_no_secret_in_what_is_left(
    own_config: Path, own_photos: Path, tmp_path: Path, bucket: str, s3_server: dict[str, str]
) -> None:
    client = boto3.client("s3")
    for file in own_photos.iterdir():
        client.upload_file(str(file), bucket.removeprefix("s3://"), f"data/{file.name}")
    overrides = [f"data_root={bucket}/data", f"feature_dir={bucket}/features", "encoder.views=1", "train.epochs=1"]
    options = [option for value in overrides for option in ("--set", value)]
    run = [sys.executable, "-m", "pipelines.cli", "run", str(own_config), *options]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    prepared = json.loads((tmp_path / "outputs" / "small" / "prepared.json").read_text())
    assert prepared["features"].startswith(f"{bucket}/features/")
    store = FeatureStore.open(prepared["features"])
    assert store.num_images == 24
    store.verify()
    assert not (tmp_path / "outputs" / "cache" / "features").exists()
    assert s3_server["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr
    written = [file for file in (tmp_path / "outputs").rglob("*") if file.is_file()]
    assert written
    for secret in (s3_server["AWS_SECRET_ACCESS_KEY"], s3_server["AWS_ACCESS_KEY_ID"]):
        assert not [file for file in written if secret.encode() in file.read_bytes()]
