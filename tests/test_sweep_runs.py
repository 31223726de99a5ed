"""The runs of a sweep's trials in MLflow, while its server goes away and comes back, and after a kill."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from cprfl.errors import TrackingError
from cprfl.experiment import Experiment, load
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.record import Trials
from pipelines.tracking import sweeps
from pipelines.tracking.runs import Run, open_run
from pipelines.tracking.store import open_store
from pipelines.tracking.sweeps import TrialRuns, TrialState
from tests.helpers import runs, steps
from tests.sweep_driver import Driver, Killed, Told

METRIC, EPOCHS = "val/mAP", 3
SWEEP = SweepConfig.model_validate(
    {"space": {"train.lr": {"log": [1e-4, 1e-1]}}, "trials": 5, "scheduler": "none", "search": "random"}
)


def train(number: int, tried: dict[str, Any], after: int) -> Told:
    """A training without images; the fourth fails."""
    for epoch in range(min(after + 1, EPOCHS), EPOCHS + 1):
        yield {METRIC: 10.0 * epoch - math.log10(tried["train.lr"]), "epoch": epoch}
    if number == 4:
        yield {"mistake": "NonFiniteError: the loss", "epoch": 0}


@pytest.fixture
def experiment(small_config: Path) -> Experiment:
    """A small one."""
    return load(small_config)


@pytest.fixture
def run(experiment: Experiment) -> Iterator[Run]:
    """The run of a sweep."""
    with open_run(open_store(experiment.output_dir), experiment, tags={"sweep": "s"}, own_metrics=False) as opened:
        yield opened


def check_all_there(experiment: Experiment, parent: str) -> None:
    """One run for each trial, closed, with its settings and each epoch once."""
    children = [each for each in runs(experiment) if each.data.tags.get("mlflow.parentRunId") == parent]
    by_number = {int(child.data.tags["trial"]): child for child in children}
    assert sorted(by_number) == list(range(1, 6)) and len(children) == 5
    for number, child in by_number.items():
        assert child.info.status == ("FAILED" if number == 4 else "FINISHED")
        assert child.data.params.keys() == {"train.lr"}
        assert steps(child.info.run_id, METRIC) == [1, 2, 3]
        assert ("error" in child.data.tags) == (number == 4)


class Server:
    """A server that refuses some requests; a request that it took may still be answered by an error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away, self.code = False, "INTERNAL_ERROR"
        monkeypatch.setattr(sweeps, "answers", lambda uri: not self.away)
        monkeypatch.setattr(sweeps, "_SECONDS_BETWEEN_TRIES", 0.0)
        for name in ("create_run", "log_batch", "set_terminated", "update_run"):
            monkeypatch.setattr(mlflow.MlflowClient, name, self._may_fail(getattr(mlflow.MlflowClient, name)))

    def _may_fail(self, method: Any) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self.away:
                raise MlflowException("connection refused")
            return method(*args, **kwargs)

        return called


@pytest.mark.parametrize(("gone", "back"), [(0, 100), (3, 9), (6, 25), (14, 100)])
def test_what_a_server_did_not_take_is_sent_when_it_is_back(
    experiment: Experiment, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int, back: int
) -> None:
    server, moment = Server(monkeypatch), iter(range(1000))

    def step() -> None:
        server.away = gone <= next(moment) < back

    followed = TrialRuns(run)
    Driver(train, step).search(SWEEP, EPOCHS, Trials(tmp_path / "record"), followed)
    server.away = False
    followed.catch_up()
    check_all_there(experiment, run.id)


def test_a_server_that_stays_away_ends_the_sweep_and_its_record_stays(
    experiment: Experiment, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, followed = Server(monkeypatch), TrialRuns(run)
    monkeypatch.setattr(sweeps, "_SECONDS_TO_WAIT", 0.0)
    server.away = True
    Driver(train).search(SWEEP, EPOCHS, Trials(tmp_path / "record"), followed)
    with pytest.raises(TrackingError, match="nothing is lost"):
        followed.catch_up()
    server.away = False
    later = TrialRuns(run)  # the sweep is resumed
    for trial in Trials(tmp_path / "record"):
        later.write(trial.state(population=False))
    check_all_there(experiment, run.id)


def test_a_server_that_refuses_is_not_taken_for_one_that_is_away(run: Run) -> None:
    followed = TrialRuns(run)
    state = TrialState(1, {"train.lr": 0.1}, [], "RUNNING")
    followed.write(state)
    mlflow.MlflowClient().delete_run(followed.sent[1].run_id)
    with pytest.raises(TrackingError):
        followed.write(TrialState(1, {"train.lr": 0.1}, [(1, 1, {METRIC: 1.0})], "RUNNING"))


@pytest.mark.parametrize("moment", [1, 2, 4, 7, 13, 20])
def test_a_killed_driver_leaves_no_trial_lost_double_or_running(
    experiment: Experiment, run: Run, tmp_path: Path, moment: int
) -> None:
    left = iter(range(moment))

    def step() -> None:
        if next(left, None) is None:
            raise Killed

    with pytest.raises(Killed):
        Driver(train, step).search(SWEEP, EPOCHS, Trials(tmp_path / "record"), TrialRuns(run))
    trials, followed = Trials(tmp_path / "record"), TrialRuns(run)
    for trial in trials:
        if trial.status != "running":
            followed.write(trial.state(population=False))
    Driver(train).search(SWEEP, EPOCHS, trials, followed)
    followed.catch_up()
    check_all_there(experiment, run.id)


def test_the_runs_of_unfinished_trials_are_closed_where_the_sweep_is_left(experiment: Experiment, run: Run) -> None:
    for error, status in [(KeyboardInterrupt, "KILLED"), (TrackingError, "FAILED")]:
        followed = TrialRuns(run)
        with pytest.raises(error), followed.closed_with_the_sweep():
            followed.write(TrialState(1, {"train.lr": 0.1}, [], "RUNNING"))
            raise error("left")
        assert mlflow.MlflowClient().get_run(followed.sent[1].run_id).info.status == status
