"""The stages in this process and real MLflow: what a run leaves behind, how it fails, how it goes on."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cprfl import preparation, recipe
from cprfl.data.manifest import Manifest
from cprfl.data.readers.csv_table import CsvDataset
from cprfl.encoders.base import ImageEncoder
from cprfl.errors import BadImagesError, CheckpointError, DatasetError, TrackingError, UnreadableImageError, UserError
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import Experiment, load
from cprfl.inference.predictor import load_method
from cprfl.inference.pyfunc import decode_image
from cprfl.training.checkpoint import load_info
from pipelines.stages import run as stages
from pipelines.stages.preprocess import preprocess
from pipelines.stages.train import train_stage
from pipelines.tracking import store as tracking_store
from pipelines.tracking.names import mlflow_names
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import open_store
from tests.helpers import call, command, runs, steps, use_database, wait_for


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
    assert not (experiment.folder / "training").exists()

    probe_run, run = runs(experiment)
    assert (run.info.run_name, probe_run.info.run_name) == ("small", "probe")
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.gamma_neg"] == "4.0"
    assert run.data.metrics["test/mAP"] == pytest.approx(written["mAP"])
    assert {"dataset_digest", "encoder_fingerprint", "protocol", "git_commit"} <= run.data.tags.keys()
    assert steps(run.info.run_id) == [1, 2, 3, 4]
    artifacts = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"evaluation.json", "predictions.parquet", "experiment.yaml", "checkpoint"} <= artifacts
    assert probe_run.info.status == "FINISHED"
    for one in (run, probe_run):
        assert one.info.artifact_uri.startswith(f"file://{experiment.output_dir}/mlflow/artifacts")
    assert {path.name for path in tmp_path.iterdir()} == before

    model = mlflow.pyfunc.load_model("models:/small@champion")
    content = (photos / "20.png").read_bytes()
    scores = model.predict(pd.DataFrame({"image": [content, base64.b64encode(content).decode()]}))
    assert list(scores.columns) == ["blue", "green", "red"]
    assert np.allclose(scores.iloc[0], scores.iloc[1])
    assert np.allclose(scores.iloc[0], probabilities_of(experiment)[4], atol=1e-3)
    with pytest.raises(UnreadableImageError, match="not base64 of an image; send its bytes, not its path"):
        model.predict(pd.DataFrame({"image": [str(photos / "20.png")]}))


def test_every_small_image_is_taken_as_base64(tmp_path: Path) -> None:
    """Base64 is longer than a file's name may be, and never looked for among the server's files."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(40):
        side = int(rng.integers(1, 12))
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
        assert decode_image(base64.b64encode(path.read_bytes()).decode()).size == (side, side)


def test_a_run_reads_prepares_and_opens_once(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()

    def counted(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def wrapper(*arguments: object, **options: object) -> object:
            counts[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, wrapper)

    counted(CsvDataset, "read")
    counted(ImageEncoder, "fingerprint")
    counted(preparation, "build_encoder")
    counted(tracking_store, "follow_the_folder")  # at each opening of a store in a file
    stages.run(load(small_config, ["train.epochs=1", "variants.probe.model.name=linear_probe"]))
    assert counts == {"read": 1, "fingerprint": 1, "build_encoder": 1, "follow_the_folder": 1}


def test_validation_selects_the_best_epoch_and_is_deterministic(small_config: Path) -> None:
    experiment = load(small_config, ["train.validation=0.25", "train.select=best"])
    splits = preprocess(experiment).manifest.splits
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (12, 4, 8)
    first = train_stage(experiment)
    weights = (first / "model.safetensors").read_bytes()
    train_stage(experiment)
    assert (first / "model.safetensors").read_bytes() == weights
    (_, run) = runs(experiment)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val/mAP")
    assert load_info(first).metrics["val/mAP"] == pytest.approx(max(metric.value for metric in history))
    assert stages.evaluate_stage(experiment).metrics["mAP"] > 0


def test_the_published_protocol_selects_on_the_test_images_and_says_so(small_config: Path) -> None:
    experiment = load(small_config, ["protocol=published"])
    result = stages.run(experiment)["small"]
    (run,) = runs(experiment)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "test/mAP")
    assert len(history) == 5  # four epochs and the final evaluation
    assert result.metrics["mAP"] == pytest.approx(max(metric.value for metric in history), abs=1e-3)
    assert run.data.tags["protocol"] == "published"
    assert json.loads((experiment.folder / "evaluation.json").read_text())["protocol"] == "published"


def test_a_user_s_mistake_fails_the_run(small_config: Path) -> None:
    experiment = load(small_config, ["train.lr=1e30", "train.clip_norm=null"])
    with pytest.raises(UserError, match=r"the loss is .* on images"):
        stages.run(experiment)
    (run,) = runs(experiment)
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["no test split"], "split test: no image that can be used; give dataset.splits.test"),
        (["train.validation=0.01"], r"split val: no image that can be used; raise train.validation \(0.01\)"),
        (["dataset.splits.test=nothing.csv"], "split test: none of its 2 images shows a class"),
        (["resources.num_workers=64"], "split train: 16 images for 64 workers"),
        (["no test split", "protocol=published"], "split test: no image"),
    ],
)
def test_what_follows_from_the_data_is_said_before_anything_is_encoded(
    own_config: Path, own_photos: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], message: str
) -> None:
    if overrides[0] == "no test split":
        own_config.write_text(own_config.read_text().replace("    test: test.csv\n", ""))
        overrides = overrides[1:]
    (own_photos / "nothing.csv").write_text("image,labels\n20.png,\n21.png,\n")
    monkeypatch.setattr(preparation, "find_or_encode", lambda *_: pytest.fail("encoded first"))
    with pytest.raises(DatasetError, match=message):
        stages.run(load(own_config, overrides))


