"""Stage 2: the training loop of `cprfl.training` on one or many Ray Train workers."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cprfl import errors
from cprfl.data.files import fingerprint, write_json
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST
from cprfl.errors import ClusterError, UserError
from cprfl.evaluation import evaluate
from cprfl.experiment import Experiment
from cprfl.models.fine_tuned import FineTuned, split_weights
from cprfl.training.checkpoint import CheckpointInfo, load_info, load_state, save_checkpoint
from cprfl.training.loop import EpochEnd, Worker, fit, predict
from pipelines import cluster
from pipelines.metrics_sink import MetricsSink
from pipelines.preprocess import VALIDATION, Prepared
from pipelines.tracking import follow_epochs
from pipelines.training_setup import fine_tuned, frozen

if TYPE_CHECKING:
    from ray.train import Result, ScalingConfig
    from ray.train.torch import TorchTrainer

CHECKPOINT = "checkpoint"
_MISTAKE = "mistake.json"
_SCORE = "checkpoint_score"  # Ray keeps the checkpoint in which it is highest, and the latest to resume from


@dataclass(frozen=True)
class _Task:
    """What each worker gets, as JSON-like values: Ray would pickle anything else."""

    experiment: dict[str, Any]
    prepared: dict[str, str]
    sink: dict[str, str] | None
    folder: str
    start: str | None


def training_key(experiment: Experiment, prepared: Prepared) -> str:
    """Names one training: a run interrupted under this key is resumed, a changed one starts anew."""
    return fingerprint([experiment.training_fingerprint, prepared.data_fingerprint])


def unfinished(experiment: Experiment, key: str) -> Path | None:
    """The folder of an interrupted training of this key, if there is one."""
    folder = experiment.folder / "ray" / key
    return folder if folder.exists() else None


def train(experiment: Experiment, prepared: Prepared, sink: MetricsSink) -> Path:
    """Train, resuming an interrupted training of the same experiment and data.

    Args:
        experiment: what to train.
        prepared: where its data is.
        sink: where each epoch's metrics go.

    Returns:
        The folder of the checkpoint to evaluate.

    Raises:
        UserError: what a worker raised that the user can mend.
    """
    cluster.connect()
    key = training_key(experiment, prepared)
    if unfinished(experiment, key):
        print(f"{experiment.name}: going on with the interrupted training", file=sys.stderr)
    scaling, storage = cluster.scaling(experiment.resources), experiment.folder / "ray"
    cluster.check_shared(experiment.folder)
    trainer = torch_trainer(experiment, prepared, sink, scaling, str(storage), key)
    with follow_epochs(sink, experiment.train.epochs, f"training {experiment.name}"):
        result = fit_trainer(trainer, storage / key)
    best = max(result.best_checkpoints, key=lambda pair: pair[1][_SCORE])[0]
    return _keep(Path(best.path), experiment.folder / CHECKPOINT)


def forget(experiment: Experiment, key: str) -> None:
    """Remove what going on with this training needs, once its results are safe."""
    folder = experiment.folder / "ray"
    shutil.rmtree(folder / key, ignore_errors=True)
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()


def fit_trainer(trainer: TorchTrainer, folder: Path) -> Result:
    """Train; what a worker raised is raised here.

    Ray starts a group anew whatever ended it. A user's mistake would only come again, so the worker writes it down, and
    the group that is started anew ends at once.

    Args:
        trainer: of `torch_trainer`.
        folder: of this training in its storage.

    Raises:
        UserError: what the user can mend.
        ClusterError: where workers or nodes died too often, or none came in their place.
    """
    from ray.exceptions import RayActorError
    from ray.train import ControllerError, WorkerGroupError

    mistake = folder / _MISTAKE
    mistake.unlink(missing_ok=True)
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        died = [failure for failure in error.worker_failures.values() if isinstance(failure, RayActorError)]
        if not mistake.exists() and not died:
            raise
        if not mistake.exists():
            raise ClusterError(
                "workers died more often than resources.max_failures allows (the last: "
                f"{str(died[0]).strip().splitlines()[0]}); the same command goes on from the last checkpoint"
            ) from None
    except ControllerError as error:
        raise ClusterError(
            f"no other worker came in place of one that died ({str(error).strip().splitlines()[0]}); with enough "
            "nodes, the same command goes on from the last checkpoint"
        ) from None
    if mistake.exists():
        raised = json.loads(mistake.read_text())
        raise getattr(errors, raised["kind"])(raised["message"])
    return result


def torch_trainer(
    experiment: Experiment,
    prepared: Prepared,
    sink: MetricsSink | None,
    scaling: ScalingConfig,
    storage: str,
    name: str,
    callbacks: Sequence[Any] = (),
    start: str | None = None,
) -> TorchTrainer:
    """Ray's trainer of one experiment.

    It goes on with what is under ``storage`` and ``name``, or from the checkpoint ``start``.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig

    sent = asdict(sink) if sink else None
    task = _Task(experiment.model_dump(mode="json"), asdict(prepared), sent, f"{storage}/{name}", start)
    return TorchTrainer(
        _train_worker,
        train_loop_config=asdict(task),
        scaling_config=scaling,
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=FailureConfig(max_failures=experiment.resources.max_failures, controller_failure_limit=1),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=_SCORE),
            logging_config=LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    )


