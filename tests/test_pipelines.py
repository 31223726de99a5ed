"""The stages on real Ray and real MLflow: what a run leaves behind, how it fails, how it goes on."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pipelines.preprocess import preprocess
from pipelines.train import forget

from cprfl.errors import ClusterError, TrackingError, UserError
from cprfl.experiment import Experiment, load
from pipelines import run as stages
from pipelines import tracking
from tests.test_cli import call


def runs(experiment: Experiment) -> list[Any]:
    experiment_id = tracking.open_store(experiment)
    return list(mlflow.MlflowClient().search_runs([experiment_id]))


@pytest.mark.usefixtures("ray_session")
def test_a_run_leaves_a_table_metrics_artifacts_and_a_registered_model(
    small_config: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    experiment = load(small_config, ["variants.probe.model.name=linear_probe"])
    results = stages.run(experiment)
    assert list(results) == ["small", "small-probe"]

    written = json.loads((experiment.folder / "evaluation.json").read_text())
    assert written["mAP"] == pytest.approx(results["small"].metrics["mAP"])
    assert {"mAP_head", "OF1", "CF1", "OF1_top3", "AP/red"} <= written.keys()
    predictions = pq.read_table(experiment.folder / "predictions.parquet")
    assert predictions["image_id"].to_pylist() == [f"{n:02d}.png" for n in range(16, 24)]
    assert not (experiment.folder / "ray").exists()

    (run,) = runs(experiment)
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.gamma_neg"] == "4.0"
    assert run.data.metrics["test/mAP"] == pytest.approx(written["mAP"])
    assert {"dataset_digest", "encoder_fingerprint", "protocol", "git_commit"} <= run.data.tags.keys()
    client = mlflow.MlflowClient()
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2, 3, 4]
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"evaluation.json", "predictions.parquet", "experiment.yaml", "checkpoint"} <= artifacts
    (probe_run,) = runs(experiment.variant("probe"))
    assert probe_run.info.status == "FINISHED"
    for one in (run, probe_run):
        assert one.info.artifact_uri.startswith(f"file://{experiment.output_dir}/mlflow/artifacts")
    assert {path.name for path in tmp_path.iterdir()} - before == {"outputs"}

    model = mlflow.pyfunc.load_model("models:/small@champion")
    path = str(photos / "20.png")
    content = Path(path).read_bytes()
    scores = model.predict(pd.DataFrame({"image": [path, content, base64.b64encode(content).decode()]}))
    assert list(scores.columns) == ["blue", "green", "red"]
    assert np.allclose(scores.iloc[0], scores.iloc[1])
    assert np.allclose(scores.iloc[0], scores.iloc[2])
    logits = np.array(predictions["scores"].to_pylist())[4]
    assert np.allclose(scores.iloc[0], 1 / (1 + np.exp(-logits)), atol=1e-3)


@pytest.mark.usefixtures("ray_session")
def test_two_workers_are_deterministic_and_validation_selects_the_best_epoch(small_config: Path) -> None:
    experiment = load(small_config, ["resources.num_workers=2", "train.validation=0.25", "train.select=best"])
    prepared = preprocess(experiment)
    splits = prepared.read_manifest().splits
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (12, 4, 8)
    first = stages.train_stage(experiment)
    description = json.loads((first / "checkpoint.json").read_text())
    weights = (first / "model.safetensors").read_bytes()
    stages.train_stage(experiment)
    assert (first / "model.safetensors").read_bytes() == weights
    (_, run) = runs(experiment)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/mAP")
    assert description["metrics"]["val/mAP"] == pytest.approx(max(metric.value for metric in history))
    assert stages.evaluate_stage(experiment).metrics["mAP"] > 0


@pytest.mark.usefixtures("ray_session")
def test_the_published_protocol_selects_on_the_test_images_and_says_so(small_config: Path) -> None:
    experiment = load(small_config, ["protocol=published"])
    result = stages.run(experiment)["small"]
    (run,) = runs(experiment)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "test/mAP")
    assert len(history) == 5  # four epochs and the final evaluation
    assert result.metrics["mAP"] == pytest.approx(max(metric.value for metric in history), abs=1e-3)
    assert run.data.tags["protocol"] == "published"
    assert json.loads((experiment.folder / "evaluation.json").read_text())["protocol"] == "published"


@pytest.mark.usefixtures("ray_session")
def test_a_user_s_mistake_in_a_worker_reaches_the_user_and_fails_the_run(small_config: Path) -> None:
    experiment = load(small_config, ["train.lr=1e30", "train.clip_norm=null"])
    with pytest.raises(UserError, match=r"the loss is .* on images"):
        stages.run(experiment)
    (run,) = runs(experiment)
    assert run.info.status == "FAILED"


@pytest.mark.usefixtures("ray_session")
def test_more_workers_than_cpus_are_refused(small_config: Path) -> None:
    experiment = load(small_config, ["resources.num_workers=64"])
    with pytest.raises(ClusterError, match="64 workers need 64 CPU"):
        stages.train_stage(experiment)


def test_runs_of_killed_processes_are_closed(small_config: Path) -> None:
    experiment = load(small_config)
    code = (
        "import os, sys\nfrom cprfl.experiment import load\nfrom pipelines import tracking\n"
        "with tracking.run(load(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small_config)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with tracking.run(experiment):
        assert sorted(run.info.status for run in runs(experiment)) == ["FAILED", "RUNNING"]


def test_names_are_brought_to_what_mlflow_takes() -> None:
    from mlflow.utils.validation import _validate_metric_name

    for name in ("AP/kitchen & dining (table)", "AP/l'été", "AP/a//b", "AP/..", "AP/x."):
        _validate_metric_name(tracking.mlflow_name(name))
    assert tracking.mlflow_name("AP/hot dog") == "AP/hot dog"


def test_only_what_one_training_needs_is_forgotten(small_config: Path) -> None:
    experiment = load(small_config)
    for key in ("this", "another"):
        (experiment.folder / "ray" / key).mkdir(parents=True)
    forget(experiment, "this")
    assert [folder.name for folder in (experiment.folder / "ray").iterdir()] == ["another"]


def test_a_server_that_does_not_answer_is_named_at_once_and_without_its_password(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # which are set from the URI, and restored by this
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:se%2Fcret@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"no MLflow server answers at http://127.0.0.1:9 ") as caught:
        stages.run(load(small_config))
    assert "cret" not in str(caught.value)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("user", "se/cret")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_killed_training_goes_on_and_ends_as_if_undisturbed(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(small_config), "--set", "train.epochs=12"]
    command = [sys.executable, "-m", "pipelines.cli", *words]

    def metrics(output: Path) -> dict[str, float]:
        return json.loads((output / "small" / "checkpoint" / "checkpoint.json").read_text())["metrics"]

    undisturbed = tmp_path / "undisturbed"
    stages.train_stage(load(small_config, ["train.epochs=12", f"output_dir={undisturbed}"]))
    process = subprocess.Popen(command, start_new_session=True)
    folder = tmp_path / "outputs" / "small" / "ray"
    while len(list(folder.glob("*/checkpoint_*/checkpoint.json"))) < 1:
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, _, err = call(monkeypatch, capsys, *words)
    assert status == 0, err
    assert "going on with the interrupted training" in err
    assert metrics(tmp_path / "outputs") == metrics(undisturbed)
    (run,) = runs(load(small_config))
    assert run.info.status == "FINISHED"
    steps = [m.step for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(set(steps)) == list(range(1, 13))
