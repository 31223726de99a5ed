"""A real MLflow server that goes down in mid-sweep and comes back: the sweep goes on, and nothing of it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from cprfl.experiment import load
from cprfl.reading import read_data
from pipelines.sweeps import tuner
from pipelines.sweeps.config import load_sweep
from pipelines.sweeps.tune import search
from pipelines.tracking.store import open_store
from tests.helpers import runs, steps, sweep_file
from tests.mlflow_server import MlflowServer
from tests.sweep_driver import Driver, Told

METRIC, EPOCHS, TRIALS = "val/mAP", 4, 6
SECONDS = 10.0  # that the server is away, and then as long as it takes to start


def train(number: int, tried: dict[str, Any], after: int) -> Told:
    """A training without images."""
    for epoch in range(1, EPOCHS + 1):
        yield {METRIC: 10.0 * number + epoch, "train/loss": 1 / epoch, "epoch": epoch}


@pytest.fixture
def server(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    """A server that the environment names."""
    found = MlflowServer(tmp_path / "server", database)
    found.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    yield found
    found.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_server_that_is_away_in_mid_sweep_gets_everything_when_it_is_back(
    small_config: Path,
    tmp_path: Path,
    server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    moment = iter(range(1000))

    def come_back() -> None:
        time.sleep(SECONDS)
        server.start()

    away = threading.Thread(target=come_back)

    def step() -> None:
        if next(moment) == 9:  # in the second trial
            server.kill()
            away.start()

    monkeypatch.setattr(tuner, "run_trials", Driver(train, step).run_trials)
    experiment = load(small_config)
    sweep = load_sweep(sweep_file(tmp_path / "s.yaml", trials=TRIALS, scheduler="none"), small_config, [])
    settings, value = search(open_store(experiment.output_dir), experiment, sweep, read_data(experiment))
    away.join()
    told = capsys.readouterr().err
    assert told.count("MLflow does not answer; what trials report is kept") == 1
    assert told.count("MLflow answers again, and has what was kept") == 1
    assert value == 10.0 * TRIALS + EPOCHS
    *children, parent = runs(experiment)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics[f"best/{METRIC}"] == value
    assert {item.path for item in mlflow.MlflowClient().list_artifacts(parent.info.run_id)} >= {"trials.json"}
    assert sorted(int(child.data.tags["trial"]) for child in children) == list(range(1, TRIALS + 1))
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.params.keys() == settings.keys()
        assert child.data.metrics[METRIC] == 10.0 * int(child.data.tags["trial"]) + EPOCHS
        for metric in (METRIC, "train/loss"):
            assert steps(child.info.run_id, metric) == list(range(1, EPOCHS + 1))
