"""Thresholds and calibration: what is fitted, on which images, and that it goes with the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from cprfl.data.manifest import TRAIN, VALIDATION
from cprfl.errors import CheckpointError, ConfigError
from cprfl.evaluation import f1_scores
from cprfl.evaluation.calibration import calibrate
from cprfl.evaluation.decisions import DECISIONS, HELD_OUT, Decisions, DecisionsConfig
from cprfl.evaluation.metrics import predicted_images
from cprfl.evaluation.reliability import calibration_error, decided_metrics, reliability
from cprfl.experiment import load
from cprfl.inference.deciding import decide, num_folds
from cprfl.inference.saying import say
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import prepare
from cprfl.recipe import train

FITTED = (
    "model={name: ensemble, weights: fitted, num_folds: 2, "
    "members: [{name: logistic_regression}, {name: gaussian_discriminant}]}"
)


def drawn(n: int, c: int, seed: int, slope: float = 2.0, level: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and targets whose probability is the sigmoid of (logit - level) / slope."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(level, 3, size=(n, c)).astype(np.float32)
    return logits, (rng.random((n, c)) < expit((logits - level) / slope)).astype(np.float32)


def fit(logits: np.ndarray, targets: np.ndarray, **settings: object) -> Decisions:
    names = [str(label) for label in range(logits.shape[1])]
    groups = np.array_split(np.arange(logits.shape[1]), 2)
    return Decisions.fit(logits, targets, names, groups, DecisionsConfig.model_validate(settings), "a test")


def test_calibration_finds_slope_and_level_again() -> None:
    logits, targets = drawn(20_000, 2, seed=0)
    slope_C, intercept_C = calibrate(logits, targets, [np.array([0, 1])], "platt", 10.0)
    assert slope_C == pytest.approx(0.5, rel=0.1)
    assert intercept_C == pytest.approx(0.5, rel=0.15)
    slope_C, intercept_C = calibrate(logits + 1, targets, [np.array([0, 1])], "temperature", 10.0)
    assert slope_C == pytest.approx(0.5, rel=0.1)
    assert not intercept_C.any()
    members = {"all": np.array([0, 1])}
    before, after = (
        calibration_error(reliability(read, logits, targets, members)["total"].table())
        for read in (Decisions.unfitted(["a", "b"]), fit(logits, targets))
    )
    assert after < 1 < before


def test_a_rare_class_leans_on_its_group_and_a_frequent_one_does_not() -> None:
    logits, targets = drawn(4_000, 3, seed=1)
    targets[:, 2] = 0
    targets[logits[:, 2].argsort()[:2], 2] = 1  # two positives at the bottom: alone, the class would be turned round
    members = [np.array([0, 1, 2])]
    weak, strong = (calibrate(logits, targets, members, "platt", strength)[0] for strength in (0.0, 1e9))
    assert strong == pytest.approx(strong[0], rel=1e-3)
    assert weak[2] < 0.02 < strong[2]
    slope_C, _ = calibrate(logits, targets, members, "platt", 10.0)
    assert weak[2] < slope_C[2] <= strong[2]
    assert slope_C[:2] == pytest.approx(weak[:2], rel=0.02)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["platt", "temperature", "none"]),
    st.sampled_from(["f1", "precision", "recall"]),
    st.sampled_from([0.0, 10.0]),
    st.sampled_from([0.3, 0.8, 1.0]),
    st.booleans(),
)
def test_ranks_stay_and_a_wanted_precision_or_recall_is_reached(
    seed: int, calibration: str, goal: str, shrinkage: float, wanted: float, separable: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(40, 5)).astype(np.float32).round(1)  # with ties
    targets = ((logits + (0 if separable else 1) * rng.normal(size=logits.shape)) > 1).astype(np.float32)
    targets[rng.random(targets.shape) < 0.2] = np.nan
    targets[:, 4] = np.where(np.isnan(targets[:, 4]), np.nan, 0)  # a class without positives
    found = fit(
        logits, targets, calibration=calibration, shrinkage=shrinkage, threshold=goal,
        wanted=None if goal == "f1" else wanted,
    )  # fmt: skip
    assert (found.slope_C > 0).all()
    probabilities = found.probabilities(logits)
    for label in range(5):
        order = np.argsort(logits[:, label])
        assert (np.diff(probabilities[order, label]) >= 0).all()
    assert np.isfinite(found.threshold_C).all()
    chosen, shown, known = found.found(logits), targets > 0, ~np.isnan(targets)
    for label in np.flatnonzero(shown.any(axis=0)).tolist():
        hits, named = (chosen & shown)[:, label].sum(), (chosen & known)[:, label].sum()
        if goal == "recall":
            assert hits >= wanted * shown[:, label].sum()
        if goal == "precision":
            reached = named > 0 and hits >= wanted * named
            assert reached != (str(label) in found.short)
            above = logits[:, [label]] >= np.unique(logits[:, label])  # [images, cuts]
            possible = (above & shown[:, [label]]).sum(axis=0) / np.maximum((above & known[:, [label]]).sum(axis=0), 1)
            assert reached == (possible.max() >= wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 10.0]), st.sampled_from([0.5, 0.9, 1.0]), st.booleans())
def test_a_class_short_of_the_wanted_precision_is_found_in_no_more_images_than_could_be_right(
    seed: int, shrinkage: float, wanted: float, one_for_all: bool
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, 4)).astype(np.float32).round(1)
    targets = (logits + rng.normal(size=logits.shape) > 1.2).astype(np.float32)
    targets[:, 3] = 0
    targets[logits[:, 3].argsort()[: 1 + seed % 3], 3] = 1  # ranked lowest: alone, only "all images" finds them
    found = fit(
        logits, targets, calibration="none", threshold="precision", wanted=wanted, shrinkage=shrinkage,
        one_for_all=one_for_all,
    )  # fmt: skip
    named_C, shown_C = found.found(logits).sum(axis=0), targets.sum(axis=0)
    if one_for_all:
        assert named_C.sum() <= shown_C.sum() / wanted
        return
    assert "3" in found.short
    for label in map(int, found.short):
        assert named_C[label] <= (shown_C[label] + shrinkage) / wanted + 1e-6  # its own, and those that it leans on


def test_a_rare_class_that_no_threshold_tells_apart_takes_its_group_s() -> None:
    logits, targets = drawn(190, 6, seed=6, slope=0.4, level=1.0)
    logits[:, 5] = np.random.default_rng(0).normal(-1, 1, size=190)
    targets[:, 5] = 0
    targets[logits[:, 5].argsort()[5:8], 5] = 1
    found = fit(logits, targets, threshold="precision", wanted=0.9)
    assert "5" in found.short
    assert found.found(logits)[:, 5].sum() <= 14


def test_thresholds_are_the_best_for_f1_where_positives_are_many() -> None:
    logits, targets = drawn(3_000, 4, seed=2, level=2.0)
    found = fit(logits, targets)
    chosen, half = f1_scores(found.found(logits), targets), f1_scores(logits > 0, targets)
    assert chosen["CF1"] > half["CF1"]
    assert chosen["OF1"] > half["OF1"]
    one = fit(logits, targets, one_for_all=True)
    assert len(set(one.threshold_C)) == 1


def test_a_class_without_positives_takes_its_group_s_threshold() -> None:
    logits, targets = drawn(500, 4, seed=3)
    alone = fit(logits[:, [0]], targets[:, [0]], shrinkage=0.0)
    targets[:, 1] = 0
    found = fit(logits, targets, shrinkage=0.0)
    assert found.slope_C[1] == pytest.approx(found.slope_C[0], rel=1e-3)  # of two classes, one has no positive
    assert abs(found.threshold_C[1] - alone.threshold_C[0]) < 0.2
    nothing = fit(logits, np.zeros_like(targets))
    assert (nothing.threshold_C == 0.5).all()
    assert (nothing.slope_C == 1).all()


def test_metrics_with_thresholds_stand_beside_those_at_one_half() -> None:
    logits, targets = drawn(400, 3, seed=4)
    targets[0, 0] = np.nan
    members = {"head": np.array([0, 1]), "medium": np.array([2]), "tail": np.array([], dtype=int)}
    unfitted = Decisions.unfitted(["a", "b", "c"])
    metrics, tables = decided_metrics(unfitted, logits, targets, members)
    half = f1_scores(logits > 0, targets)
    assert {name.removesuffix("_decided"): value for name, value in metrics.items() if "decided" in name} == half
    assert metrics["ECE"] == metrics["ECE_uncalibrated"]
    assert tables["reliability"].keys() == {"total", "head", "medium"}
    assert sum(row["count"] for row in tables["reliability"]["total"]) == 400 * 3 - 1
    assert sum(row["count"] for row in tables["reliability"]["head"]) == 400 * 2 - 1


def test_decisions_are_read_as_they_were_written(tmp_path: Path) -> None:
    logits, targets = drawn(100, 3, seed=5)
    found = fit(logits, targets, threshold="precision", wanted=1.0)
    found.write(tmp_path)
    read = Decisions.read(tmp_path, found.class_names)
    assert (read.found(logits) == found.found(logits)).all()
    assert (read.source, read.short) == ("a test", found.short)
    with pytest.raises(CheckpointError, match="of other classes"):
        Decisions.read(tmp_path, ["another"])


def test_settings_that_contradict_each_other(small_config: Path) -> None:
    for override in ("decisions.threshold=precision", "decisions.wanted=0.9", "decisions.folds=1"):
        with pytest.raises(ConfigError, match="decisions"):
            load(small_config, [override])
    assert load(small_config).training_fingerprint == load(small_config, ["decisions.folds=5"]).training_fingerprint


def test_without_a_validation_split_folds_are_held_out_and_evaluation_uses_them(
    small_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load(small_config, ["model={name: logistic_regression}"])
    prepared = prepare(experiment)
    checkpoint = train(experiment, prepared)
    found = decide(experiment, prepared, checkpoint)
    training = prepared.manifest.split(TRAIN).image_ids
    assert tuple(predicted_images(checkpoint / HELD_OUT)) == training
    assert found.source == f"{len(training)} training images, held out fold by fold"
    written = (checkpoint / DECISIONS).read_text(), (checkpoint / HELD_OUT).read_bytes()
    metrics = evaluate_checkpoint(experiment, prepared, checkpoint).metrics
    assert {"OF1_decided", "CF1_decided", "ECE", "ECE_uncalibrated"} <= metrics.keys()
    again = train(experiment, prepared)
    decide(experiment, prepared, again)
    assert ((again / DECISIONS).read_text(), (again / HELD_OUT).read_bytes()) == written
    capsys.readouterr()
    evaluate_checkpoint(experiment, prepared, checkpoint)
    assert "thresholds" not in capsys.readouterr().err  # which lay there already, and were said
    other = load(small_config, ["model={name: logistic_regression}", "decisions.calibration=none"])
    evaluate_checkpoint(other, prepared, checkpoint)
    assert f"thresholds fitted on {found.source}" in capsys.readouterr().err
    assert set(Decisions.read(checkpoint, prepared.manifest.class_names).slope_C) == {1.0}
    evaluation = json.loads((experiment.folder / "evaluation.json").read_text())
    assert evaluation["decisions"] == found.source
    assert evaluation["reliability"]["total"][0]["count"] > 0


@pytest.mark.parametrize("protocol", ["honest", "published"])
def test_no_test_image_is_looked_at(small_config: Path, protocol: str) -> None:
    experiment = load(small_config, ["train.epochs=2", f"protocol={protocol}"])
    prepared = prepare(experiment)
    checkpoint = train(experiment, prepared)
    decide(experiment, prepared, checkpoint)
    assert set(predicted_images(checkpoint / HELD_OUT)) == set(prepared.manifest.split(TRAIN).image_ids)


def test_a_validation_split_is_what_decisions_are_fitted_on(small_config: Path) -> None:
    experiment = load(small_config, ["train.epochs=2", "train.validation=0.3"])
    prepared = prepare(experiment)
    checkpoint = train(experiment, prepared)
    found = decide(experiment, prepared, checkpoint)
    held_out = prepared.manifest.split(VALIDATION).image_ids
    assert tuple(predicted_images(checkpoint / HELD_OUT)) == held_out
    assert found.source == f"{len(held_out)} validation images"


def test_what_the_folds_of_an_ensemble_scored_is_not_trained_twice(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config, [FITTED])
    prepared = prepare(experiment)
    checkpoint = train(experiment, prepared)
    assert (checkpoint / HELD_OUT).exists()
    monkeypatch.setattr("cprfl.inference.deciding.held_out_logits", None)
    assert decide(experiment, prepared, checkpoint).source


def test_a_tower_that_moves_has_no_folds_unless_asked_for(
    small_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moving = ["train.backbone=adapter", "model.standardize=false", "train.epochs=1"]
    experiment = load(small_config, moving)
    assert (num_folds(experiment), num_folds(load(small_config))) == (0, 3)
    say(experiment, Decisions.unfitted(["a"]))
    assert "train.validation: 0.2" in capsys.readouterr().err
    asked = load(small_config, [*moving, "decisions.folds=2", "train.finetune.num_processes=0"])
    prepared = prepare(asked)
    checkpoint = train(asked, prepared)
    assert decide(asked, prepared, checkpoint).source
    assert decide(experiment, prepared, checkpoint).source == ""
    assert not (checkpoint / HELD_OUT).exists()
