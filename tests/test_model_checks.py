"""Each check where there is something to find, and where there is not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cprfl.evaluation.decisions import Decisions, DecisionsConfig
from cprfl.experiment import Experiment, load
from cprfl.inference.scoring import EVALUATION
from cprfl.reading import SAME_CONTENT
from cprfl.report.checks.base import CODES, Check, Seen
from cprfl.report.checks.every import ORDER, model_checks
from cprfl.report.mends import beating, narrowing
from cprfl.report.model.worst import worst_classes
from cprfl.report.results import Results
from tests.every_method import METHODS
from tests.helpers import call
from tests.made_results import images, made_results

NAMES = ("[bold]cat[/bold]", "dog", "yak", "emu")


@pytest.fixture
def experiment(small_config: Path) -> Experiment:
    return load(small_config)


def targets(count: int = 200, shares: tuple[float, ...] = (0.5, 0.4, 0.3, 0.2)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((count, 4)) < shares).astype(float)


def sharp(found: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Logits that tell the targets, the less the more noise there is."""
    rng = np.random.default_rng(seed)
    return 12 * np.nan_to_num(found) - 6 + noise * rng.normal(size=found.shape)


def checked(experiment: Experiment, test: np.ndarray, logits: np.ndarray, **more: object) -> dict[str, Check]:
    manifest = images(NAMES, targets(60), test)
    return by_code(model_checks(Seen(made_results(experiment, manifest, logits, **more))))  # type: ignore[arg-type]


def by_code(found: tuple[Check, ...]) -> dict[str, Check]:
    assert len(found) == len(CODES)
    assert {one.code for one in found} == set(CODES)
    assert [ORDER.index(one.status) for one in found] == sorted(ORDER.index(one.status) for one in found)
    assert all(one.title and one.explanation for one in found)
    return {one.code: one for one in found}


def fitted(**changes: object) -> Decisions:
    return replace(Decisions.unfitted(NAMES), source="60 training images", **changes)  # type: ignore[arg-type]


def test_nothing_is_wrong_with_a_good_model(experiment: Experiment) -> None:
    test = targets()
    blind = np.random.default_rng(1).normal(size=test.shape)
    found = checked(experiment, test, sharp(test), baselines={"logistic_regression": blind}, decisions=fitted())
    assert {code: one.status for code, one in found.items() if one.status != "passed"} == {
        "below-zero-shot": "not applicable",
        "near-duplicates": "not applicable",
        "unknown-labels": "not applicable",
        "overfit": "skipped",
    }
    assert "points of mAP above the logistic regression" in found["below-linear-baseline"].title


def test_a_model_below_the_logistic_regression_is_told_with_the_classes(experiment: Experiment) -> None:
    test = targets()
    other = sharp(test)
    worse = other.copy()
    worse[:, 3] = sharp(test, noise=40)[:, 3]
    found = checked(experiment, test, worse, baselines={"logistic_regression": other})["below-linear-baseline"]
    assert found.status == "issue"
    assert "Classes that it ranks worse: emu." in found.explanation
    same = checked(experiment, test, other, baselines={"logistic_regression": other})["below-linear-baseline"]
    assert same.status == "tip"
    assert "Not to be told from" in same.title


def test_a_baseline_that_is_not_there_is_said_to_be_skipped(experiment: Experiment) -> None:
    assert checked(experiment, targets(), sharp(targets()))["below-linear-baseline"].status == "skipped"
    itself = experiment.changed({"model": {"name": "logistic_regression"}})
    assert checked(itself, targets(), sharp(targets()))["below-linear-baseline"].status == "not applicable"


def test_classes_that_hardly_any_test_image_shows_are_named(experiment: Experiment) -> None:
    test = targets()
    test[:, 1], test[:, 3] = 0, 0
    test[:3, 3] = 1
    found = checked(experiment, test, sharp(test))
    assert found["few-test-positives"].status == "tip"
    assert "emu" in found["few-test-positives"].explanation
    assert found["classes-without-test-images"].status == "tip"
    assert "dog" in found["classes-without-test-images"].explanation
    test[:, :3] = 0
    test[:3, :] = 1
    resting = checked(experiment, test, sharp(test))["few-test-positives"]
    assert resting.status == "issue"
    assert "rests mostly on them" in resting.title


