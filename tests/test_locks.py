"""Who may work where: one command an experiment, nobody prunes what is filled or read, clocks decide nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from cprfl.data import locks
from cprfl.data.feature_store import FeatureStore
from cprfl.data.feature_store.filling import StoreInProgress, StoreKey
from cprfl.data.files import write_record
from cprfl.data.locks import exclusive, lock_shared, try_lock
from cprfl.data.temporary import remove_abandoned, temporary_folder
from cprfl.errors import FeatureStoreError, UserError
from cprfl.experiment import load
from cprfl.preparation import prepare
from pipelines.lock import alone
from pipelines.retraining.retrain import retrain
from pipelines.stages import run as stages
from pipelines.stages.features import Pruned, cached, prune, verify
from pipelines.stages.run import evaluate_stage
from pipelines.stages.train import train_stage
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import open_store
from tests.helpers import call, command, runs, wait_for


@contextmanager
def other_process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs code, says that it is there, and is killed after the block."""
    script = f"{code}\nprint('there', flush=True)\nimport time\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process
    finally:
        process.kill()
        process.communicate()


HOLDING = "import sys\nfrom pathlib import Path\nfrom cprfl.data.locks import exclusive\n" + (
    "held = exclusive(Path(sys.argv[1]), 'retrain')\nheld.__enter__()"
)


def test_the_second_waits_says_for_whom_and_goes_on_when_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.lock"
    entered = threading.Event()

    def wait() -> None:
        with exclusive(file, "run"):
            entered.set()

    with other_process(HOLDING, str(file)) as process:
        waiting = threading.Thread(target=wait)
        waiting.start()
        said = ""

        def heard() -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return "waiting" in said

        wait_for(heard)
        assert not entered.is_set()
        assert f"mine: waiting for another command (retrain, process {process.pid} on " in said
    waiting.join(60)
    assert entered.is_set()


def test_a_thread_that_holds_a_lock_goes_on_and_another_one_waits(tmp_path: Path) -> None:
    file = tmp_path / "mine.lock"
    with exclusive(file, "run") as outer, exclusive(file, "train") as inner:
        assert (outer, inner) == (True, False)
        assert try_lock(file) is None  # for whoever is not this thread
    lock = try_lock(file)
    assert lock is not None
    lock.release()