def _keep(source: Path, target: Path) -> Path:
    """Copy a checkpoint to its final place, without what only resuming needs."""
    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("resume.pt", ".*"))
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def _train_worker(task: dict[str, Any]) -> None:
    """One worker: train, unless the group before it met a user's mistake; write that down."""
    mistake = Path(task["folder"]) / _MISTAKE
    if mistake.exists():
        return
    try:
        _fit_worker(task)
    except UserError as error:
        write_json(mistake, {"kind": type(error).__name__, "message": str(error)})
        raise


def _fit_worker(task: dict[str, Any]) -> None:
    """Build the network and its data, fit, report every epoch."""
    import ray.train
    from ray.train.torch import get_device

    experiment = Experiment.model_validate(task["experiment"])
    prepared = Prepared(**task["prepared"])
    context = ray.train.get_context()
    worker = Worker(get_device(), context.get_world_rank(), context.get_world_size())
    manifest, text = prepared.read_manifest(), prepared.read_text_embeddings()
    counts = class_counts(manifest)
    torch.manual_seed(experiment.seed)
    setup = (frozen if prepared.features else fine_tuned)(experiment, prepared, manifest, text)
    selection = TEST if experiment.protocol == "published" else VALIDATION
    watched = manifest.split(selection)

    def validate(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        trained = {name: value.clone() for name, value in setup.network.state_dict().items()}
        setup.network.load_state_dict(weights)
        logits = predict(setup.network, setup.inputs(selection), worker.device)
        setup.network.load_state_dict(trained)
        result = evaluate(logits.numpy(), watched.targets(), manifest.class_names, counts, manifest.groups)
        return {f"{selection}/{name}": value for name, value in result.metrics.items() if not name.startswith("AP/")}

    def report(end: EpochEnd) -> None:
        selects = experiment.protocol == "published" or experiment.train.select == "best"
        score = end.metrics[f"{selection}/mAP"] if selects else float(end.epoch)
        if worker.rank > 0:
            ray.train.report({_SCORE: score})
            return
        if task["sink"] is not None:
            MetricsSink(**task["sink"]).log(end.metrics, end.epoch)
        info = CheckpointInfo(
            task["experiment"], list(manifest.class_names), setup.feature_dim,
            setup.encoder_fingerprint, text.encoder, end.epoch, end.metrics,
        )  # fmt: skip
        head, encoder = split_weights(end.weights) if isinstance(setup.network, FineTuned) else (end.weights, None)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), head, info, end.state, encoder)
            ray.train.report(
                {_SCORE: score, "epoch": end.epoch, **end.metrics},
                checkpoint=ray.train.Checkpoint.from_directory(folder),
            )

    resume = None
    checkpoint = ray.train.get_checkpoint() or (task["start"] and ray.train.Checkpoint(task["start"]))
    if checkpoint:
        with checkpoint.as_directory() as folder:
            earlier = load_info(Path(folder))
            resume = earlier.epoch, load_state(Path(folder))
        if earlier.epoch == experiment.train.epochs:  # killed before anybody heard of the last epoch
            ray.train.report({"epoch": earlier.epoch, **earlier.metrics})
    fit(
        setup.network, experiment.loss.build(counts, setup.source.num_images), setup.source, experiment.train,
        seed=experiment.seed, worker=worker, on_epoch_end=report, resume=resume,
        validate=validate if len(watched) else None,
    )  # fmt: skip
