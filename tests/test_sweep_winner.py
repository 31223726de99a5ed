"""The winner of a sweep whose process is killed after all work, before that is noted: it is not made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest

from cprfl import recipe
from cprfl.experiment import Experiment, load
from pipelines.sweeps import tune as tuning
from pipelines.sweeps import tuner
from pipelines.sweeps.config import SweepConfig, load_sweep
from pipelines.sweeps.tune import tune
from tests.helpers import runs, sweep_file
from tests.sweep_driver import Driver, Killed, Told


def train(number: int, tried: dict[str, Any], after: int) -> Told:
    """Trials without images; the second is the best."""
    yield {"val/mAP": 50.0 + number, "epoch": 4}


@pytest.fixture
def experiment(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """A small one; only its winner is trained for real."""
    monkeypatch.setattr(tuner, "run_trials", Driver(train).run_trials)
    monkeypatch.setattr(tuning, "write_report", lambda *_: None)  # it takes seconds
    return load(small_config, ["decisions.folds=0"])


@pytest.fixture
def sweep(small_config: Path, tmp_path: Path) -> SweepConfig:
    """Of two trials."""
    return load_sweep(sweep_file(tmp_path / "s.yaml", trials=2, scheduler="none"), small_config, [])


def kill(*_: object, **__: object) -> None:
    """The process ends here."""
    raise Killed


def made(experiment: Experiment) -> dict[str, Any]:
    """All runs with their status, and all versions."""
    states = {run.info.run_id: run.info.status for run in runs(experiment)}
    versions = mlflow.MlflowClient().search_model_versions(f"name = '{experiment.name}'")
    return {**states, "versions": sorted(version.version for version in versions)}


@pytest.mark.parametrize("moment", ["clean-up", "note"])
def test_a_winner_that_is_trained_is_taken(
    experiment: Experiment, sweep: SweepConfig, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    with monkeypatch.context() as patched:
        if moment == "clean-up":
            patched.setattr(recipe, "remove_resumable", kill)
        else:
            patched.setattr(tuning, "mark_winner_trained", kill)
        with pytest.raises(Killed):
            tune(experiment, sweep)
    before = made(experiment)
    assert set(list(before.values())[:-1]) == {"FINISHED"}
    assert len(before["versions"]) == 1
    found = tune(experiment, sweep, resume=True)
    assert made(experiment) == before
    assert found.evaluation.metrics["mAP"] > 0
    assert not list((found.experiment.folder / "training").glob("*/"))
    assert not tuning.interrupted(experiment, sweep)
    again = tune(experiment, sweep)  # another sweep, though its winner has the same settings
    assert again.settings == found.settings
    assert len(made(experiment)["versions"]) == 2


def test_a_sweep_killed_while_its_own_run_was_closed_ends_it(
    experiment: Experiment, sweep: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = tuning.write_text

    def write_and_end(path: Path, text: str) -> None:
        write(path, text)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(tuning, "write_text", write_and_end)
        with pytest.raises(Killed):
            tune(experiment, sweep)
    monkeypatch.setattr(tuning, "_train_winner", lambda *_: (None, None))
    assert tune(experiment, sweep, resume=True).value == 52.0
    found = runs(experiment)
    assert len(found) == 3
    assert {run.info.status for run in found} == {"FINISHED"}
