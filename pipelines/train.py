"""Stage 2: the training loop of `cprfl.training` on one or many Ray Train workers."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cprfl.data.files import fingerprint
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, TRAIN, Manifest
from cprfl.encoders.text import TextEmbeddings
from cprfl.errors import UserError
from cprfl.evaluation import evaluate
from cprfl.experiment import Experiment
from cprfl.models.base import ModelInputs, feature_statistics
from cprfl.models.fine_tuned import FineTuned, grid_channels, split_weights
from cprfl.training.checkpoint import CheckpointInfo, load_info, load_state, save_checkpoint
from cprfl.training.loop import EpochEnd, Worker, fit, predict
from cprfl.training.sources import CachedFeatures, ImageFiles, TrainingSource
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
    data = [
        Path(prepared.features or "images").name,
        prepared.read_manifest().digest,
        Path(prepared.text_embeddings).stem,
    ]
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
    """One worker: build the network and its data, fit, report every epoch."""
    import ray.train
    from ray.train.torch import get_device

    experiment = Experiment.model_validate(task["experiment"])
    prepared = Prepared(**task["prepared"])
    context = ray.train.get_context()
    worker = Worker(get_device(), context.get_world_rank(), context.get_world_size())
    manifest, text = prepared.read_manifest(), prepared.read_text_embeddings()
    counts = class_counts(manifest)
    torch.manual_seed(experiment.seed)
    setup = (_frozen if prepared.features else _fine_tuned)(experiment, prepared, manifest, text)
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
        MetricsSink(**task["sink"]).log(end.metrics, end.epoch)
        info = CheckpointInfo(
            task["experiment"], list(manifest.class_names), setup.feature_dim,
            setup.encoder_fingerprint, text.encoder, end.epoch, end.metrics,
        )  # fmt: skip
        head, encoder = split_weights(end.weights) if isinstance(setup.network, FineTuned) else (end.weights, None)
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), head, info, end.state, encoder)
            ray.train.report({_SCORE: score}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    resume = None
    if (checkpoint := ray.train.get_checkpoint()) is not None:
        with checkpoint.as_directory() as folder:
            resume = load_info(Path(folder)).epoch, load_state(Path(folder))
    fit(
        setup.network, experiment.loss.build(counts, len(setup.source.image_ids)), setup.source, experiment.train,
        seed=experiment.seed, worker=worker, on_epoch_end=report, resume=resume,
        validate=validate if len(watched) else None,
    )  # fmt: skip


class _Setup(NamedTuple):
    """What a worker trains, on what, and the network's inputs for all images of a split."""

    network: nn.Module
    source: TrainingSource
    inputs: Callable[[str], Iterator[torch.Tensor]]
    feature_dim: int
    encoder_fingerprint: str


def _frozen(experiment: Experiment, prepared: Prepared, manifest: Manifest, text: TextEmbeddings) -> _Setup:
    store = prepared.open_features()
    splits = read_splits(prepared)
    training, feature_dim = splits[TRAIN], store.grid_shape[1]
    statistics = feature_statistics(training.grids_NKVD)
    model = experiment.model.build(ModelInputs(len(manifest.class_names), feature_dim, text.embeddings_CM, *statistics))
    fingerprint_of_encoder = store.description["encoder_fingerprint"]
    return _Setup(
        model, training, lambda split: iter(splits[split].grids_NKVD[:, 0].split(256)), feature_dim,
        fingerprint_of_encoder,
    )  # fmt: skip


def _fine_tuned(experiment: Experiment, prepared: Prepared, manifest: Manifest, text: TextEmbeddings) -> _Setup:
    settings = experiment.train.finetune
    encoder = experiment.encoder.build(experiment.cache_dir)
    fingerprint_of_encoder, feature_dim = encoder.fingerprint(), grid_channels(encoder)
    if settings.gradient_checkpointing:
        encoder.checkpoint_gradients()
    unknown = torch.zeros(
        feature_dim
    )  # statistics of features that change while training: nothing standardises by them
    model = experiment.model.build(
        ModelInputs(len(manifest.class_names), feature_dim, text.embeddings_CM, unknown, unknown)
    )
    source = ImageFiles(manifest.split(TRAIN), encoder, settings.augmentation, settings.num_processes)

    def inputs(split: str) -> Iterator[torch.Tensor]:
        plain = ImageFiles(manifest.split(split), encoder, num_processes=settings.num_processes)
        return plain.in_order(experiment.encoder.batch_size)

    return _Setup(
        FineTuned(encoder, model, settings.batch_norm), source, inputs, feature_dim, fingerprint_of_encoder
    )  # fmt: skip


def read_splits(prepared: Prepared) -> dict[str, CachedFeatures]:
    """Features and targets of each split, joined by image_id."""
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
