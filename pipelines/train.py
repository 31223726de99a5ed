"""Stage 2: the training loop of `cprfl.training` on one or many Ray Train workers."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cprfl.data.files import fingerprint
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, TRAIN
from cprfl.errors import UserError
from cprfl.evaluation import evaluate
from cprfl.experiment import Experiment
from cprfl.models.base import ModelInputs, feature_statistics
from cprfl.training.checkpoint import CheckpointInfo, load_info, load_state, save_checkpoint
from cprfl.training.loop import EpochEnd, Worker, fit, predict
from cprfl.training.sources import CachedFeatures
from pipelines import cluster
from pipelines.preprocess import VALIDATION, Prepared
from pipelines.tracking import MetricsSink, follow_epochs

CHECKPOINT = "checkpoint"
_SCORE = "checkpoint_score"  # Ray keeps the checkpoint in which it is highest, and the latest to resume from


@dataclass(frozen=True)
class _Task:
    """What each worker gets, as JSON-like values: Ray would pickle anything else."""

    experiment: dict[str, Any]
    prepared: dict[str, str]
    sink: dict[str, str]


def training_key(experiment: Experiment, prepared: Prepared) -> str:
    """Names one training: a run interrupted under this key is resumed, a changed one starts anew."""
    data = [Path(prepared.features).name, prepared.read_manifest().digest, Path(prepared.text_embeddings).stem]
    return fingerprint([experiment.training_fingerprint, data])


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
    from ray.train import CheckpointConfig, RunConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.config import LoggingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    cluster.connect()
    key = training_key(experiment, prepared)
    if unfinished(experiment, key):
        print(f"{experiment.name}: going on with the interrupted training", file=sys.stderr)
    task = _Task(experiment.model_dump(mode="json"), asdict(prepared), asdict(sink))
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=asdict(task),
        scaling_config=cluster.scaling(experiment.resources),
        run_config=RunConfig(
            name=key,
            storage_path=str(experiment.folder / "ray"),
            checkpoint_config=CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=_SCORE),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        with follow_epochs(sink, experiment.train.epochs, f"training {experiment.name}"):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise _mendable(error) or error from None
    best = max(result.best_checkpoints, key=lambda pair: pair[1][_SCORE])[0]
    kept = _keep(Path(best.path), experiment.folder / CHECKPOINT)
    shutil.rmtree(experiment.folder / "ray")
    return kept


def _mendable(error: Exception) -> UserError | None:
    """The user's mistake behind a failed training, if one is."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause: BaseException | None = failure
        while cause is not None:
            inner = getattr(cause, "_base_exc", None) or cause.__cause__
            if isinstance(cause, UserError):
                return cause
            cause = inner
    return None


def _keep(source: Path, target: Path) -> Path:
    """Copy a checkpoint to its final place, without what only resuming needs."""
    aside = target.with_name(f".{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns("resume.pt", ".*"))
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    return target


def _train_worker(task: dict[str, Any]) -> None:
    """One worker: read the features, build the model, fit, report every epoch."""
    import ray.train
    from ray.train.torch import get_device

    experiment = Experiment.model_validate(task["experiment"])
    prepared = Prepared(**task["prepared"])
    context = ray.train.get_context()
    worker = Worker(get_device(), context.get_world_rank(), context.get_world_size())
    sink = MetricsSink(**task["sink"])
    manifest, text, store = prepared.read_manifest(), prepared.read_text_embeddings(), prepared.open_features()
    splits = _read_splits(prepared)
    training, counts = splits[TRAIN], class_counts(manifest)
    feature_dim = store.grid_shape[1]
    torch.manual_seed(experiment.seed)
    model = experiment.model.build(
        ModelInputs(
            len(manifest.class_names), feature_dim, text.embeddings_CM, *feature_statistics(training.grids_NKVD)
        )
    )
    selection = TEST if experiment.protocol == "published" else VALIDATION
    watched = splits.get(selection)

    def validate(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        assert watched is not None
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(weights)
        logits = predict(model, iter(watched.grids_NKVD[:, 0].split(256)), worker.device)
        model.load_state_dict(trained)
        result = evaluate(logits.numpy(), watched.targets_NC.numpy(), manifest.class_names, counts, manifest.groups)
        named = {name: value for name, value in result.metrics.items() if not name.startswith("AP/")}
        return {f"{selection}/{name}": value for name, value in named.items()}

    def report(end: EpochEnd) -> None:
        selects = experiment.protocol == "published" or experiment.train.select == "best"
        score = end.metrics[f"{selection}/mAP"] if selects else float(end.epoch)
        if worker.rank > 0:
            ray.train.report({_SCORE: score})
            return
        sink.log(end.metrics, end.epoch)
        info = CheckpointInfo(
            task["experiment"], list(manifest.class_names), feature_dim,
            store.description["encoder_fingerprint"], text.encoder, end.epoch, end.metrics,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), end.weights, info, end.state)
            ray.train.report({_SCORE: score}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    resume = None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            resume = load_info(Path(folder)).epoch, load_state(Path(folder))
    loss = experiment.loss.build(counts, len(training.image_ids))
    fit(
        model, loss, training, experiment.train,
        seed=experiment.seed, worker=worker, on_epoch_end=report, resume=resume,
        validate=validate if watched is not None else None,
    )  # fmt: skip


def _read_splits(prepared: Prepared) -> dict[str, CachedFeatures]:
    """Features and targets of each split, joined by image_id: [n, K, V, D]."""
    manifest, features = prepared.read_manifest(), prepared.open_features().read()
    views = int(features.views.max()) + 1 if len(features.views) else 1
    grids_NKVD = torch.from_numpy(features.grid).unflatten(0, (-1, views))
    row = {image_id: number for number, image_id in enumerate(features.image_ids[::views])}
    splits = {}
    for name in dict.fromkeys(manifest.splits):
        part = manifest.split(name)
        rows = torch.tensor([row[image_id] for image_id in part.image_ids])
        splits[name] = CachedFeatures(part.image_ids, grids_NKVD[rows], torch.from_numpy(part.targets()))
    return splits
