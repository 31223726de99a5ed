"""Few-shot episodes: which classes and images they take, and what the command leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from cprfl import recipe
from cprfl.data.few_shot import draw_support, episode_of, only_classes, split_classes
from cprfl.data.manifest import Manifest
from cprfl.errors import ConfigError, DatasetError
from cprfl.experiment import Experiment, load
from cprfl.preparation import Prepared
from cprfl.training.checkpoint import load_facts, load_info
from pipelines.stages.few_shot import Episode, FewShot, Shots, few_shot
from tests.helpers import call, manifest_of, runs, steps

NAMES = ("red", "green", "blue", "grey")
CLOSED = "model={name: logistic_regression, strengths: [0.1]}"
FIRST = (
    "first={train: {backbone: adapter, epochs: 1, lr: 0.01, finetune: {num_processes: 0}}, "
    "model: {name: linear_probe, standardize: false}}"
)


def test_classes_are_split_in_the_data_set_s_order() -> None:
    assert split_classes(NAMES, ["blue", "red", "blue"]) == (("green", "grey"), ("red", "blue"))


@pytest.mark.parametrize(
    ("novel", "message"),
    [
        (["red", "gren"], "--novel: no class 'gren' in the data set; did you mean 'green'?"),
        (["red", "xyz"], "no class 'xyz' in the data set; classes: red, green, blue, grey"),
        (["red", "red"], "1 class; every image of an episode shows one, so there is nothing to tell apart"),
        ([], "0 class"),
        (list(NAMES), "all 4 classes are novel, and no base class is left"),
    ],
)
def test_novel_classes_that_make_no_episodes_are_named(novel: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_classes(NAMES, novel)
    assert message in str(caught.value)


def test_only_some_classes_are_left_of_the_images() -> None:
    manifest = Manifest(
        NAMES, ("a", "b", "c", "d"), ("a", "b", "c", "d"), ("train", "train", "test", "test"),
        ((0, 1), (1, 3), (2,), ()),
    )  # fmt: skip
    left = only_classes(manifest, {"blue", "red", "unknown"})
    assert (left.class_names, left.image_ids, left.labels) == (("red", "blue"), ("a", "c"), ((0,), (1,)))
    assert left.splits == ("train", "test")
    base = only_classes(manifest, {"green", "grey"})
    assert (base.image_ids, base.labels) == (("a", "b"), ((0,), (0, 1)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6), st.floats(0.05, 0.9))
def test_a_draw_has_enough_of_each_class_and_no_image_too_many(
    seed: int, num_classes: int, shots: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.random((40, num_classes)) < share
    targets[: shots * num_classes] |= np.eye(num_classes, dtype=bool).repeat(shots, axis=0)
    rows = draw_support(targets, shots, seed, 0)
    assert rows.tolist() == sorted(set(rows.tolist())) == draw_support(targets, shots, seed, 0).tolist()
    counts = targets[rows].sum(axis=0)
    assert (counts >= shots).all()
    assert shots <= len(rows) <= shots * num_classes
    for row in rows:  # without it some class would have too few
        assert (counts - targets[row] < shots).any()


def test_draws_differ_between_episodes_and_numbers_of_shots_and_reach_every_image() -> None:
    targets = np.eye(3, dtype=bool).repeat(10, axis=0)
    draws = [draw_support(targets, 2, 0, episode) for episode in range(60)]
    assert len({tuple(draw) for draw in draws}) > 50
    assert set(np.concatenate(draws)) == set(range(30))
    assert not set(draw_support(targets, 1, 0, 0)) <= set(draws[0])
    assert draw_support(targets, 2, 1, 0).tolist() != draws[0].tolist()


def test_an_episode_keeps_the_other_splits_and_names_a_class_of_too_few_images() -> None:
    manifest = manifest_of(np.eye(2).repeat([4, 3], axis=0))
    manifest = replace(manifest, splits=("test", *manifest.splits[1:-1], "val"))
    episode = episode_of(manifest, 2, 0, 0)
    assert (episode.splits.count("train"), episode.image_ids[0], episode.image_ids[-1]) == (4, "0", "6")
    with pytest.raises(DatasetError, match="2 images show 'class 1', and an episode of 3 shots needs 3; lower --shots"):
        episode_of(manifest, 3, 0, 0)


def test_the_interval_is_student_s() -> None:
    values = [50.0, 61.0, 58.5, 47.0]
    found = Shots(1, [Episode([], {"mAP": value}) for value in values])
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.half_width is not None
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx(tuple(expected))
    assert Shots(1, found.episodes[:1]).half_width is None


def values_of(result: FewShot) -> list[float]:
    return [episode.metrics["mAP"] for shots in result.results for episode in shots.episodes]


def test_episodes_leave_a_file_and_a_run_and_are_not_trained_twice(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load(small_config, [CLOSED])
    result = few_shot(experiment, ["red", "blue"], [1, 3], 3)
    assert "no `first`, so the encoder stays as it is" in capsys.readouterr().err
    assert (result.novel, result.base, result.base_map) == (("blue", "red"), ("green",), None)
    written = json.loads((experiment.folder / "few_shot.json").read_text())
    assert list(written["shots"]) == ["1", "3"]
    three = written["shots"]["3"]
    found = [episode["mAP"] for episode in (each["metrics"] for each in three["episodes"])]
    assert three["mAP"] == pytest.approx(np.mean(found))
    for episode in three["episodes"]:
        assert episode["metrics"]["mAP"] == pytest.approx(
            np.mean([episode["metrics"][f"AP/{c}"] for c in ("red", "blue")])
        )
        assert all(int(image.partition(".")[0]) < 16 for image in episode["support"])  # of the training split

    (run,) = runs(experiment)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["few_shot/mAP_3shot"] == pytest.approx(three["mAP"])
    assert run.data.metrics["few_shot/mAP_3shot_half_width"] == pytest.approx(three["half_width_95"])
    assert steps(run.info.run_id, "few_shot/mAP_1shot_of_episode") == [1, 2, 3]
    assert [item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id) if item.path.endswith("json")]
    assert not (experiment.folder / "checkpoint").exists()  # of `cprfl run`, which had none

    monkeypatch.setattr(recipe, "train_in", lambda *_: pytest.fail("trained again"))
    assert values_of(few_shot(experiment, ["blue", "red"], [1, 3], 3)) == values_of(result)


def test_the_test_images_are_those_that_show_a_novel_class(small_config: Path) -> None:
    experiment = load(small_config, [CLOSED])
    labels = [
        set(line.split(",")[1].split(";")) for line in (photos_of(experiment) / "test.csv").read_text().split()[1:]
    ]
    result = few_shot(experiment, ["red", "blue"], [1], 1)
    assert result.test_images == sum(bool(shown & {"red", "blue"}) for shown in labels)
    assert 0 < result.test_images < len(labels)
    assert result.results[0].half_width is None


def photos_of(experiment: Experiment) -> Path:
    return Path(experiment.data_root)


def test_each_episode_trains_a_fresh_model_on_its_own_images(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = recipe.train_in, []

    def watched(folder: Path, experiment: Experiment, prepared: Prepared) -> Path:
        assert not any(folder.iterdir())
        checkpoint = original(folder, experiment, prepared)
        facts = load_facts(checkpoint)
        assert facts.class_names == ("blue", "red")
        assert facts.num_images == prepared.manifest.splits.count("train")
        assert (facts.class_counts_C >= 2).all()
        assert len(facts.text_embeddings_CM) == 2
        seen.append((experiment.seed, prepared.manifest.digest))
        return checkpoint

    monkeypatch.setattr(recipe, "train_in", watched)
    experiment = load(small_config, ["train.epochs=2"])
    first = few_shot(experiment, ["red", "blue"], [2], 2)
    assert len({seed for seed, _ in seen}) == len({digest for _, digest in seen}) == 2
    again = few_shot(load(small_config, ["train.epochs=2", "name=again"]), ["red", "blue"], [2], 2)
    assert seen[2:] == seen[:2]
    assert values_of(again) == values_of(first)
    few_shot(load(small_config, ["train.epochs=2", "seed=1"]), ["red", "blue"], [2], 1)
    assert seen[4] not in seen[:4]


def test_what_comes_first_is_trained_once_on_the_base_classes_alone(small_config: Path) -> None:
    experiment = load(small_config, [CLOSED, FIRST])
    result = few_shot(experiment, ["red", "blue"], [1, 2], 2)
    base = Path(experiment.output_dir) / "small-few-shot-base"
    assert load_info(base / "checkpoint").class_names == ["green"]
    manifest = Manifest.read(base / "manifest.parquet")
    assert set(manifest.labels) == {(0,)}
    assert len(manifest.split("train")) < 16
    assert result.base_map is not None
    plain = few_shot(load(small_config, [CLOSED, "name=plain"]), ["red", "blue"], [1, 2], 2)
    assert [each.support for each in plain.results[0].episodes] == [each.support for each in result.results[0].episodes]
    prepared = [json.loads((base.parent / name / "prepared.json").read_text()) for name in
                ("small-few-shot", "plain-few-shot")]  # fmt: skip
    assert prepared[0]["encoder_fingerprint"] != prepared[1]["encoder_fingerprint"]
    before = (base / "run.json").read_text()
    few_shot(experiment, ["red", "blue"], [1, 2], 2)
    assert (base / "run.json").read_text() == before
    few_shot(experiment, ["red", "green"], [1], 1)  # with other base classes it is another training
    assert (base / "run.json").read_text() != before
    assert load_info(base / "checkpoint").class_names == ["blue"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--novel", "red,bleu"], "--novel: no class 'bleu' in the data set; did you mean 'blue'?"),
        (["--novel", "red,green,blue"], "all 3 classes are novel"),
        (["--novel", "red,blue", "--shots", "40"], "an episode of 40 shots needs 40"),
        (["--novel", "red,blue", "--shots", "1,none"], "--shots 1,none: expected whole numbers from 1 up"),
        (
            ["--novel", "red,blue", "--set", "train.backbone=adapter", "--set", "model.standardize=false"],
            "train.backbone: adapter: episodes are trained on cached features; let `first` train the tower",
        ),
        (["--novel", "red,blue", "--set", "train.validation=0.2"], "an episode has no image to hold out; set it to 0"),
        (
            ["--novel", "red,blue", "--set", "train.select=folds"],
            "--shots 1: model.name=cprfl looks at 5 folds of the training images, and an episode has",
        ),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(
    small_config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("pipelines.stages.few_shot.preprocess", lambda *_, **__: pytest.fail("prepared first"))
    status, _, err = call(monkeypatch, capsys, "few-shot", str(small_config), *words)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_the_command_prints_a_table(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--novel", " red, blue", "--shots", "1,2", "--episodes", "2", "--set", CLOSED, "--set", FIRST]
    status, out, err = call(monkeypatch, capsys, "few-shot", str(small_config), *words)
    assert status == 0, err
    assert "small: few-shot mAP, %, of 2 novel classes" in out
    assert "novel: blue, red;" in out
    assert "the tower was trained on the base classes (1): " in out
    assert "few_shot.json; MLflow experiment small" in out
