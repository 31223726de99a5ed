"""Labels that are likely wrong, by the cached features."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cprfl.data.feature_store.filling import StoreInProgress, StoreKey
from cprfl.data.feature_store.shards import Features, write_shard
from cprfl.data.files import write_record
from cprfl.data.images import image_stamps
from cprfl.data.manifest import Manifest
from cprfl.experiment import Experiment
from cprfl.preparation import PREPARED
from cprfl.report.data_set.report import data_report
from cprfl.report.findings import label_noise
from cprfl.report.findings.label_noise import confident_disagreement, out_of_fold_logits
from tests.animals import experiment_at


def made_features(seed: int, num_images: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, 24] in which each of six classes has a direction of its own, and multi-hot targets."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_images, 6)) < np.array([0.5, 0.3, 0.2, 0.1, 0.06, 0.04])).astype(np.float32)
    return targets @ rng.normal(size=(6, 24)) * 2 + rng.normal(size=(num_images, 24)), targets


def flip(targets: np.ndarray, seed: int, count: int) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Targets with so many labels taken away and as many added, and where."""
    rng, flipped = np.random.default_rng(seed), targets.copy()
    given, absent = (np.argwhere(targets == value) for value in (1, 0))
    places = np.concatenate(
        [given[rng.choice(len(given), count, False)], absent[rng.choice(len(absent), count, False)]]
    )
    flipped[tuple(places.T)] = 1 - flipped[tuple(places.T)]
    return flipped, {(int(row), int(label)) for row, label in places}


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_are_the_first_suspects(seed: int) -> None:
    features, targets = made_features(seed)
    flipped, places = flip(targets, seed, 10)
    margin = confident_disagreement(out_of_fold_logits(features, flipped), flipped)
    order = np.argsort(-margin, axis=None)[:20]
    first = {(int(row), int(label)) for row, label in zip(*np.unravel_index(order, margin.shape), strict=True)}
    assert len(first & places) >= 14


def test_of_many_images_some_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    features, targets = made_features(0, 2000)
    flipped, places = flip(targets, 0, 10)
    every = out_of_fold_logits(features, flipped)
    monkeypatch.setattr(label_noise, "_ENOUGH", 200)
    some = out_of_fold_logits(features, flipped)
    assert np.abs(every.mean(axis=0) - some.mean(axis=0)).max() < 0.5  # negatives that were left out are made up for
    order = np.argsort(-confident_disagreement(some, flipped), axis=None)[:20]
    assert sum((int(at) // 6, int(at) % 6) in places for at in order) >= 14


def test_nothing_is_said_of_what_is_unknown_or_hardly_seen() -> None:
    features, targets = made_features(0)
    unknown = np.random.default_rng(1).random(targets.shape) < 0.2
    targets[unknown] = np.nan
    targets[:, 5] = 0
    targets[:4, 5] = 1
    logits = out_of_fold_logits(features, targets)
    margin = confident_disagreement(logits, targets)
    assert np.isneginf(margin[unknown]).all()
    assert np.isnan(logits[:, 5]).all() and np.isneginf(margin[:, 5]).all()
    assert np.isfinite(margin).any()


def with_features(folder: Path, manifest: Manifest, features: np.ndarray) -> Experiment:
    """The experiment, as if it had been preprocessed: each image has one cell of these features."""
    experiment = experiment_at(folder)
    listed = tuple(zip(manifest.image_ids, manifest.uris, image_stamps(manifest.uris), strict=True))
    key = StoreKey(listed, "encoder", 1)
    target = StoreInProgress(experiment.feature_root, key, {"model": "test"})
    for number, rows in enumerate(key.shards()):
        grid = features[list(rows), None].astype("<f2")
        image_ids = tuple(manifest.image_ids[row] for row in rows)
        write_shard(target.folder, number, Features(image_ids, np.zeros(len(rows), np.int8), grid, grid[:, 0]), [])
    write_record(experiment.folder / PREPARED, {"features": target.finish().folder.uri})
    return experiment


def test_features_that_are_there_are_found_and_tell_what_is_mislabelled(tmp_path: Path) -> None:
    features, targets = made_features(0)
    flipped, places = flip(targets, 0, 6)
    for number in range(len(flipped)):
        (tmp_path / f"{number}.png").write_bytes(b"%d" % number)
    names = tuple("abcdef")
    image_ids = tuple(f"{number}.png" for number in range(len(flipped)))
    uris = tuple(str(tmp_path / image_id) for image_id in image_ids)
    labels = tuple(tuple(np.flatnonzero(row).tolist()) for row in flipped)
    manifest = Manifest(names, image_ids, uris, ("train",) * 250 + ("test",) * 50, labels)
    experiment = with_features(tmp_path, manifest, features)
    found = data_report(experiment, manifest, open_images=False).suspects
    assert found is not None and {suspect.labelled for suspect in found} == {True, False}
    assert [suspect.margin for suspect in found] == sorted((suspect.margin for suspect in found), reverse=True)
    named = {(image_ids.index(suspect.image_id), names.index(suspect.class_name)) for suspect in found}
    in_training = {place for place in places if place[0] < 250}
    assert len(named & in_training) >= 0.8 * len(in_training) and len(named) <= 1.5 * len(in_training)
    assert all(suspect.score < suspect.usual for suspect in found if suspect.labelled)

    (tmp_path / "0.png").write_bytes(b"changed")
    assert "changed since" in str(data_report(experiment, manifest, open_images=False).no_suspects)
    shutil.rmtree(experiment.feature_root)
    assert "cprfl preprocess" in str(data_report(experiment, manifest, open_images=False).no_suspects)
