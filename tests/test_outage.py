"""An MLflow server that goes away while a training runs: the training goes on, and nothing of it is lost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from cprfl.errors import TrackingError
from cprfl.experiment import load
from pipelines.stages import run as stages
from pipelines.tracking.runs import metrics_sink
from pipelines.tracking.store import open_store
from tests.helpers import runs
from tests.mlflow_server import MlflowServer

EPOCHS = 40


@pytest.fixture
def server(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowServer]:
    found = MlflowServer(tmp_path, database)
    found.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.uri)
    yield found
    found.kill()


@pytest.mark.slow
def test_metrics_are_kept_while_the_server_is_gone_and_sent_when_it_is_back(
    small_config: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config, [f"train.epochs={EPOCHS}"])
    store = open_store(experiment.output_dir)
    experiment_id = store.experiment_id(experiment.name)

    def epochs() -> list[int]:
        (run,) = runs(experiment)
        return sorted(m.step for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss"))

    def kill_after_two_epochs() -> None:
        while not (found := mlflow.MlflowClient().search_runs([experiment_id])) or len(found[0].data.metrics) < 1:
            time.sleep(0.05)
        server.kill()

    killer = threading.Thread(target=kill_after_two_epochs)
    killer.start()
    with pytest.raises(TrackingError, match="nothing is lost: when it is back, the same command") as caught:
        stages.run(experiment)
    killer.join()
    assert str(server.port) in str(caught.value)
    (outbox,) = (experiment.folder / "unsent").glob("*.jsonl")
    kept = [json.loads(line)["step"] for line in outbox.read_text().splitlines()]
    assert kept
    assert kept == list(range(kept[0], EPOCHS + 1))  # the training went on to its end

    server.start()
    result = stages.run(experiment)["small"]
    assert epochs() == list(range(1, EPOCHS + 1))
    (run,) = runs(experiment)  # one run, not two
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/mAP"] == pytest.approx(result.metrics["mAP"])
    assert not outbox.exists()

    # Gone and back within one training: the next step brings along what was kept.
    sink = metrics_sink(store, experiment, run.info.run_id)
    server.kill()
    sink.log({"train/other": 1.0}, 1)
    server.start()
    sink.log({"train/other": 2.0}, 2)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/other")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 2.0)]
