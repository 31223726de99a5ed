"""Extraction, here and on real Ray Data: exact, resumable, shared by two runs, from and to S3."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import boto3
import pytest
import torch
from PIL import Image

from cprfl import feature_cache
from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import open_image
from cprfl.data.storage import Folder
from cprfl.errors import BadImagesError, WeightsError
from cprfl.experiment import Experiment, load
from cprfl.preparation import Prepared
from pipelines.stages.preprocess import preprocess
from tests.helpers import command, use_database, wait_for

MANY_VIEWS = "encoder.views=64"  # which make many shards and take some seconds


@pytest.fixture
def experiment(own_config: Path) -> Experiment:
    return load(own_config)


def changed(experiment: Experiment, **encoder: object) -> Experiment:
    values = experiment.model_dump(mode="json")
    return Experiment.model_validate(values | {"encoder": values["encoder"] | encoder})


def store_of(prepared: Prepared) -> FeatureStore:
    assert prepared.store is not None
    return prepared.store


def test_features_are_the_encoders_and_are_found_again(
    experiment: Experiment, own_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = changed(experiment, views=2, batch_size=5)
    done = preprocess(experiment)
    assert done.metrics["extraction/images"] == len(done.manifest) == 24
    assert done.metrics["extraction/images_per_second"] > 0
    store = store_of(done)
    store.verify()
    rows = {batch.image_ids[0]: batch for batch in store.iter_batches(1, views="plain")}
    encoder = done.encoder()
    with torch.inference_mode():
        expected = encoder(encoder.transform(open_image(str(own_photos / "07.png")))[None])
    assert torch.allclose(rows["07.png"].grid_BVD.float(), expected.grid_BVD, atol=2e-3)
    assert torch.allclose(rows["07.png"].global_BE.float(), expected.global_BE, atol=2e-3)
    views = [batch.views_B.tolist() for batch in store.iter_batches(4)]
    assert views[0] == [0, 1, 0, 1]
    monkeypatch.setattr(feature_cache, "encode", lambda *_: pytest.fail("encoded again"))
    again = preprocess(experiment)
    assert store_of(again).folder == store.folder
    assert again.metrics == done.metrics  # what it took when it was done


def test_a_changed_image_or_encoder_never_reads_the_old_store(experiment: Experiment, own_photos: Path) -> None:
    first = store_of(preprocess(experiment)).folder
    assert store_of(preprocess(changed(experiment, resize="crop"))).folder != first
    Image.new("RGB", (30, 30)).save(own_photos / "03.png")
    assert store_of(preprocess(experiment)).folder != first


def test_bad_images_are_reported_together_or_skipped(experiment: Experiment, own_photos: Path) -> None:
    (own_photos / "02.png").write_bytes(b"no image")
    (own_photos / "15.png").unlink()
    (own_photos / "20.png").write_bytes((own_photos / "21.png").read_bytes()[:200])
    (own_photos / "11.png").write_bytes(b"")
    with pytest.raises(BadImagesError, match=r"(?s)4 of 24 images are missing or do not decode.*02.*15.png: file not"):
        preprocess(experiment)
    report = experiment.folder / "bad_images.csv"
    bad = ["02.png", "11.png", "15.png", "20.png"]
    assert [row["image_id"] for row in csv.DictReader(report.open())] == bad
    values = experiment.model_dump(mode="json")
    skipping = Experiment.model_validate(values | {"dataset": values["dataset"] | {"on_bad_image": "skip"}})
    prepared = preprocess(skipping)
    assert len(store_of(prepared)) == len(prepared.manifest) == 20
    assert sorted(image.image_id for image in store_of(prepared).bad_images) == bad
    with pytest.raises(BadImagesError):
        preprocess(experiment)
    for name in bad:
        Image.new("RGB", (30, 30)).save(own_photos / name)
    preprocess(experiment)
    assert not report.exists()  # an old report would be believed


def test_text_embeddings_are_looked_up_before_they_are_computed(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(experiment)
    monkeypatch.setattr(type(experiment.text_encoder), "embed", lambda *_: pytest.fail("embedded again"))
    preprocess(experiment)


@pytest.mark.parametrize(
    ("num_workers", "address", "images", "here"),
    [
        (None, "", 5000, True),
        (None, "", 5001, False),
        (None, "127.0.0.1:6379", 1, False),
        (0, "127.0.0.1:6379", 10**6, True),
        (1, "", 1, False),
    ],
)
def test_a_few_images_are_encoded_here_unless_a_cluster_is_named(
    experiment: Experiment,
    monkeypatch: pytest.MonkeyPatch,
    num_workers: int | None,
    address: str,
    images: int,
    here: bool,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert changed(experiment, num_workers=num_workers).extracts_in_this_process(images) is here


@pytest.mark.usefixtures("ray_session")
def test_other_weights_on_a_node_are_an_error(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = experiment.encoder.build(experiment.cache_dir)
    torch.nn.init.zeros_(next(encoder.parameters()))
    monkeypatch.setattr(type(experiment.encoder), "build", lambda *_: encoder)  # in this process, not in the actors
    with pytest.raises(WeightsError, match="the weights on .* differ from those where the run was started"):
        preprocess(changed(experiment, num_workers=1))


@pytest.mark.slow
def test_two_runs_share_the_work_on_s3_and_leave_no_secret(
    own_config: Path, own_photos: Path, tmp_path: Path, database: Path, bucket: str, s3_server: dict[str, str]
) -> None:
    """One of them on Ray and to the end, the other in its own process; images and features are on S3."""
    client = boto3.client("s3")
    for file in own_photos.iterdir():
        client.upload_file(str(file), bucket.removeprefix("s3://"), f"data/{file.name}")
    settings = [f"data_root={bucket}/data", f"feature_dir={bucket}/features", MANY_VIEWS, "train.epochs=1"]
    on_ray = [*settings, "encoder.num_workers=1"]
    words = ["run", str(own_config), *(word for value in on_ray for word in ("--set", value))]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    root = Folder(f"{bucket}/features")
    wait_for(lambda: any((root / key).files() for key in root.folders()))
    use_database(tmp_path / "second", database)
    here = preprocess(load(own_config, [*settings, f"output_dir={tmp_path}/second"]))
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    (key,) = root.folders()
    store = FeatureStore.open((root / key).uri)
    store.verify()
    assert (store.num_images, store.views) == (24, 64)
    outputs = [tmp_path / "outputs", tmp_path / "second"]
    prepared = [json.loads((output / "small" / "prepared.json").read_text()) for output in outputs]
    assert {record["features"] for record in prepared} == {store.folder.uri}
    assert 24 <= sum(record["metrics"]["extraction/images"] for record in prepared) < 48
    local = preprocess(load(own_config, [MANY_VIEWS, f"output_dir={tmp_path}/second"]))  # the same cells as from a disk
    for ours, theirs in zip(store_of(here).iter_batches(128), store_of(local).iter_batches(128), strict=True):
        assert torch.equal(ours.grid_BVD, theirs.grid_BVD)
    assert not (tmp_path / "outputs" / "cache" / "features").exists()
    written = [file for output in outputs for file in output.rglob("*") if file.is_file()]
    assert written
    for secret in (s3_server["AWS_SECRET_ACCESS_KEY"], s3_server["AWS_ACCESS_KEY_ID"]):
        assert secret not in printed
        assert not [file for file in written if secret.encode() in file.read_bytes()]
