"""What every method has to show on images of the embedded set: it learns them, and two workers learn what one does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from cprfl.assembly import facts_of, features_of, objective_of, source_of, text_tower_of
from cprfl.data.manifest import TRAIN
from cprfl.evaluation.metrics import average_precision
from cprfl.experiment import Experiment
from cprfl.preparation import Prepared, prepare, read_prepared
from cprfl.recipe import train
from cprfl.training.loop import EpochEnd, Worker, fit, score

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("embedded")]  # one process trains the embedded encoder

SMALL = {"dim": 64, "num_heads": 2, "head_dim": 32, "mlp_dim": 64, "dropout": 0.0}
MOVING = {
    "backbone": "finetune", "epochs": 100, "batch_size": 8, "lr": 8e-3,
    "finetune": {"augmentation": {"cutout": 0.0, "randaugment": False}, "num_processes": 0, "batch_norm": "frozen"},
}  # fmt: skip
ALIGNMENT = {
    "model": {"name": "hp_dval", "stage": "alignment", "top_k": 3},
    "train": {**MOVING, "distill": 0.01, "lr": 5e-3},
}
# A few learned tokens and a small text tower cannot tell any 32 images apart: with the tower of the images they can.
METHODS: dict[str, dict[str, Any]] = {
    "cprfl": {"model": {"name": "cprfl", **SMALL}},
    "hp_dval, alignment": ALIGNMENT,
    "hp_dval": {"model": {"name": "hp_dval", "top_k": 3}, "train": {"epochs": 30}, "first": ALIGNMENT},
    "capnet": {
        "model": {"name": "capnet", "hidden": 64, "logits": "learned"},
        "train": {**MOVING, "epochs": 140},
    },
    "lmpt": {
        "model": {"name": "lmpt", "num_context": 4, "logits": "learned", "criterion_share": 0.99},
        "train": MOVING,
    },
    "coop": {"model": {"name": "coop", "class_specific": True}, "train": MOVING},
    "ml_gcn": {"model": {"name": "ml_gcn"}, "train": {"lr": 3e-3}},
    "query2label": {"model": {"name": "query2label", "dim": 64, "mlp_dim": 64, "dropout": 0.0}},
    "csra": {"model": {"name": "csra", "lam": 1.0, "num_heads": 4}, "train": {"epochs": 300, "lr": 0.05}},
    "linear_probe": {"model": {"name": "linear_probe"}, "train": {"lr": 0.05}},
    "logistic_regression": {"model": {"name": "logistic_regression", "strengths": [1e3]}},
    "gaussian_discriminant": {"model": {"name": "gaussian_discriminant", "shrinkages": [1e-3]}},
    "ensemble": {"model": {"name": "ensemble", "members": [{"name": "cprfl", **SMALL}, {"name": "linear_probe"}]}},
}
BY_GRADIENTS = [name for name in METHODS if "logistic" not in name and "discriminant" not in name]


def experiment_of(name: str, folder: Path, cache: Path, **train: object) -> Experiment:
    """A training on scenes of the embedded set, with the embedded encoder's cells in the joint space."""
    own = METHODS[name]
    clip = {"name": "open_clip", "model": "cprfl-embedded", "pretrained": "embedded"}
    settings = {"epochs": 400, "lr": 3e-3, "weight_decay": 0.0, "ema_decay": 0.9, **own.get("train", {}), **train}
    values = {
        "name": name.replace(", ", "-"), "output_dir": str(folder), "feature_dir": str(cache / "features"),
        "dataset": {"name": "synthetic", "pool": 32, "num_test": 8, "long_tail": None},
        "encoder": {**clip, "project": True}, "text_encoder": clip, "model": own["model"],
        "loss": {"name": "bce"}, "train": settings,
    }  # fmt: skip
    if "first" in own and not train:
        values["first"] = own["first"]
    return Experiment.model_validate(values)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are faster with one thread, and the suite's other process has the other core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the embedded encoder is trained once, for half a minute."""
    return tmp_path_factory.mktemp("embedded")


def prepared_of(experiment: Experiment, cache: Path) -> Prepared:
    encoders = experiment.cache_dir / "encoders"
    if not encoders.exists():
        encoders.parent.mkdir(parents=True, exist_ok=True)
        (cache / "encoders").mkdir(exist_ok=True)
        encoders.symlink_to(cache / "encoders")
    if (before := experiment.first_experiment) is not None:
        train(before, prepare(before))
    return prepare(experiment)


@pytest.mark.parametrize("name", METHODS)
def test_it_overfits_thirty_two_images(name: str, cache: Path, tmp_path: Path) -> None:
    experiment = experiment_of(name, tmp_path, cache)
    prepared = prepared_of(experiment, cache)
    images = prepared.manifest.split(TRAIN)
    assert len(images) == 32
    scores = scores_after(experiment, prepared, Worker(torch.device("cpu"))).numpy()
    assert 100 * np.nanmean(average_precision(scores, images.targets())) > 99


def test_two_workers_learn_what_one_does(cache: Path, tmp_path: Path) -> None:
    """With all images in one batch the mean of the workers' gradients is the gradient."""
    jobs, alone = [], {}
    for name in BY_GRADIENTS:
        experiment = experiment_of(name, tmp_path, cache, epochs=3, batch_size=32)
        prepared = prepared_of(experiment, cache)
        alone[name] = scores_after(experiment, prepared, Worker(torch.device("cpu")))
        jobs.append((name, experiment.model_dump(mode="json"), prepared.record))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_one_of_two, args=(jobs, port, str(tmp_path)), nprocs=2)
    for name, expected in alone.items():
        together = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert torch.allclose(together, expected, atol=2e-3 * float(expected.abs().max())), name


def _one_of_two(rank: int, jobs: list[tuple[str, dict[str, Any], dict[str, Any]]], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name, values, record in jobs:
        experiment = Experiment.model_validate(values)
        scores = scores_after(experiment, read_prepared(experiment, record), Worker(torch.device("cpu"), rank, 2))
        if rank == 0:
            torch.save(scores, Path(folder) / f"{name}.pt")
    dist.destroy_process_group()


def scores_after(experiment: Experiment, prepared: Prepared, worker: Worker) -> Tensor:
    """Logits of the training images after training, as the recipe does it."""
    torch.manual_seed(0)
    images, ends = prepared.manifest.split(TRAIN), list[EpochEnd]()
    facts = facts_of(experiment, prepared, images)
    objective = objective_of(experiment, prepared, facts, text_tower_of(experiment))
    source = source_of(experiment, prepared, images, objective, training=True)
    if prepared.store is not None:
        objective.method.fit(features_of(source))
    if experiment.model.by_gradients:
        fit(objective, source, experiment.train, seed=0, worker=worker, on_epoch_end=ends.append)
        objective.load_kept_state(ends[-1].weights)
        objective.method.bake()
    watched = source_of(experiment, prepared, images, objective, training=False)
    return score(objective, watched, images.image_ids, 32, worker)
