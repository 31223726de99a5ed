"""Sweeps on real Ray Tune: one parent run, one child per trial, test images once, resumable, failures recorded."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cprfl.errors import ConfigError, SweepError
from cprfl.experiment import Experiment, load
from pipelines.sweeps import tune as tuning
from pipelines.sweeps.config import SweepConfig, load_sweep
from pipelines.sweeps.tune import tune
from tests.helpers import SPACE, call, command, runs, steps, sweep_file


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
    for values, wrong in [
        ({"space": {"train.lr": {"log": [0, 1]}}}, "above 0 for log"),
        ({"space": {"train.lr": {"log": [1, 2], "choice": [1]}}}, "exactly one"),
        ({"metric": "test/mAP"}, "metric"),
        ({"scheduler": "pbt", "space": {"model.tau": {"choice": [0.5, 1.0]}}}, "space.model.tau cannot change then"),
        ({"trails": 3}, "did you mean 'trials'"),
    ]:
        with pytest.raises(ConfigError, match=wrong):
            load_sweep(sweep_file(tmp_path / "s.yaml", **values), small_config, [])
    space = {"model.dim": {"uniform": [64, 256]}, "model.dropout": {"uniform": [0.1, 0.2]}}
    with pytest.raises(ConfigError, match=r"(?s)space.model.dim, value 125.*start.model.dropout, value 2.*start.train"):
        values = {"space": space, "start": {"model.dropout": 2.0, "train.lr": 1.0}}
        load_sweep(sweep_file(tmp_path / "s.yaml", **values), small_config, [])
    nullable = {"train.clip_norm": {"choice": [None, 1.0]}}
    load_sweep(sweep_file(tmp_path / "s.yaml", space=nullable), small_config, [])
    with pytest.raises(ConfigError, match="sweep file not found"):
        load_sweep(tmp_path / "none.yaml", small_config, [])
    with pytest.raises(SweepError, match="no interrupted sweep here"):
        tune(load(small_config), SweepConfig.model_validate({"space": SPACE}), resume=True)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_sweep_goes_on_without_repeating_trials(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", str(small_config), "--sweep", str(sweep_file(tmp_path / "s.yaml", scheduler="none", trials=2))]
    process = subprocess.Popen(command(*words), start_new_session=True, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    deadline = time.monotonic() + 200
    for line in process.stderr:
        assert time.monotonic() < deadline
        if line.startswith("trial 1 of 2"):
            break
    time.sleep(2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, _, err = call(monkeypatch, capsys, *words, "--resume")
    assert status == 0, err
    parent, children = sweep_runs(load(small_config))
    assert parent.info.status == "FINISHED"
    assert [child.info.status for child in children] == ["FINISHED"] * 2
    assert sorted(set(steps(children[0].info.run_id, "val/mAP"))) == [1, 2, 3, 4]
