"""Labels that look like mistakes, by a trained model's held-out logits."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from cprfl.data.files import write_record
from cprfl.data.manifest import Manifest
from cprfl.errors import FeatureStoreError
from cprfl.evaluation.decisions import HELD_OUT, Decisions
from cprfl.evaluation.metrics import Evaluation, write_predictions
from cprfl.experiment import load
from cprfl.report.findings.label_mistakes import corrections, label_mistakes, write_label_mistakes
from cprfl.report.results import Results
from cprfl.training.checkpoint import CheckpointInfo
from tests.helpers import manifest_of


def made(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels of 300 images, and logits of a model that is right about them, mostly."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((300, 4)) < [0.5, 0.3, 0.1, 0.05]).astype(np.float32)
    return targets, 4 * targets - 3 + rng.normal(size=targets.shape)


def results_of(folder: Path, config: Path, manifest: Manifest, logits: np.ndarray | None) -> Results:
    """A model's results, as far as label mistakes need them: no features."""
    (folder / "checkpoint").mkdir(parents=True)
    write_record(folder / "prepared.json", {"features": None})
    if logits is not None:
        write_predictions(folder / "checkpoint" / HELD_OUT, manifest.image_ids, logits, manifest.class_names)
    return Results(folder, load(config), cast(CheckpointInfo, None), manifest, Evaluation({}, []))


@pytest.mark.parametrize("seed", range(3))
def test_flipped_labels_come_first_in_both_directions(seed: int, tmp_path: Path, small_config: Path) -> None:
    targets, logits = made(seed)
    rng, noisy = np.random.default_rng(seed + 10), targets.copy()
    places = [(int(row), label) for label in range(4) for value in (0, 1)
              for row in rng.choice(np.flatnonzero(targets[:, label] == value), 3, replace=False)]  # fmt: skip
    for place in places:
        noisy[place] = 1 - noisy[place]
    found = label_mistakes(results_of(tmp_path / "out", small_config, manifest_of(noisy), logits), 20)
    named = {(int(one.image_id), int(one.class_name[-1])) for one in found}
    assert len(found) == 20 and len(named & set(places)) >= 14
    assert {one.labelled for one in found} == {True, False}
    assert [one.margin for one in found] == sorted((one.margin for one in found), reverse=True)


def test_what_is_unknown_is_never_suspected_and_test_images_are_left_out(tmp_path: Path, small_config: Path) -> None:
    targets, logits = made()
    wrong = replace(
        manifest_of(1 - targets),  # the model disagrees with every label
        unknown=tuple((0,) if row % 2 else () for row in range(300)),
        splits=("test",) * 100 + ("val",) * 100 + ("train",) * 100,
    )
    found = label_mistakes(results_of(tmp_path / "out", small_config, wrong, -logits), 10_000)
    assert found
    for one in found:
        assert int(one.image_id) >= 100
        assert not (one.class_name == "class 0" and int(one.image_id) % 2)


def test_without_scores_and_features_it_says_what_to_set(tmp_path: Path, small_config: Path) -> None:
    results = results_of(tmp_path / "out", small_config, manifest_of(made()[0]), None)
    with pytest.raises(FeatureStoreError, match=r"train\.validation"):
        label_mistakes(results)


def test_corrections_keep_the_other_labels_of_an_image(tmp_path: Path, small_config: Path) -> None:
    targets, logits = made()
    noisy = targets.copy()
    noisy[0], logits[0] = [1, 1, 0, 0], [9, -9, 9, -9]  # the model: class 1 is wrong, class 2 is missing
    manifest = manifest_of(noisy)
    found = label_mistakes(results_of(tmp_path / "out", small_config, manifest, logits), 8)
    question = next(one for one in corrections(found, manifest) if one.image_id == "0")
    assert set(question.labels) == {"class 0", "class 2"}
    assert question.facts["labels_now"] == "class 0, class 1"
    assert set(str(question.facts["doubtful"]).split(", ")) == {"not class 1", "also class 2"}
    write_label_mistakes(tmp_path / "label_mistakes.csv", found)
    rows = list(csv.DictReader((tmp_path / "label_mistakes.csv").open()))
    assert [row["image_id"] for row in rows] == [one.image_id for one in found]


def test_scores_are_probabilities_where_the_model_s_calibration_is_there(tmp_path: Path, small_config: Path) -> None:
    targets, logits = made()
    targets[0], logits[0] = [1, 1, 0, 0], [9, -9, 9, -9]
    results = results_of(tmp_path / "out", small_config, manifest_of(targets), logits)
    plain = label_mistakes(results, 8)
    assert not any(one.calibrated for one in plain)
    names = results.manifest.class_names
    decisions = replace(Decisions.unfitted(names), slope_C=np.full(4, 0.1), intercept_C=np.full(4, -1.0), source="some")
    decisions.write(results.checkpoint)
    found = label_mistakes(results, 8)
    assert [(one.image_id, one.class_name, one.margin) for one in found] == [
        (one.image_id, one.class_name, one.margin) for one in plain
    ]
    for one in found:
        label = names.index(one.class_name)
        assert one.calibrated
        assert one.score == pytest.approx(float(decisions.of_class(label, logits[[int(one.image_id)], label])[0]))
        shown = decisions.of_class(label, logits[targets[:, label] == 1, label])
        assert one.usual == pytest.approx(float(shown.mean()), rel=1e-4)