def test_a_data_set_of_bad_images_is_named_as_one(own_config: Path, own_photos: Path) -> None:
    for file in own_photos.glob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(BadImagesError, match="24 of 24 images are missing or do not decode"):
        stages.run(load(own_config, ["dataset.on_bad_image=skip"]))
    kept = [own_photos / f"{number:02d}.png" for number in range(16, 24)]
    for file in kept:
        from PIL import Image

        Image.new("RGB", (64, 48)).save(file)
    with pytest.raises(DatasetError, match="split train: no image that can be used"):
        stages.run(load(own_config, ["dataset.on_bad_image=skip"]))


def test_runs_of_killed_processes_are_closed(small_config: Path) -> None:
    experiment = load(small_config)
    code = (
        "import os, sys\nfrom cprfl.experiment import load\n"
        "from pipelines.tracking.runs import open_run\nfrom pipelines.tracking.store import open_store\n"
        "experiment = load(sys.argv[1])\n"
        "with open_run(open_store(experiment.output_dir), experiment): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(small_config)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with open_run(open_store(experiment.output_dir), experiment):
        assert sorted(run.info.status for run in runs(experiment)) == ["FAILED", "RUNNING"]


def test_names_are_brought_to_what_mlflow_takes_and_stay_apart() -> None:
    from mlflow.utils.validation import _validate_metric_name

    names = ["AP/kitchen & dining (table)", "AP/l'été", "AP/a//b", "AP/..", "AP/x.", "AP/hot dog"]
    for name in mlflow_names(dict.fromkeys(names, 0.0)):
        _validate_metric_name(name)
    assert "AP/hot dog" in mlflow_names({"AP/hot dog": 1.0})
    ages = {"AP/age <1y": 1.0, "AP/age >1y": 2.0, "AP/cat": 3.0}
    named = mlflow_names(ages)
    assert sorted(named.values()) == [1.0, 2.0, 3.0]
    assert named == mlflow_names(dict(reversed(ages.items())))
    assert named["AP/cat"] == 3.0


def test_only_what_one_training_needs_is_removed(small_config: Path) -> None:
    experiment = load(small_config)
    prepared = preprocess(experiment)
    for folder in (recipe.resumable_folder(experiment, prepared), experiment.folder / "training" / "another"):
        folder.mkdir(parents=True)
    recipe.remove_resumable(experiment, prepared)
    assert [folder.name for folder in (experiment.folder / "training").iterdir()] == ["another"]


@pytest.mark.parametrize(
    "same",
    [
        "resources.max_failures=9", "train.features_in_memory_mb=0", "encoder.num_workers=2", "encoder.batch_size=3",
        "name=other", "resources.cpus_per_worker=1", "resources.num_workers=1", "promotion.min_gain=3",
    ],
)  # fmt: skip
def test_what_cannot_change_the_weights_names_no_other_training(small_config: Path, same: str) -> None:
    assert load(small_config, [same]).training_fingerprint == load(small_config).training_fingerprint


@pytest.mark.parametrize("other", ["seed=1", "train.lr=1", "model.dim=8", "loss.clip=0", "resources.num_workers=2"])
def test_what_can_change_the_weights_names_another_training(small_config: Path, other: str) -> None:
    assert load(small_config, [other]).training_fingerprint != load(small_config).training_fingerprint


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


def test_a_run_that_is_deleted_meanwhile_is_said(small_config: Path) -> None:
    experiment = load(small_config)
    store = open_store(experiment.output_dir)
    with pytest.raises(TrackingError, match="must be in the 'active'"), open_run(store, experiment) as run:
        mlflow.MlflowClient().delete_run(run.id)
        run.sink.log({"train/loss": 1.0}, 1)
    assert not Path(run.sink.outbox).exists()


def test_a_model_is_found_after_its_folder_was_moved(
    small_config: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = command("run", str(small_config), "--set", "train.epochs=1")
    subprocess.run(words, check=True, capture_output=True)
    (tmp_path / "outputs").rename(tmp_path / "moved")
    image = str(photos / "00.png")
    where = ["--output-dir", str(tmp_path / "moved")]
    status, out, err = call(monkeypatch, capsys, "predict", "models:/small@champion", image, *where)
    assert status == 0, err
    assert out.startswith(f"{image}: ")


def test_what_was_deleted_in_mlflow_is_said(small_config: Path) -> None:
    experiment = load(small_config, ["train.epochs=1"])
    train_stage(experiment)
    (run,) = runs(experiment)
    client = mlflow.MlflowClient()
    client.delete_run(run.info.run_id)
    with pytest.raises(UserError, match="or one whose run is of another MLflow store or was deleted"):
        stages.evaluate_stage(experiment)
    client.delete_experiment(run.info.experiment_id)
    with pytest.raises(
        TrackingError, match=r"experiment 'small' was deleted; restore it with `mlflow experiments restore"
    ):
        stages.run(experiment)


def test_a_database_of_another_version_is_named_before_the_work(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    experiment = load(small_config)
    database = Path(experiment.output_dir) / "mlflow" / "mlflow.db"
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")  # of a year before
    monkeypatch.setattr(stages, "preprocess", lambda *_, **__: pytest.fail("worked first"))
    with pytest.raises(TrackingError, match="mlflow db upgrade sqlite:///"):
        stages.run(experiment)


def test_a_moved_and_a_copied_output_folder_go_on_where_they_are(
    small_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command("run", str(small_config), "--set", "train.epochs=1")  # MLflow keeps its paths within a process
    subprocess.run(words, check=True, capture_output=True)
    old, moved, copied = tmp_path / "outputs", tmp_path / "moved", tmp_path / "copied"
    old.rename(moved)
    there = load(small_config, ["train.epochs=1", f"output_dir={moved}"])
    stages.evaluate_stage(there)
    assert f"file://{old}/mlflow/artifacts before" in capsys.readouterr().err
    assert mlflow.pyfunc.load_model("models:/small@champion") is not None
    shutil.copytree(moved, copied)
    elsewhere = load(small_config, ["train.epochs=2", f"output_dir={copied}"])
    stages.run(elsewhere)
    assert all(run.info.artifact_uri.startswith(f"file://{copied}/") for run in runs(elsewhere))
    assert not old.exists()
    assert len(runs(there)) == 1
    assert len(runs(elsewhere)) == 2


def killed_while_training(config: Path, words: list[str], output: Path) -> None:
    """Run a training and kill it after its first checkpoint."""
    process = subprocess.Popen(command(*words), start_new_session=True)

    def has_checkpoint() -> bool:
        assert process.poll() is None, "ended before it could be killed"
        return bool(list((output / "small" / "training").glob("*/*/checkpoint.json")))

    wait_for(has_checkpoint)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_killed_training_goes_on_and_ends_as_if_undisturbed(
    small_config: Path, tmp_path: Path, database: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    undisturbed = tmp_path / "undisturbed"
    use_database(undisturbed, database)
    expected = train_stage(load(small_config, ["train.epochs=60", f"output_dir={undisturbed}"]))
    words = ["train", str(small_config), "--set", "train.epochs=60"]
    killed_while_training(small_config, words, tmp_path / "outputs")
    # Settings that cannot change the weights may differ by now.
    status, _, err = call(monkeypatch, capsys, *words, "--set", "resources.max_failures=0")
    assert status == 0, err
    assert "going on with the interrupted training" in err
    found = tmp_path / "outputs" / "small" / "checkpoint"
    assert load_info(found).metrics == load_info(expected).metrics
    assert (found / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    (run,) = runs(load(small_config))
    assert run.info.status == "FINISHED"
    assert set(steps(run.info.run_id)) == set(range(1, 61))


def scores_of(experiment: Experiment) -> np.ndarray:
    return np.array(pq.read_table(experiment.folder / "predictions.parquet")["scores"].to_pylist())


def probabilities_of(experiment: Experiment) -> np.ndarray:
    """What evaluation's scores say, calibrated as the checkpoint is."""
    return Decisions.read(experiment.folder / "checkpoint", ("blue", "green", "red")).probabilities(
        scores_of(experiment)
    )


def test_a_closed_form_method_goes_through_every_stage(small_config: Path, photos: Path) -> None:
    experiment = load(small_config, ["model={name: logistic_regression, strengths: [0.1, 1], num_folds: 2}"])
    first = stages.run(experiment)["small"]
    assert load_info(experiment.folder / "checkpoint").epoch == 0
    model = mlflow.pyfunc.load_model("models:/small@champion")
    scores = model.predict(pd.DataFrame({"image": [(photos / f"{n}.png").read_bytes() for n in range(16, 24)]}))
    assert np.allclose(scores, probabilities_of(experiment), atol=1e-3)
    assert stages.evaluate_stage(experiment).metrics == first.metrics


def test_an_ensemble_weighs_members_of_any_kind(small_config: Path) -> None:
    cprfl = "{name: cprfl, standardize: true, dim: 32, num_heads: 2, head_dim: 16, mlp_dim: 32}"
    members = f"[{cprfl}, {{name: logistic_regression, num_folds: 2}}]"
    experiment = load(
        small_config, [f"model={{name: ensemble, weights: fitted, num_folds: 2, members: {members}}}", "train.epochs=2"]
    )
    stages.run(experiment)
    method, _ = load_method(experiment.folder / "checkpoint")
    weights = method.state_dict()["weight_M"]
    assert (weights >= 0).all()
    assert weights.sum() > 0
    assert scores_of(experiment).shape == (8, 3)


def test_a_chain_trains_the_tower_first_and_then_on_its_cached_features(
    small_config: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = "{backbone: adapter, epochs: 2, lr: 0.01, finetune: {num_processes: 0}}"
    first = f"{{train: {train}, model: {{name: linear_probe, standardize: false}}}}"
    experiment = load(small_config, [f"first={first}"])
    results = stages.run(experiment)
    assert list(results) == ["small-first", "small"]
    before, plain = experiment.first_experiment, load(small_config)
    assert before is not None
    assert load_info(before.folder / "checkpoint").holds_tower
    tower = (experiment.folder / "checkpoint" / "tower.safetensors").read_bytes()
    assert tower == (before.folder / "checkpoint" / "tower.safetensors").read_bytes()
    assert len(tower) < 1_000_000  # adapters, not the tower
    fingerprints = {preprocess(each).encoder_fingerprint for each in (experiment, plain)}
    assert len(fingerprints) == 2
    assert {run.info.status for each in (experiment, before) for run in runs(each)} == {"FINISHED"}
    # The registered model and a checkpoint by itself give the scores of the evaluation, which are those of the cache.
    model = mlflow.pyfunc.load_model("models:/small@champion")
    images = [(photos / f"{n}.png").read_bytes() for n in range(16, 24)]
    scores = model.predict(pd.DataFrame({"image": images}))
    assert np.allclose(scores, probabilities_of(experiment), atol=1e-3)
    variant = "variants.probe.model={name: linear_probe}"
    results = stages.run(load(small_config, [f"first={first}", "train.lr=0.001", variant]))
    assert list(results) == ["small-first", "small", "small-probe"]
    assert len(runs(before)) == 1  # the first stage is there already, for the variant too
    train_stage(load(small_config, [f"first={first}"]))
    assert len(runs(before)) == 1
    other = load(small_config, [f"first={first}", "first.train.lr=0.02"])
    with pytest.raises(CheckpointError, match="trained with other settings than `first` has"):
        preprocess(other)


def test_the_manifest_counts_the_whole_training_split(small_config: Path) -> None:
    whole = preprocess(load(small_config)).manifest
    preprocess(load(small_config, ["train.validation=0.3"]))
    from cprfl.data.long_tail import class_counts

    written = Manifest.read(load(small_config).folder / "manifest.parquet")
    assert written.splits.count("val") == 5
    assert class_counts(written).tolist() == class_counts(whole).tolist()
