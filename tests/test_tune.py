"""Sweeps on real Ray Tune: one parent run, one child per trial, test images once, resumable, failures recorded."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cprfl.data.manifest import TEST
from cprfl.errors import ConfigError, SweepError
from cprfl.experiment import Experiment, load
from cprfl.preparation import prepare
from cprfl.progress import goes_on
from cprfl.reading import read_data
from cprfl.recipe import train_in
from cprfl.training.checkpoint import load_info
from pipelines.sweeps import follow, tuner
from pipelines.sweeps import tune as tuning
from pipelines.sweeps.config import SweepConfig, load_sweep, trial_experiment
from pipelines.sweeps.record import Trial, Trials
from pipelines.sweeps.tune import tune
from pipelines.tracking.store import open_store
from tests.helpers import SPACE, runs, steps, sweep_file
from tests.ray_commands import running
from tests.sweep_driver import Driver

EPOCHS = 40


def sweep_runs(experiment: Experiment) -> tuple[Any, list[Any]]:
    """The sweep's own run and its children."""
    found = runs(experiment)
    (parent,) = [run for run in found if "sweep" in run.data.tags and "trial" not in run.data.tags
                 and not run.data.metrics.get("test/mAP")]  # fmt: skip
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, sorted(children, key=lambda run: int(run.info.start_time))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_sweep_is_one_parent_with_a_child_per_trial(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config)
    space = {**SPACE, "train.lr": {"choice": [0.003, 1e30]}}
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", space=space, trials=3), small_config, [])
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "_train_winner", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("crash")))
        with pytest.raises(RuntimeError, match="crash"):
            tune(experiment, sweep)
    result = tune(experiment, sweep, resume=True)  # the winner is trained, and no trial once more
    assert result.settings.keys() == space.keys()
    assert result.settings["train.lr"] == 0.003
    parent, children = sweep_runs(experiment)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best/val/mAP"] == pytest.approx(result.value)
    artifacts = {item.path for item in mlflow.MlflowClient().list_artifacts(parent.info.run_id)}
    assert {"trials.json", "parallel_coordinates.png"} <= artifacts
    assert len(children) == 3
    for child in children:
        assert child.data.params.keys() == space.keys()
        assert not [name for name in child.data.metrics if name.startswith("test/")]
        if float(child.data.params["train.lr"]) > 1:
            assert child.info.status == "FAILED"
            assert "NonFiniteError" in child.data.tags["error"]
        else:
            assert child.info.status == "FINISHED"
            epochs = mlflow.MlflowClient().get_metric_history(child.info.run_id, "val/mAP")
            assert child.data.tags["pruned"] == str(len(epochs) < 4).lower()
    assert {child.info.status for child in children} == {"FAILED", "FINISHED"}
    assert result.evaluation.metrics["mAP"] > 0
    assert result.experiment.folder == experiment.folder / "tuned"
    assert (experiment.folder / "tuned" / "evaluation.json").exists()
    assert not (experiment.folder / "manifest.parquet").exists()  # the model's own place is left alone
    assert result.standing is None  # there was no champion


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_population_exchanges_weights_and_settings(small_config: Path, tmp_path: Path) -> None:
    space = {"train.lr": {"log": [1e-9, 1e-2]}}
    values = {"scheduler": "pbt", "perturb_epochs": 10, "trials": 2, "space": space}
    experiment = load(small_config, ["train.epochs=40", "train.batch_size=1"])  # one begins seconds after the other
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", **values), small_config, [])
    tune(experiment, sweep)
    _, children = sweep_runs(experiment)
    client = mlflow.MlflowClient()
    assert [child.info.status for child in children] == ["FINISHED"] * 2
    changed = 0
    for child in children:  # one that took over the other's weights goes on from their epoch
        assert max(metric.step for metric in client.get_metric_history(child.info.run_id, "val/mAP")) == 40
        rates = {metric.value for metric in client.get_metric_history(child.info.run_id, "settings/train.lr")}
        changed += len(rates) > 1
    assert changed


