"""Retraining: nothing new, promotion by the rules, crashes that leave the champion alone, rollback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from cprfl.errors import CheckpointError, ConfigError, TrackingError
from cprfl.experiment import Experiment, load
from cprfl.report.results import Results
from cprfl.training import checkpoint
from pipelines.retraining import retrain
from pipelines.retraining.request import dataset_file, load_request, make_request
from pipelines.stages import run as stages
from pipelines.sweeps.config import load_sweep
from pipelines.tracking import registry
from pipelines.tracking.store import open_store
from tests.helpers import runs, sweep_file

LENIENT = ["promotion.confidence=0", "promotion.min_gain=0", "promotion.max_group_loss=100", "train.epochs=2"]


@pytest.fixture(autouse=True)
def page(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in place of the report, which has its own tests."""

    def write(experiment: Experiment, *_: Any) -> None:
        (experiment.folder / "report.html").write_text("page")

    for module in (retrain, stages):
        monkeypatch.setattr(module, "write_report", write)


def crash(*_: Any) -> None:
    raise RuntimeError("crash")


def files_of(folder: Path) -> dict[str, bytes]:
    """What lies in a folder, but for what is of no model: what was asked for, and the challenger."""
    found = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path): (folder / path).read_bytes() for path in found if path.parts[0] not in ("retraining", "challenger")
    }


def tags(experiment: Experiment, version: str) -> dict[str, str]:
    return dict(mlflow.MlflowClient().get_model_version(experiment.name, version).tags)


