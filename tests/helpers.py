"""What several test modules use: configurations, calls of the command line, waiting for other processes."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import torch
import yaml

from cprfl.data.manifest import Manifest
from cprfl.experiment import Experiment
from cprfl.models.base import Facts
from pipelines.cli.app import main
from pipelines.tracking.store import open_store

SPACE = {"loss.gamma_neg": {"uniform": [1.0, 5.0]}, "train.lr": {"log": [1e-4, 1e-2]}}


def write_config(path: Path, photos: Path, database: Path, **more: object) -> Path:
    """An experiment on the photos with a randomly initialised SqueezeNet, in this process: seconds to run."""
    values = {
        "name": "small",
        "data_root": str(photos),
        "output_dir": str(path.parent / "outputs"),
        "dataset": {
            "name": "csv",
            "splits": {"train": "train.csv", "test": "test.csv"},
            "groups": {"head": 10, "tail": 8},
        },
        "encoder": {"name": "torchvision", "model": "squeezenet1_1", "pretrained": "random", "image_size": 64},
        "text_encoder": {"name": "random", "dim": 16},
        "model": {"name": "cprfl", "standardize": True, "dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32},
        "train": {"epochs": 4, "batch_size": 8, "lr": 0.003, "ema_decay": 0.9},
        **more,
    }
    path.write_text(yaml.safe_dump(values))
    use_database(path.parent / "outputs", database)
    return path


def use_database(output_dir: Path, database: Path) -> None:
    """Put a new, migrated MLflow database under an output folder: its migrations take three to five seconds."""
    (output_dir / "mlflow").mkdir(parents=True)
    shutil.copy(database, output_dir / "mlflow" / "mlflow.db")


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    monkeypatch.setattr("sys.argv", ["cprfl", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def command(*words: str) -> list[str]:
    """A command of `cprfl` for a process of its own."""
    return [sys.executable, "-m", "pipelines.cli", *words]


def command_line(process: psutil.Process) -> str:
    """What a process was started with; nothing where it ended just now."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def runs(experiment: Experiment) -> list[Any]:
    """The MLflow runs of an experiment, the newest first, without those that hold metrics of classes."""
    experiment_id = open_store(experiment.output_dir).experiment_id(experiment.name)
    found = mlflow.MlflowClient().search_runs([experiment_id])
    return [run for run in found if run.data.tags.get("cprfl.kind") != "classes"]


def steps(run_id: str, metric: str = "train/loss") -> list[int]:
    """The epochs at which a run has a metric."""
    return sorted(found.step for found in mlflow.MlflowClient().get_metric_history(run_id, metric))


def sweep_file(path: Path, **values: object) -> Path:
    """A sweep of a few short trials."""
    path.write_text(yaml.safe_dump({"space": SPACE, "trials": 3, "grace_epochs": 1, "reduction_factor": 2} | values))
    return path


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports on the loopback interface that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def manifest_of(targets: np.ndarray) -> Manifest:
    """Training images with these targets."""
    n, c = targets.shape
    ids = tuple(map(str, range(n)))
    labels = tuple(tuple(np.flatnonzero(row).tolist()) for row in targets)
    return Manifest(tuple(f"class {i}" for i in range(c)), ids, ids, ("train",) * n, labels)


def facts_of(num_classes: int = 5, text_dim: int = 6, grid_dim: int = 8) -> Facts:
    """Facts with random text embeddings, which are the same for each call."""
    generator = torch.Generator().manual_seed(0)
    return Facts.of_text(torch.randn(num_classes, text_dim, generator=generator), grid_dim)