def test_what_lies_beside_the_results_is_read(experiment: Experiment) -> None:
    test = targets()
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "bad_images.csv").write_text("image_id,uri,reason\na.jpg,a.jpg,file not found\n")
    (experiment.folder / SAME_CONTENT).write_text("image_id,split,same_as,same_as_split\ntest 1,test,train 2,train\n")
    found = checked(experiment, test, sharp(test))
    assert found["bad-images-skipped"].status == "tip"
    assert found["leak"].status == "issue"
    assert "test 1 = train 2" in found["leak"].explanation
    (experiment.folder / SAME_CONTENT).write_text("image_id,split,same_as,same_as_split\nval 1,val,train 2,train\n")
    assert checked(experiment, test, sharp(test))["leak"].status == "passed"


def test_probabilities_are_judged_by_what_sampling_alone_would_give(experiment: Experiment) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(scale=2, size=(400, 4))
    test = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(float)
    assert checked(experiment, test, logits)["calibration-off"].status == "passed"
    boastful = checked(experiment, test, 4 * logits)["calibration-off"]
    assert boastful.status == "issue"
    assert "plain sigmoids" in boastful.explanation
    assert (
        checked(experiment, test, 4 * logits, decisions=fitted(slope_C=np.full(4, 0.25)))["calibration-off"].status
        == "passed"
    )


def test_thresholds_that_decide_nothing_are_named(experiment: Experiment) -> None:
    test = targets()
    assert checked(experiment, test, sharp(test))["thresholds-not-fitted"].status == "tip"
    edge = fitted(threshold_C=np.array([0.5, 1.1, 0.5, 0.0]))
    found = checked(experiment, test, sharp(test), decisions=edge)
    assert found["thresholds-not-fitted"].status == "passed"
    assert found["threshold-at-edge"].status == "issue"
    assert "found in every test image: emu" in found["threshold-at-edge"].explanation
    assert "ever found in a test image: dog" in found["threshold-at-edge"].explanation


def test_a_class_that_the_mean_of_its_group_hides_is_named(experiment: Experiment) -> None:
    test = targets(400, (0.3, 0.3, 0.3, 0.1))
    logits = sharp(test)
    logits[:, 3] = np.random.default_rng(5).normal(size=400)
    found = checked(experiment, test, logits)["class-hidden-by-mean"]
    assert found.status == "issue"
    assert "emu (" in found.explanation
    assert "yak (" not in found.explanation


def test_unknown_labels_and_a_peek_at_the_test_images_are_told(experiment: Experiment) -> None:
    test = targets()
    test[10:120, 1] = np.nan
    peeked = experiment.model_copy(update={"protocol": "published"})
    found = checked(peeked, test, sharp(test))
    assert found["unknown-labels"].status == "issue"
    assert "dog" in found["unknown-labels"].explanation
    assert found["epoch-chosen-on-test"].status == "issue"
    assert "(3)" in found["epoch-chosen-on-test"].title


def test_the_worst_classes_say_what_they_are_taken_for(experiment: Experiment) -> None:
    test = targets(400, (0.3, 0.3, 0.3, 0.1))
    test[test[:, 0] == 1, 3] = 0
    logits = sharp(test)
    logits[:, 3] = np.maximum(logits[:, 3], logits[:, 0]) + np.random.default_rng(0).normal(size=400)
    worst = worst_classes(made_results(experiment, images(NAMES, targets(60), test), logits), 2)
    assert worst[0].name == "emu"
    assert worst[0].false_positives == int(test[:, 0].sum())
    assert worst[0].misses == 0
    assert worst[0].mistake == "[bold]cat[/bold] (100% of 30)"
    assert worst[0].test_images == int(test[:, 3].sum())
    assert worst[1].mistake == ""