def test_mistakes_are_found_before_anything_starts(small_config: Path, tmp_path: Path) -> None:
    space = {
        "loss.gama_neg": {"uniform": [1, 2]},
        "model.dropout": {"uniform": [0.0, 1.5]},
        "encoder.views": {"integer": [1, 4]},
    }
    with pytest.raises(ConfigError) as caught:
        load_sweep(sweep_file(tmp_path / "s.yaml", space=space), small_config, [])
    message = str(caught.value)
    assert "loss.gama_neg: no such setting; did you mean" in message or "did you mean 'gamma_neg'" in message
    assert "space.model.dropout, value 1.5" in message
    assert "space.encoder.views: trials share one data set" in message
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"space": {"train.lr": {"log": [0, 1]}}}, "above 0 for log"),
        ({"space": {"train.lr": {"log": [1, 2], "choice": [1]}}}, "exactly one"),
        ({"metric": "test/mAP"}, "metric"),
        ({"scheduler": "pbt", "space": {"model.tau": {"choice": [0.5, 1.0]}}}, "space.model.tau cannot change then"),
        ({"trails": 3}, "did you mean 'trials'"),
    ]
    for values, wrong in mistakes:
        with pytest.raises(ConfigError, match=wrong):
            load_sweep(sweep_file(tmp_path / "s.yaml", **values), small_config, [])
    space = {"model.dim": {"uniform": [64, 256]}, "model.dropout": {"uniform": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match=r"(?s)space.model.dim, value 125.*start.model.dropout, value 2.*start.train"):
        values = {"space": space, "start": {"model.dropout": 2.0, "train.lr": 1.0}}
        load_sweep(sweep_file(tmp_path / "s.yaml", **values), small_config, [])
    with pytest.raises(ConfigError, match="start.train.lr: 0.3 is not among its choices"):
        values = {"space": {"train.lr": {"choice": [0.1, 0.2]}}, "start": {"train.lr": 0.3}}
        load_sweep(sweep_file(tmp_path / "s.yaml", **values), small_config, [])
    nullable = {"train.clip_norm": {"choice": [None, 1.0]}}
    load_sweep(sweep_file(tmp_path / "s.yaml", space=nullable), small_config, [])
    with pytest.raises(ConfigError, match="sweep file not found"):
        load_sweep(tmp_path / "none.yaml", small_config, [])
    with pytest.raises(SweepError, match="no interrupted sweep here"):
        tune(load(small_config), SweepConfig.model_validate({"space": SPACE}), resume=True)


class _Code:
    """Leaves a file where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def plant(folder: Path, proof: Path) -> None:
    """Put code under every name that Ray unpickles something from."""
    pickled = pickle.dumps(_Code(proof))
    state = {"_type": "CLOUDPICKLE_FALLBACK", "value": pickled.hex()}
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tuner.pkl", "trainable.pkl", "searcher-state-2026.pkl", "search_gen_state-2026.json", "params.pkl",
                 "error.pkl", ".tune_metadata", ".metadata.pkl", "class_trainable.pkl", "dict_checkpoint.pkl",
                 "basic-variant-state-2026.json"):  # fmt: skip
        (folder / name).write_bytes(pickled)
    trials = [[json.dumps(state), json.dumps(state)]]
    values = {"trial_data": trials, "runner_data": state, "stats": state, "checkpoints": [state]}
    (folder / "experiment_state-2026.json").write_text(json.dumps(values))
    (folder / ".metadata.json").write_text(json.dumps(state))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_whose_ray_is_lost_goes_on_as_undisturbed_and_unpickles_nothing(
    small_config: Path, tmp_path: Path
) -> None:
    """It ends at once, nothing of it stays, and the trial that it was in goes on from its last checkpoint."""
    sweep, epochs = sweep_file(tmp_path / "s.yaml", scheduler="none", trials=2), f"train.epochs={EPOCHS}"
    words = ["tune", str(small_config), "--sweep", str(sweep), "--set", epochs, "--set", "decisions.folds=0"]
    experiment = load(small_config, [epochs])
    with running(words) as disturbed:
        disturbed.wait(lambda: any(trial.reports for trial in recorded(experiment)))
        disturbed.find("gcs_server").kill()
        begun = time.monotonic()
        status, err = disturbed.ended()
        assert time.monotonic() - begun < 45, err  # Ray alone gives up after a minute
        assert (status, "Traceback" in err) == (2, False), err
        last = err.strip().splitlines()[-1]
        assert last.startswith("cprfl: Ray on this machine is lost: gcs_server was ended by SIGKILL; the same command")
        assert "the same command with --resume goes on" in last
        assert disturbed.leftovers() == []
    parent, children = sweep_runs(experiment)
    assert {run.info.status for run in (parent, *children)} == {"FAILED"}
    assert [trial.status for trial in recorded(experiment)] == ["running"]
    proof, (folder,) = tmp_path / "unpickled", experiment.folder.glob("sweeps/*/")
    for place in [folder, *folder.rglob("*/"), folder / "tune" / "tune" / "1" / "checkpoint_000000"]:
        plant(place, proof)
    plant(experiment.folder / "tuned" / "training" / "0123456789abcdef", proof)
    with running([*words, "--resume"]) as resumed:
        status, err = resumed.ended()
        assert status == 0, err
    assert not proof.exists()
    parent, children = sweep_runs(experiment)
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 3
    assert [steps(child.info.run_id, "val/mAP") for child in children] == [[*range(1, EPOCHS + 1)]] * 2
    first, second = recorded(experiment)
    assert (first.status, second.status) == ("finished", "finished")
    searched = load_sweep(sweep, small_config, [])
    alone = trial_experiment(experiment, searched, first.settings).placed("alone")
    undisturbed = load_info(train_in(tmp_path / "alone", alone, prepare(alone, needs=[TEST]))).metrics
    assert first.reports[-1].metrics == undisturbed


def recorded(experiment: Experiment) -> list[Trial]:
    """What the newest sweep wrote down of its trials."""
    newest = max(experiment.folder.glob("sweeps/*/"), default=None)
    return list(Trials(newest / "record")) if newest is not None else []


def test_what_is_planted_runs_where_it_is_unpickled(tmp_path: Path) -> None:
    plant(tmp_path / "planted", tmp_path / "proof")
    with (tmp_path / "planted" / "tuner.pkl").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "proof").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_trial_whose_process_is_killed_is_started_again(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    class Killing(follow.FollowTrials):
        """Kills the process of the first trial after its second epoch."""

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            super().on_trial_result(iteration, trials, trial, result, **info)
            if result["epoch"] == 2 and not killed:
                killed.append(result["pid"])
                os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(tuner, "FollowTrials", Killing)
    experiment = load(small_config)
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", scheduler="none", trials=2), small_config, [])
    tuning.search(open_store(experiment.output_dir), experiment, sweep, read_data(experiment))
    assert killed
    assert "its process died; it is started again" in capfd.readouterr().err
    _, children = sweep_runs(experiment)
    assert [child.info.status for child in children] == ["FINISHED"] * 2
    assert [steps(child.info.run_id, "val/mAP") for child in children] == [[1, 2, 3, 4]] * 2


def test_a_sweep_that_was_interrupted_before_its_first_trial_is_resumed_from_its_start(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config)
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", trials=1), small_config, [])
    driver = Driver(lambda *_: iter([{"val/mAP": 1.0, "epoch": 4}]))
    monkeypatch.setattr(tuner, "run_trials", driver.run_trials)
    monkeypatch.setattr(tuning, "_train_winner", lambda *_: (None, None))
    with monkeypatch.context() as patched:
        patched.setattr(tuning, "prepare_chain", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune(experiment, sweep)
    assert goes_on() == "the same command with --resume"
    assert tune(experiment, sweep, resume=True).value == 1.0
    assert len(list(experiment.folder.glob("sweeps/*/"))) == 1
    with pytest.raises(SweepError, match="no interrupted sweep here"):
        tune(experiment, sweep, resume=True)


def test_where_no_trial_succeeds_the_next_sweep_begins_anew(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config)
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", trials=2), small_config, [])
    driver = Driver(lambda *_: iter([{"mistake": "ConfigError: no", "epoch": 0}]))
    monkeypatch.setattr(tuner, "run_trials", driver.run_trials)
    with pytest.raises(SweepError, match="no trial succeeded"):
        tune(experiment, sweep)
    assert not tuning.interrupted(experiment, sweep)
    _, children = sweep_runs(experiment)
    assert [child.data.tags["error"] for child in children] == ["ConfigError: no"] * 2


def test_a_sweep_is_the_newest_also_where_the_clock_was_put_back(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, sweep = load(small_config), SweepConfig.model_validate({"space": SPACE})
    for stamp in ("20261126-120000", "20261126-120000", "20251126-120000"):
        monkeypatch.setattr(time, "strftime", lambda _, stamp=stamp: stamp)
        assert tuning._folder(experiment, sweep, resume=False) == tuning._newest(experiment)
    assert len(list(experiment.folder.glob("sweeps/*/"))) == 3