def test_what_is_new_is_trained_judged_and_can_be_taken_back(
    own_config: Path, own_photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(own_config, [*LENIENT, "train.lr=1e-9"])
    stages.run(experiment)
    store = open_store(experiment.output_dir)
    again = retrain.retrain(experiment)
    assert (again.decision, again.version, again.champion, again.run_id) == ("nothing new", "1", "1", None)

    # New labels, and a rule that nothing can meet: the challenger is registered, the champion stays.
    relabelled = own_photos / "train.csv"
    relabelled.write_text(relabelled.read_text().replace("01.png,red;green", "01.png,red"))
    strict = load(own_config, [*LENIENT, "promotion.min_gain=100"])
    kept = retrain.retrain(strict)
    assert (kept.decision, kept.version, kept.champion) == ("kept", "2", "1")
    assert "the rule asks for 100" in kept.reason == tags(experiment, "2")["reason"]
    artifact = mlflow.artifacts.load_dict(f"runs:/{kept.run_id}/comparison.json")
    assert artifact["champion_version"] == "1"
    assert artifact["promoted"] is False
    assert kept.folder == experiment.folder / "challenger"
    its = json.loads((kept.folder / "evaluation.json").read_text())
    assert artifact["challenger"]["mAP"] == pytest.approx(its["mAP"])
    assert retrain.retrain(strict).decision == "nothing new"

    # A crash after the registration and before the decision: the alias is where it was, and the next one judges.
    better = load(own_config, [*LENIENT, "train.epochs=4"])
    with monkeypatch.context() as patched:
        patched.setattr(retrain, "write_verdict", crash)
        with pytest.raises(RuntimeError, match="crash"):
            retrain.retrain(better)
    assert registry.champion(store, "small") == "1"
    promoted = retrain.retrain(better)
    assert (promoted.decision, promoted.version, promoted.champion) == ("promoted", "3", "3")
    assert registry.champion(store, "small") == "3"
    assert registry.rollback(store, "small") == ("3", "1")
    assert registry.champion(store, "small") == "1"
    assert retrain.retrain(better).decision == "nothing new"
    with pytest.raises(CheckpointError, match="is the first champion"):
        registry.rollback(store, "small")


def test_a_kept_challenger_leaves_the_champions_files_as_they_are_and_a_promoted_one_takes_their_place(
    small_config: Path,
) -> None:
    experiment = load(small_config, [*LENIENT, "train.lr=1e-9"])
    first = retrain.retrain(experiment)
    assert (first.decision, first.folder, first.standing) == ("first", experiment.folder, None)
    whole = {"checkpoint/checkpoint.json", "evaluation.json", "predictions.parquet", "manifest.parquet", "run.json",
             "prepared.json", "report.html"}  # fmt: skip
    before = files_of(experiment.folder)
    assert whole <= before.keys()
    assert "comparison.json" not in before
    assert not (experiment.folder / "challenger").exists()

    kept = retrain.retrain(load(small_config, [*LENIENT, "promotion.min_gain=100"]))
    assert kept.decision == "kept"
    assert files_of(experiment.folder) == before
    assert kept.folder == experiment.folder / "challenger"
    found = files_of(kept.folder)
    assert whole | {"comparison.json", "baselines/champion.parquet"} <= found.keys()
    assert kept.standing is not None
    assert kept.standing.champion == "1"
    assert kept.standing.sentence.startswith(("better than", "worse than", "not surely better or worse than"))
    champions = Results.read(kept.folder).baselines["champion"]
    assert np.array_equal(champions, Results.read(experiment.folder).logits)  # on the same images
    assert {gain.name for gain in kept.standing.classes} <= {"red", "green", "blue"}

    promoted = retrain.retrain(load(small_config, [*LENIENT, "train.epochs=3"]))
    assert (promoted.decision, promoted.folder) == ("promoted", experiment.folder)
    after = files_of(experiment.folder)
    assert whole | {"comparison.json", "baselines/champion.parquet"} <= after.keys()
    assert Results.read(experiment.folder).info.epoch == 3
    assert not (experiment.folder / "challenger" / "checkpoint").exists()


def test_a_crash_between_alias_and_decision_is_mended_and_nothing_is_judged_against_itself(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config, [*LENIENT, "train.lr=1e-9"])
    stages.run(experiment)
    better, note = load(small_config, [*LENIENT, "train.epochs=3"]), registry.tag_version

    def crash_at_the_decision(store: Any, name: str, version: str, values: dict[str, str]) -> None:
        if "decision" in values:
            raise RuntimeError("crash")
        note(store, name, version, values)

    with monkeypatch.context() as patched:
        patched.setattr(registry, "tag_version", crash_at_the_decision)
        with pytest.raises(RuntimeError, match="crash"):
            retrain.retrain(better)
    assert registry.champion(open_store(experiment.output_dir), "small") == "2"
    assert "decision" not in tags(experiment, "2")
    done = retrain.retrain(better)
    assert (done.decision, done.version, done.champion, done.folder) == ("promoted", "2", "2", experiment.folder)
    assert tags(experiment, "2")["decision"] == "promoted"
    assert Results.read(experiment.folder).info.epoch == 3
    assert retrain.retrain(better).decision == "nothing new"
    assert registry.rollback(open_store(experiment.output_dir), "small") == ("2", "1")


def test_a_crash_before_the_files_move_is_mended_by_the_next_retraining(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.run(load(small_config, [*LENIENT, "train.lr=1e-9"]))
    better = load(small_config, [*LENIENT, "train.epochs=3"])
    with monkeypatch.context() as patched:
        patched.setattr(retrain, "adopt", crash)
        with pytest.raises(RuntimeError, match="crash"):
            retrain.retrain(better)
    assert Results.read(better.folder).info.epoch == 2
    assert retrain.retrain(better).decision == "nothing new"
    assert Results.read(better.folder).info.epoch == 3


def test_a_verdict_about_another_champion_than_the_present_one_is_not_carried_out(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.run(load(small_config, [*LENIENT, "train.lr=1e-9"]))
    retrain.retrain(load(small_config, [*LENIENT, "train.epochs=3"]))
    better = load(small_config, [*LENIENT, "train.epochs=4"])
    with monkeypatch.context() as patched:
        patched.setattr(retrain, "carry_out", crash)
        with pytest.raises(RuntimeError, match="crash"):
            retrain.retrain(better)
    mlflow.MlflowClient().set_registered_model_alias("small", "champion", "1")  # somebody thinks better of it
    judged = retrain.retrain(better)
    assert judged.standing is not None
    assert judged.standing.champion == "1"


def test_a_champion_of_other_classes_and_another_encoder_is_compared_on_the_present_images(
    own_config: Path, own_photos: Path
) -> None:
    first = retrain.retrain(load(own_config, LENIENT))
    assert (first.decision, first.champion) == ("first", "1")
    for file in ("train.csv", "test.csv"):
        text = (own_photos / file).read_text()
        (own_photos / file).write_text(text.replace("blue", "blue;azure"))
    second = retrain.retrain(load(own_config, [*LENIENT, "encoder.resize=crop"]))
    comparison = mlflow.artifacts.load_dict(f"runs:/{second.run_id}/comparison.json")
    assert {"AP/azure", "AP/blue"} <= comparison["champion"].keys()
    # of a class that it does not know, the champion's average precision is the share of images that show it
    shown = [line for line in (own_photos / "test.csv").read_text().splitlines()[1:] if "azure" in line]
    assert comparison["champion"]["AP/azure"] == pytest.approx(100 * len(shown) / 8)
    with pytest.raises(ConfigError, match="no class is named violet"):
        retrain.retrain(load(own_config, ["promotion.class_floors.violet=10"]))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_search_around_the_champion_comes_before_the_training(small_config: Path, tmp_path: Path) -> None:
    experiment = load(small_config, [*LENIENT, "train.lr=0.004"])
    retrain.retrain(experiment)
    space = {"train.lr": {"factor": 2}}
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", space=space, trials=1, folds=2), small_config, LENIENT)
    result = retrain.retrain(load(small_config, LENIENT), sweep)
    client = mlflow.MlflowClient()
    assert result.run_id is not None
    trained = float(client.get_run(result.run_id).data.params["train.lr"])
    assert 0.002 <= trained <= 0.008
    trials = [run for run in client.search_runs([client.get_run(result.run_id).info.experiment_id])
              if "trial" in run.data.tags]  # fmt: skip
    assert 0.004 in {float(run.data.params["train.lr"]) for run in trials}
    steps = {m.step for run in trials for m in client.get_metric_history(run.info.run_id, "val/mAP")}
    assert steps <= {2, 4}
    assert max(steps) == 4


def test_labels_that_are_edited_meanwhile_are_not_booked_under_the_old_request(
    own_config: Path, own_photos: Path
) -> None:
    experiment = load(own_config, LENIENT)
    store = open_store(experiment.output_dir)
    asked = retrain.make_request(store, experiment)
    relabelled = own_photos / "train.csv"
    relabelled.write_text(relabelled.read_text().replace("01.png,red;green", "01.png,red"))
    challenger = retrain.train_challenger(store, asked)
    assert challenger.prepared.manifest.digest == asked.prepared.manifest.digest
    retrain.evaluate_challenger(store, challenger)
    first = retrain.decide(store, challenger, asked)
    assert first.decision == "first"
    assert mlflow.MlflowClient().get_run(first.run_id).data.tags["dataset_digest"] == asked.prepared.manifest.digest
    assert retrain.retrain(experiment).decision != "nothing new"  # the edited labels are another request


def test_a_request_that_was_saved_is_the_same_in_another_process(own_config: Path, own_photos: Path) -> None:
    experiment = load(own_config, LENIENT)
    asked = make_request(open_store(experiment.output_dir), experiment)
    asked.save()
    (own_photos / "train.csv").write_text("image,labels\n00.png,red\n")
    dataset_file(experiment).unlink(missing_ok=True)
    experiment.dataset.read().write(dataset_file(experiment))  # the next retraining begins, and this one goes on
    found = load_request(experiment)
    assert found.key == asked.key
    assert found.dataset == asked.dataset
    assert found.prepared.manifest == asked.prepared.manifest


def test_without_a_champion_there_is_nothing_to_roll_back(small_config: Path) -> None:
    store = open_store(load(small_config).output_dir)
    with pytest.raises(CheckpointError, match="no champion is registered"):
        registry.rollback(store, "small")


def test_a_champion_that_was_deleted_is_no_traceback(small_config: Path) -> None:
    experiment = load(small_config, [*LENIENT, "train.lr=1e-9"])
    stages.run(experiment)
    better = retrain.retrain(load(small_config, [*LENIENT, "train.epochs=3"]))
    assert better.decision == "promoted"
    store = open_store(experiment.output_dir)
    mlflow.MlflowClient().delete_model_version("small", "1")
    with pytest.raises(TrackingError, match="version 1, the champion before version 2, was deleted in MLflow"):
        registry.rollback(store, "small")
    assert registry.champion(store, "small") == "2"


def test_a_champion_that_cannot_be_compared_with_is_named_before_anything_is_trained(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config, LENIENT)
    stages.run(experiment)
    # What wrote the champion is of another version by now.
    monkeypatch.setattr(checkpoint, "VERSION", checkpoint.VERSION + 1)
    monkeypatch.setattr(retrain, "train", lambda *_: pytest.fail("trained first"))
    with pytest.raises(CheckpointError, match="the champion, models:/small/1, cannot be compared with"):
        retrain.retrain(load(small_config, [*LENIENT, "train.epochs=3"]))


def test_a_chain_is_retrained_as_a_whole(own_config: Path, own_photos: Path) -> None:
    train = "{backbone: adapter, epochs: 1, finetune: {num_processes: 0}}"
    before = f"{{train: {train}, model: {{name: linear_probe, standardize: false}}}}"
    experiment = load(own_config, [*LENIENT, f"first={before}"])
    assert retrain.retrain(experiment).decision == "first"
    assert retrain.retrain(experiment).decision == "nothing new"
    labels = own_photos / "train.csv"
    labels.write_text(labels.read_text().replace("01.png,red;green", "01.png,red"))
    assert retrain.retrain(experiment).decision in ("promoted", "kept")
    first = experiment.first_experiment
    assert first is not None
    assert len(runs(first)) == 2  # the tower of the old labels is of no use