def test_a_lock_whose_file_was_removed_is_no_lock_of_who_comes_later(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = try_lock(file)
    assert first is not None
    file.unlink()
    second = try_lock(file)
    assert second is not None
    assert file.exists()


def test_storage_without_locks_is_said_and_stops_nobody(
    small_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with alone(load(small_config), "run"):
        assert "this storage knows no locks" in capsys.readouterr().err
    assert lock_shared(small_config.parent / "lock") is None


@pytest.mark.slow
def test_two_identical_runs_at_once_make_one_model(small_config: Path) -> None:
    both = [
        subprocess.Popen(command("run", str(small_config)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("waiting for another command (run, process" in err for _, err in outputs) == 1
    assert sum("registered as version 1, trained with these settings" in err for _, err in outputs) == 1
    experiment = load(small_config)
    assert [run.info.status for run in runs(experiment)] == ["FINISHED"]
    assert len(mlflow.MlflowClient().search_model_versions("name = 'small'")) == 1


def test_a_run_beside_a_retraining_waits_for_it(small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load(small_config)
    stages.run(experiment)
    other = load(small_config, ["train.epochs=2"])
    retraining = threading.Thread(target=retrain, args=(other,))
    with alone(experiment, "a run that somebody began"):
        retraining.start()
        wait_for(lambda: "waiting for another command (a run that somebody began" in capsys.readouterr().err)
        assert len(runs(experiment)) == 1
    retraining.join()
    assert [run.info.status for run in runs(experiment)] == ["FINISHED"] * 2


def pruned(outputs: Path, *keys: str) -> Pruned:
    return prune(cached(str(outputs / "cache" / "features"), outputs), keys, unused=True)


READING = (
    "import sys\nfrom cprfl.data.feature_store import FeatureStore\n"
    "part = FeatureStore.open(sys.argv[1]).subset(['nothing'][:0])"
)
FILLING = (
    "import sys\nfrom cprfl.data.feature_store.filling import StoreInProgress, StoreKey\n"
    "target = StoreInProgress(sys.argv[1], StoreKey((('i', '/i.jpg', (1, 1)),), 'encoder', 1), {})\n"
    "assert target.missing() == [0]"
)


def test_a_store_that_is_read_or_filled_is_not_pruned_and_one_that_nobody_uses_is(own_config: Path) -> None:
    outputs = own_config.parent / "outputs"
    prepared = prepare(load(own_config))
    assert prepared.store is not None
    folder = prepared.store.folder.uri
    write_record(outputs / "small" / "prepared.json", {"features": None})  # it was prepared anew, with other features
    kept = Pruned([], [f"{folder}: another process fills or reads it now"])
    assert pruned(outputs) == kept  # by this one
    del prepared
    with other_process(READING, folder):
        assert pruned(outputs) == kept
    with other_process(FILLING, str(Path(folder).parent)):
        result = pruned(outputs)
    assert result.removed == [folder]
    ((filling, reason),) = [line.split(": ") for line in result.kept]
    assert reason == "another process fills or reads it now"
    assert Path(filling).is_dir()


def test_what_is_not_finished_or_may_be_used_goes_only_where_it_is_named(own_config: Path) -> None:
    outputs = own_config.parent / "outputs"
    store = prepare(load(own_config)).store
    assert store is not None
    folder = Path(store.folder.uri)
    del store
    record = outputs / "small" / "prepared.json"
    whole = record.read_bytes()
    for damaged in (None, b"{}", b"\xff", whole[:-9], whole.replace(b"features", b"feathers")):
        record.unlink(missing_ok=True)
        if damaged is not None:
            record.write_bytes(damaged)
        assert not pruned(outputs).removed
        (reason,) = pruned(outputs).kept
        assert str(record) in reason
        assert "name its key to remove it nevertheless" in reason
        (known,) = cached(str(folder.parent), outputs).unknown
        assert "`cprfl preprocess CONFIG` writes it anew" in known
    record.write_bytes(whole)
    assert pruned(outputs) == Pruned([], [])
    write_record(record, {"features": None})
    (folder / "store.json").unlink()  # as a killed extraction leaves it
    (reason,) = pruned(outputs).kept
    assert "not finished" in reason
    assert pruned(outputs, folder.name).removed == [str(folder)]
    assert not folder.exists()


def test_a_reader_of_a_store_that_vanishes_ends_with_an_error(own_config: Path) -> None:
    store = prepare(load(own_config)).store
    assert store is not None
    batches = store.iter_batches(4)
    for shard in Path(store.folder.uri).glob("*.parquet"):  # by a program that asks nobody
        shard.unlink()
    with pytest.raises(FeatureStoreError, match=r"shard missing; .*cprfl preprocess CONFIG"):
        list(batches)
    with pytest.raises(FeatureStoreError, match="shard missing"):
        FeatureStore.open(store.folder.uri)


def test_whoever_fills_a_store_removes_what_a_killed_one_was_writing(tmp_path: Path) -> None:
    key = StoreKey((("i", "/i.jpg", (1, 1)),), "encoder", 1)
    folder = tmp_path / key.fingerprint
    folder.mkdir()
    (folder / f".features-000000.parquet.{'a' * 32}").write_bytes(b"half")
    with other_process(FILLING, str(tmp_path)):
        assert [path.name for path in folder.iterdir()] == [".lock"]
        (folder / f".features-000000.parquet.{'b' * 32}").write_bytes(b"half")  # by the other one
        assert StoreInProgress(str(tmp_path), key, {}).missing() == [0]
        assert len(list(folder.iterdir())) == 2
    assert StoreInProgress(str(tmp_path), key, {}).missing() == [0]
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize("root", ["s3", "local"], indirect=True)
def test_a_place_without_stores_is_not_sound(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = root.replace("bucket-", "nobody-has-this-bucket-")
    said = "no such bucket" if nowhere.startswith("s3") else "no feature store here"
    with pytest.raises(UserError, match=said):
        verify(cached(nowhere, tmp_path))
    status, out, err = call(monkeypatch, capsys, "features", "verify", "--features", nowhere)
    assert (status, out) == (2, "")
    assert said in err


def test_temporary_folders_of_killed_processes_are_removed_and_others_stay() -> None:
    code = (
        "from cprfl.data.temporary import temporary_folder\nheld = temporary_folder()\n"
        "folder = held.__enter__()\n(folder / 'big').write_text('x')\nprint(folder)"
    )
    script = f"{code}\nimport sys, time\nsys.stdout.flush()\ntime.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    with temporary_folder() as mine:
        remove_abandoned()
        assert (folder / "big").exists()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        remove_abandoned()
        assert not folder.parent.exists()
        assert mine.exists()
    assert not mine.parent.exists()


def test_what_a_killed_command_was_writing_is_removed_by_the_next(small_config: Path) -> None:
    experiment = load(small_config)
    hexadecimal = "0123456789abcdef" * 2
    left = [
        experiment.folder / f".report.html.{hexadecimal}",
        experiment.folder / "challenger" / f".checkpoint.{hexadecimal}" / "model.safetensors",
        experiment.folder / "training" / "key" / f".{hexadecimal}" / "resume.pt",
        experiment.cache_dir / "text" / f".key.safetensors.{hexadecimal}",
    ]
    own = [experiment.folder / ".notes", experiment.folder / hexadecimal]
    with alone(load(small_config, ["name=another"]), "run"):
        for path in (*left, *own):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("half")
        with alone(experiment, "run"):  # the other one may be writing into the cache
            assert [path.exists() for path in left] == [False, False, False, True]
    with alone(experiment, "run"):
        assert not any(path.exists() for path in left)
    assert all(path.exists() for path in own)


def test_a_start_that_fails_leaves_the_former_model_usable(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load(small_config)
    stages.run(experiment)
    before = {path: path.read_bytes() for path in experiment.folder.glob("*.json")}

    def refuse(*_: object) -> None:
        raise FeatureStoreError("no cluster")

    with monkeypatch.context() as patched:
        patched.setattr("cprfl.recipe.train_in", refuse)
        with pytest.raises(FeatureStoreError, match="no cluster"):
            train_stage(load(small_config, ["train.epochs=2"]))
    assert {path: path.read_bytes() for path in experiment.folder.glob("*.json")} == before
    assert evaluate_stage(experiment).metrics["mAP"] > 0


def test_clocks_that_are_set_close_no_run_and_change_no_result(
    small_config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load(small_config)
    now, jumps = time.time, iter([0.0, -1e7, 3e7, -5e8] * 10_000)
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    with open_run(open_store(experiment.output_dir), experiment) as run:
        first = run.id
        # The kernel says when it was started by the clock as it is set now; a command that begins then looks for runs.
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: now() - 1e6)
        monkeypatch.setattr("psutil._pslinux.BOOT_TIME", now() - 1e6, raising=False)
        code = (
            "import sys\nfrom cprfl.experiment import load\nfrom pipelines.tracking.runs import close_orphans\n"
            "from pipelines.tracking.store import open_store\nexperiment = load(sys.argv[1])\n"
            "store = open_store(experiment.output_dir)\n"
            "import psutil._pslinux as linux\nlinux.boot_time = lambda: 12345.0\nlinux.BOOT_TIME = 12345.0\n"
            "close_orphans(store.experiment_id(experiment.name), experiment)"
        )
        subprocess.run([sys.executable, "-c", code, str(small_config)], check=True, timeout=120)
        assert mlflow.MlflowClient().get_run(first).info.status == "RUNNING"
    metrics = stages.run(experiment)["small"].metrics
    assert stages.run(experiment)["small"].metrics == metrics
    assert [run.info.status for run in runs(experiment)] == ["FINISHED"] * 2


def test_a_run_of_another_machine_is_closed_by_whoever_works_alone_on_its_experiment(small_config: Path) -> None:
    experiment = load(small_config)
    store = open_store(experiment.output_dir)
    client, made = mlflow.MlflowClient(), store.experiment_id(experiment.name)
    tags = {"cprfl.host": "another machine", "cprfl.process": f"{os.getpid()}@1"}
    here = client.create_run(made, tags={**tags, "cprfl.folder": str(experiment.folder.parent / "small")})
    elsewhere = client.create_run(made, tags={**tags, "cprfl.folder": "/another/place"})
    part = client.create_run(made, tags={"mlflow.parentRunId": here.info.run_id})

    def statuses() -> list[str]:
        return [client.get_run(run.info.run_id).info.status for run in (here, elsewhere, part)]

    with open_run(store, experiment):
        assert statuses() == ["RUNNING"] * 3  # somebody may work there
    with alone(experiment, "run"), open_run(store, experiment):
        assert statuses() == ["FAILED", "RUNNING", "FAILED"]
