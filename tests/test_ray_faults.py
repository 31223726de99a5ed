"""Killed processes of Ray, SIGTERM, and places where Ray cannot start: what is said, left, and gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
import torch

from cprfl.data.feature_store import FeatureStore
from cprfl.errors import ClusterError
from cprfl.experiment import load
from cprfl.recipe import Epoch, run_training
from cprfl.training.checkpoint import load_info
from cprfl.training.loop import Worker
from pipelines.cluster import local
from pipelines.cluster.joining import check_answers
from pipelines.cluster.local import LocalRay
from pipelines.cluster.snapshot import mend_snapshot
from pipelines.stages.preprocess import preprocess
from pipelines.stages.train import train_stage
from tests.helpers import call, command, runs, steps
from tests.ray_commands import RayCommand, running

EPOCHS = 60
TRAINING = [f"train.epochs={EPOCHS}", "resources.num_workers=1", "decisions.folds=0"]
MOMENTS = random.Random(15)  # when something is killed
SECONDS = 45.0  # in which a busy machine tells whatever has happened; Ray alone takes a minute


def words(stage: str, config: Path, changes: list[str]) -> list[str]:
    return [stage, str(config), *(word for change in changes for word in ("--set", change))]


def checkpoints(outputs: Path) -> list[str]:
    return sorted(found.parent.name for found in outputs.glob("small/training/*/checkpoint_*/checkpoint.json"))


def wait_for_epochs(running_one: RayCommand, outputs: Path) -> None:
    """Wait until it trains, and then for a while."""
    before = checkpoints(outputs)
    running_one.wait(lambda: checkpoints(outputs)[-1:] > before[-1:])
    time.sleep(MOMENTS.uniform(0, 0.5))


def told(running_one: RayCommand) -> tuple[int, str]:
    """Status and the one line that a command ends with, soon."""
    begun = time.monotonic()
    status, err = running_one.ended()
    assert time.monotonic() - begun < SECONDS, err
    assert "Traceback" not in err
    assert running_one.leftovers() == []
    return status, err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_session")
def test_a_training_survives_the_loss_of_everything_that_it_runs_on(
    small_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker, the command, all processes, GCS and raylet are ended, one after the other: as if undisturbed."""
    undisturbed = train_stage(load(small_config, [f"train.epochs={EPOCHS}", "decisions.folds=0", "name=undisturbed"]))
    outputs = tmp_path / "outputs"
    training = words("train", small_config, TRAINING)

    with running(training) as first:
        wait_for_epochs(first, outputs)
        first.find("RayTrainWorker").kill()  # another one takes its place
        wait_for_epochs(first, outputs)
        os.killpg(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert first.leftovers() == []

    for everyone in (False, True):  # SIGTERM for the group; as a workload manager sends it: for every process
        with running(training) as stopped:
            wait_for_epochs(stopped, outputs)
            for process in stopped.tree() if everyone else []:
                process.send_signal(signal.SIGTERM)
            os.killpg(stopped.process.pid, signal.SIGTERM)
            status, line = told(stopped)
            assert status == 130
            assert line.startswith("cprfl: stopped after epoch ")
        (run,) = runs(load(small_config))
        assert run.info.status == "KILLED"

    for victim in ("gcs_server", "raylet/raylet"):
        with running(training) as disturbed:
            wait_for_epochs(disturbed, outputs)
            disturbed.find(victim).kill()
            status, line = told(disturbed)
            assert status == 2
            assert line.startswith("cprfl: Ray on this machine is lost: ")
            assert f"{victim.split('/')[0]} was ended by SIGKILL; the same command goes on" in line

    status, _, err = call(monkeypatch, capsys, *training)  # on the suite's Ray
    assert status == 0, err
    assert "going on with the interrupted training" in err
    found = outputs / "small" / "checkpoint"
    assert load_info(found).metrics == load_info(undisturbed).metrics
    assert (found / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()
    (run,) = runs(load(small_config))
    assert run.info.status == "FINISHED"
    assert set(steps(run.info.run_id)) == set(range(1, EPOCHS + 1))


@pytest.mark.parametrize("damage", ["empty", "cut", "names a checkpoint that is damaged", "names one that is gone"])
def test_notes_of_ray_that_a_kill_has_damaged_are_written_anew(small_config: Path, tmp_path: Path, damage: str) -> None:
    """From whole checkpoints: the one with the highest score, and the latest."""
    experiment = load(small_config, ["train.validation=0.25", "train.select=best", "resources.num_workers=0"])
    prepared, folder = preprocess(experiment), tmp_path / "training"
    scores = []

    def save(epoch: Epoch) -> None:
        scores.append(epoch.metrics["val/mAP"])
        epoch.save(folder / f"checkpoint_{epoch.number}")

    run_training(experiment, prepared, Worker(torch.device("cpu"), 0, 1), save)
    snapshot = folder / "checkpoint_manager_snapshot.json"
    mend_snapshot(experiment, folder)
    assert not snapshot.exists()  # Ray has begun nothing
    snapshot.write_text("")
    mend_snapshot(experiment, folder)
    whole = snapshot.read_bytes()
    mend_snapshot(experiment, folder)
    assert snapshot.read_bytes() == whole
    last = 4
    if damage == "empty":
        snapshot.write_text("")
    elif damage == "cut":
        snapshot.write_bytes(whole[: len(whole) // 2])
    elif damage == "names one that is gone":
        shutil.rmtree(folder / "checkpoint_4")
        last = 3
    else:
        weights = bytearray((folder / "checkpoint_4" / "model.safetensors").read_bytes())
        weights[-9] ^= 1
        (folder / "checkpoint_4" / "model.safetensors").write_bytes(weights)
        last = 3
    mend_snapshot(experiment, folder)
    notes = json.loads(snapshot.read_text())
    assert notes["latest_checkpoint_result"]["checkpoint_dir_name"] == f"checkpoint_{last}"
    assert notes["current_report_index"] == last
    best = notes["checkpoint_results"][-1]
    assert best["metrics"]["checkpoint_score"] == max(scores[:last])
    assert best["checkpoint_dir_name"] == f"checkpoint_{best['metrics']['epoch']}"


def shards(root: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes of each shard of the only store, and when it was written."""
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in root.glob("*/features-*.parquet")}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_extraction_survives_the_loss_of_everything_that_it_runs_on(small_config: Path, tmp_path: Path) -> None:
    """The command, GCS, raylet and actor are killed, one after the other: each time the missing shards are made."""
    here, root = tmp_path / "here", tmp_path / "features"
    preprocess(load(small_config, ["encoder.views=64", f"feature_dir={here}"]))
    encoding = words("preprocess", small_config, [f"feature_dir={root}", "encoder.num_workers=1", "encoder.views=64"])

    with running(encoding) as first:
        first.wait(lambda: len(shards(root)) >= 2)
        os.killpg(first.process.pid, signal.SIGKILL)
        first.process.wait()
        assert first.leftovers() == []
    made = shards(root)

    for victim in ("gcs_server", "raylet/raylet"):
        with running(encoding) as disturbed:
            disturbed.find("MapWorker")
            time.sleep(MOMENTS.uniform(0, 2))
            disturbed.find(victim).kill()
            status, line = told(disturbed)
            assert status == 2
            assert line.startswith("cprfl: Ray on this machine is lost: ")

    with running(encoding) as last:
        there = shards(root)
        assert 2 <= len(there) < 12
        last.wait(lambda: len(shards(root)) > len(there))
        last.find("MapWorker").kill()  # as Ray does where memory is short
        status, err = last.ended()
        assert status == 0, err
        assert last.leftovers() == []
    found = shards(root)
    assert found | made | there == found  # nothing is made twice
    assert {name: kept for name, (kept, _) in found.items()} == {name: kept for name, (kept, _) in shards(here).items()}
    (folder,) = root.iterdir()
    store = FeatureStore.open(str(folder))
    store.verify()
    assert (store.num_images, store.views) == (24, 64)


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and says nothing; Ray asks at the machine's own address."""
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def refused(config: Path, *before: str, **environment: str) -> str:
    """The last line of a command that cannot reach its Ray; that it ends in time is all that is asked of its speed."""
    process = subprocess.run(
        [*before, *command(*words("train", config, TRAINING))], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_an_address_that_does_not_answer_is_told(small_config: Path, silent: str) -> None:
    line = refused(small_config, RAY_ADDRESS=silent, CPRFL_RAY_WITHOUT_TOKEN="1")
    assert "no Ray cluster answers there within 10 s" in line
    assert "unset RAY_ADDRESS" in line


def test_what_answers_and_is_no_ray_cluster_is_told() -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ClusterError, match="what answers there is no Ray cluster"):
        check_answers(f"127.0.0.1:{port}")
    server.stop(None)


def test_an_address_that_is_none_is_told(small_config: Path) -> None:
    assert "expected host:port" in refused(small_config, RAY_ADDRESS="somewhere")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RAY_TMPDIR": "/sys"}, "Ray's files have no room"),  # neither for root
        ({"RAY_TMPDIR": "/nowhere/at/all"}, "Ray has no place for its files"),
        ({"RAY_TMPDIR": "/tmp/" + "long" * 20}, "characters of Ray's sockets"),
    ],
)
def test_a_place_where_ray_cannot_work_is_told_before_it_starts(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ClusterError, match=said) as raised:
        LocalRay(dashboard=False, on_loss=print)
    assert "set RAY_TMPDIR to" in str(raised.value)


def test_a_full_disk_is_told_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(ClusterError, match="has 1 MB free"):
        LocalRay(dashboard=False, on_loss=print)


def test_a_long_path_of_temporary_files_is_no_obstacle_and_abandoned_sessions_are_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder, lock = local._new_folder()
    try:
        assert folder.parent == Path("/tmp")
        assert folder.stat().st_mode & 0o777 == 0o700
        other, second = local._new_folder()
        assert folder.exists()  # its session stands
        os.close(second)
        third, last = local._new_folder()
        assert not other.exists()
        os.close(last)
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(third, ignore_errors=True)
