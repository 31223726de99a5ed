"""What a user or the keeper of a machine can mend, met by a worker of Ray: told once, at once, and gone on from."""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
from pathlib import Path

import psutil
import pytest

from cprfl.errors import ConfigError, MachineError, UserError
from cprfl.experiment import load
from pipelines.cluster.mistakes import NoOtherTry, mistakes_raised
from pipelines.cluster.tasks import run_tasks
from pipelines.stages.train import train_stage
from tests.helpers import command_line, runs, wait_for

EPOCHS = 40


def test_a_worker_names_the_machine_whose_fault_it_is() -> None:
    with pytest.raises(MachineError) as raised, mistakes_raised():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/x")
    assert str(raised.value).startswith(f"on {socket.gethostname()}: /data/x: No space left on device; make room")
    for ours in (ConfigError("theirs"), KeyError("a bug"), RuntimeError("another")):
        with pytest.raises(type(ours)) as passed, mistakes_raised():
            raise ours
        assert passed.value is ours


def test_only_what_can_be_mended_ends_a_training_without_another_try() -> None:
    lost = RuntimeError("Connection closed by peer")
    NoOtherTry().after_exception(None, {0: lost})
    with pytest.raises(UserError, match="full"):
        NoOtherTry().after_exception(None, {0: lost, 1: MachineError("full")})


@pytest.mark.usefixtures("ray_session")
def test_a_task_tells_of_its_machine_s_fault(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone")
    found = dict(run_tasks(os.listdir, [missing, str(tmp_path)], tmp_path, gpu=False))
    assert isinstance(found[0], MachineError)
    assert f"{missing}: No such file" in str(found[0])
    assert found[1] == []


def limit_files_of_worker(bytes_allowed: int, outputs: Path) -> None:
    """Let the worker that trains, once it does, write no longer files than these."""
    wait_for(lambda: list(outputs.glob("small/training/*/checkpoint_*/checkpoint.json")))
    for process in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in command_line(process):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (bytes_allowed, bytes_allowed))


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_machine_s_fault_in_a_training_ends_it_at_once_and_it_goes_on(small_config: Path, tmp_path: Path) -> None:
    """The limit is that of one process: were the training tried once more, it would succeed."""
    same = [f"train.epochs={EPOCHS}", "decisions.folds=0"]
    undisturbed = train_stage(load(small_config, [*same, "name=undisturbed"]))
    experiment = load(small_config, [*same, "resources.num_workers=1"])
    limiting = threading.Thread(target=limit_files_of_worker, args=(4096, tmp_path / "outputs"))
    limiting.start()
    with pytest.raises(MachineError, match=r"File too large; .*ulimit -f"):
        train_stage(experiment)
    limiting.join()
    (run,) = runs(experiment)
    assert run.info.status == "FAILED"
    checkpoint = train_stage(experiment)
    model = "model.safetensors"
    assert (checkpoint / model).read_bytes() == (undisturbed / model).read_bytes()
    (run,) = runs(experiment)
    assert run.info.status == "FINISHED"
