"""The training of `cprfl.recipe` on one or many Ray Train workers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayActorError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
    ControllerError,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.config import LoggingConfig

from cprfl.environment import mendable
from cprfl.errors import ClusterError
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import Experiment
from cprfl.inference.deciding import decide
from cprfl.preparation import CHECKPOINT, Prepared, read_prepared
from cprfl.recipe import Epoch, checkpoint_score, keep_checkpoint, resumable_folder, run_training
from cprfl.training.checkpoint import load_info
from cprfl.training.loop import Worker
from pipelines.cluster.connection import connect, failing_with_ray
from pipelines.cluster.meeting import torch_config
from pipelines.cluster.mistakes import NoOtherTry, mistakes_raised
from pipelines.cluster.resources import scaling
from pipelines.cluster.shared import check_shared
from pipelines.cluster.snapshot import SCORE, mend_snapshot
from pipelines.cluster.tasks import has_gpus, run_tasks
from pipelines.tracking.sink import MetricsSink


@dataclass(frozen=True)
class _Task:
    """What each worker gets, as JSON-like values: Ray would pickle anything else."""

    experiment: dict[str, Any]
    prepared: dict[str, Any]
    sink: dict[str, str] | None
    start: str | None


def train(experiment: Experiment, prepared: Prepared, sink: MetricsSink) -> Path:
    """Train on Ray, going on with an interrupted training of the same experiment and data.

    Args:
        experiment: what to train.
        prepared: its data.
        sink: where each epoch's metrics go.

    Returns:
        The folder of the checkpoint to evaluate.

    Raises:
        UserError: what a worker raised that the user can mend.
    """
    connect()
    check_shared(experiment.folder)
    folder = resumable_folder(experiment, prepared)
    trainer = torch_trainer(
        experiment, prepared, sink, scaling(experiment.resources), str(folder.parent), folder.name
    )  # fmt: skip
    result = fit_trainer(trainer, folder)
    best = max(result.best_checkpoints, key=lambda pair: pair[1][SCORE])[0]
    return keep_checkpoint(Path(best.path), experiment.folder / CHECKPOINT)


def decide_on_ray(experiment: Experiment, prepared: Prepared, checkpoint: Path) -> Decisions:
    """What `cprfl.inference.deciding.decide` does, in a task of its own: this machine may lack the GPU.

    Raises:
        UserError: what the task raised that the user can mend.
    """
    task = {
        "experiment": experiment.model_dump(mode="json"),
        "prepared": prepared.record,
        "checkpoint": str(checkpoint),
    }
    gpu = experiment.resources.gpu != "never" and has_gpus()
    ((_, failure),) = run_tasks(_decide, [task], checkpoint.parent, gpu)
    if failure is not None:
        raise failure
    return Decisions.read(checkpoint, prepared.manifest.class_names)


def _decide(task: dict[str, Any]) -> None:
    experiment = Experiment.model_validate(task["experiment"])
    decide(experiment, read_prepared(experiment, task["prepared"]), Path(task["checkpoint"]))


def fit_trainer(trainer: TorchTrainer, folder: Path) -> Result:
    """Train; what a worker raised that the user can mend is raised here.

    Args:
        trainer: of `torch_trainer`.
        folder: of this training in its storage.

    Raises:
        UserError: what the user can mend.
        ClusterError: where workers or nodes died too often, or none came in their place.
    """
    try:
        with failing_with_ray():
            return trainer.fit()
    except WorkerGroupError as error:
        died = [failure for failure in error.worker_failures.values() if isinstance(failure, RayActorError)]
        if not died:
            raise
        raise ClusterError(
            "workers died more often than resources.max_failures allows (the last: "
            f"{_first_line(died[0])}); the same command goes on from the last checkpoint in {folder}"
        ) from None
    except ControllerError as error:
        if (mistake := mendable(error.controller_failure)) is not None:
            raise mistake from None
        raise ClusterError(
            f"no other worker came in place of one that died ({_first_line(error.controller_failure)}); with enough "
            f"nodes, the same command goes on from the last checkpoint in {folder}"
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def torch_trainer(
    experiment: Experiment,
    prepared: Prepared,
    sink: MetricsSink | None,
    scaled: ScalingConfig,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    start: str | None = None,
) -> TorchTrainer:
    """Ray's trainer of one experiment.

    It goes on with what is under ``storage`` and ``name``, or from the checkpoint ``start``.
    """
    mend_snapshot(experiment, Path(storage) / name)
    sent = asdict(sink) if sink else None
    task = _Task(experiment.model_dump(mode="json"), prepared.record, sent, start)
    return TorchTrainer(
        _train_worker,
        train_loop_config=asdict(task),
        torch_config=torch_config(scaled.use_gpu),
        scaling_config=scaled,
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=experiment.resources.max_failures, controller_failure_limit=1),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=SCORE),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=[NoOtherTry(), *callbacks],
        ),
    )


def _train_worker(task: dict[str, Any]) -> None:
    with mistakes_raised():
        _fit_worker(task)


def _fit_worker(task: dict[str, Any]) -> None:
    """The recipe, with Ray's checkpoints and reports."""
    experiment = Experiment.model_validate(task["experiment"])
    prepared = read_prepared(experiment, task["prepared"])
    context = ray.train.get_context()
    worker = Worker(get_device(), context.get_world_rank(), context.get_world_size())

    def report(epoch: Epoch) -> None:
        metrics = {SCORE: checkpoint_score(experiment, epoch.metrics, epoch.number)}
        if epoch.rank > 0:
            ray.train.report(metrics)
            return
        if task["sink"] is not None:
            MetricsSink(**task["sink"]).log(epoch.metrics, epoch.number)
        with tempfile.TemporaryDirectory() as folder:
            epoch.save(Path(folder))
            metrics |= {"epoch": epoch.number, **epoch.metrics}
            ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))

    checkpoint = ray.train.get_checkpoint() or (task["start"] and Checkpoint(task["start"]))
    if not checkpoint:
        run_training(experiment, prepared, worker, report)
        return
    with checkpoint.as_directory() as folder:
        earlier = load_info(Path(folder))
        if earlier.epoch == experiment.epochs:  # killed before anybody heard of the last epoch
            ray.train.report({"epoch": earlier.epoch, **earlier.metrics})
        run_training(experiment, prepared, worker, report, resume=Path(folder))