def test_the_command_prints_plainly_and_is_strict_when_asked(
    experiment: Experiment, small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, said = call(monkeypatch, capsys, "check", str(small_config))
    assert status == 2
    assert "no checkpoint here" in said
    test = targets()
    test[:, 0] = 0
    test[:2, 0] = 1
    results = made_results(experiment, images(NAMES, targets(60), test), -sharp(test), {"zero_shot": sharp(test)})
    status, printed, _ = call(monkeypatch, capsys, "check", str(small_config))
    assert status == 0
    assert "[bold]cat[/bold]" in printed
    assert "\x1b" not in printed
    assert all(code in printed for code in CODES)
    status, printed, _ = call(monkeypatch, capsys, "check", str(small_config), "--strict", "--json")
    assert status == 1
    assert {one["code"] for one in json.loads(printed)} == set(CODES)
    assert [one["code"] for one in json.loads(printed)] == [one.code for one in model_checks(Seen(results))]


@pytest.mark.parametrize("method", METHODS)
def test_what_mends_is_a_setting_that_the_method_has_and_that_trains_it(method: str, experiment: Experiment) -> None:
    own = experiment.model_copy(update={"model": METHODS[method]})
    said = ", ".join([*narrowing(own), beating(own)])
    for section, setting in re.findall(r"\b([a-z]+)\.([a-z_]+)", said):
        assert setting in type(getattr(own, section)).model_fields
    assert ("train." in said) == ("encoder.views" in said) == own.model.by_gradients
    assert ("more" in said) == ("zero shot" not in method)  # which no image trains
    assert ("ensemble" in said) == (method not in ("ensemble", "auto"))


def test_a_tower_that_moves_is_offered_no_cached_views(small_config: Path) -> None:
    for backbone in ("adapter", "finetune"):
        moving = load(small_config, [f"train.backbone={backbone}", "model.standardize=false"])
        assert "views" not in ", ".join(narrowing(moving))


def test_an_epoch_is_chosen_on_test_images_only_where_epochs_are_trained(experiment: Experiment) -> None:
    closed = experiment.changed({"model": {"name": "logistic_regression"}, "protocol": "published"})
    assert checked(closed, targets(), sharp(targets()))["epoch-chosen-on-test"].status == "passed"


def test_classes_without_test_images_carry_no_mean(experiment: Experiment) -> None:
    test = targets()
    test[:, 2:] = 0
    test[:1, 3] = 1  # the tail's mean is this one class's, for the other is in no mean
    manifest = images(NAMES, targets(60, (0.9, 0.5, 0.05, 0.05)), test)
    found = by_code(model_checks(Seen(made_results(experiment, manifest, sharp(test)))))["few-test-positives"]
    assert found.status == "issue"
    assert "the mean of tail rests mostly on them" in found.title


def test_thresholds_are_mended_by_what_moves_them(experiment: Experiment) -> None:
    def mended(changes: dict[str, object], training: np.ndarray, **decisions: object) -> str:
        test = targets()
        manifest = images(NAMES, training, test)
        own = experiment.changed({f"decisions.{name}": value for name, value in changes.items()})
        results = made_results(own, manifest, sharp(test), decisions=fitted(**decisions))
        return by_code(model_checks(Seen(results)))["threshold-at-edge"].explanation

    never, rare = np.array([0.5, 1.1, 0.5, 0.5]), targets(60, (0.5, 0.05, 0.4, 0.4))
    assert "decisions.shrinkage" in mended({}, rare, threshold_C=never)
    assert "decisions.wanted" not in mended({}, rare, threshold_C=never)
    assert "decisions.shrinkage" not in mended({"one_for_all": True}, rare, threshold_C=never)
    assert "shrinkage" not in mended({}, targets(60, (0.5, 0, 0.4, 0.4)), threshold_C=never)  # it leans wholly already
    frequent = mended({}, targets(400), threshold_C=never)
    assert "Few held-out images" not in frequent
    short = mended({"threshold": "precision", "wanted": 0.9}, rare, short=("dog",))
    assert "decisions.wanted" in short
    assert "shrinkage" not in short


def test_what_is_said_of_decisions_is_what_the_last_evaluation_asked_for(experiment: Experiment) -> None:
    test = targets()
    results = made_results(experiment, images(NAMES, targets(60), test), sharp(test), decisions=fitted(short=("dog",)))
    assert results.decisions_config == experiment.decisions
    asked = DecisionsConfig(threshold="precision", wanted=0.9)
    results.evaluation.write(
        results.folder / EVALUATION, training_key="key", manifest=results.manifest.digest,
        decisions_settings=asked.model_dump(mode="json"),
    )  # fmt: skip
    found = by_code(model_checks(Seen(Results.read(results.folder))))["threshold-at-edge"]
    assert found.title == "1 class without the wanted precision"
    assert "decisions.wanted" in found.explanation
