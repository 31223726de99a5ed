"""What a worker trains: the network and its data, on cached features or on images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import nn

from cprfl.data.manifest import TRAIN, Manifest
from cprfl.encoders.text import TextEmbeddings
from cprfl.experiment import Experiment
from cprfl.models.base import ModelInputs, feature_statistics
from cprfl.models.fine_tuned import FineTuned, grid_channels
from cprfl.training.sources import ImageFiles, StoredFeatures, TrainingSource
from pipelines.preprocess import Prepared


class TrainingSetup(NamedTuple):
    """What a worker trains, and on what.

    Attributes:
        network: takes what the source gives.
        source: of the training images.
        inputs: of the network for all images of a split, in the manifest's or the store's order.
        feature_dim: channels of the grid features.
        encoder_fingerprint: of the encoder as it was before any fine-tuning.
    """

    network: nn.Module
    source: TrainingSource
    inputs: Callable[[str], Iterator[torch.Tensor]]
    feature_dim: int
    encoder_fingerprint: str


def frozen(experiment: Experiment, prepared: Prepared, manifest: Manifest, text: TextEmbeddings) -> TrainingSetup:
    """A model on cached features."""
    store = prepared.open_features()
    source = StoredFeatures(manifest.split(TRAIN), store, experiment.train.features_in_memory_mb * 2**20)
    feature_dim = store.grid_shape[1]
    unused = torch.zeros(feature_dim)
    statistics = feature_statistics(source.in_order(256)) if experiment.model.standardize else (unused, unused)
    model = experiment.model.build(ModelInputs(len(manifest.class_names), feature_dim, text.embeddings_CM, *statistics))

    def inputs(split: str) -> Iterator[torch.Tensor]:
        return StoredFeatures(manifest.split(split), store).in_order(256)

    return TrainingSetup(model, source, inputs, feature_dim, store.description["encoder_fingerprint"])


def fine_tuned(experiment: Experiment, prepared: Prepared, manifest: Manifest, text: TextEmbeddings) -> TrainingSetup:
    """An encoder and a model on it, on images."""
    settings = experiment.train.finetune
    encoder = experiment.encoder.build(experiment.cache_dir)
    fingerprint_of_encoder, feature_dim = encoder.fingerprint(), grid_channels(encoder)
    if settings.gradient_checkpointing:
        encoder.checkpoint_gradients()
    unknown = torch.zeros(feature_dim)  # statistics of features that change: nothing standardises by them
    model = experiment.model.build(
        ModelInputs(len(manifest.class_names), feature_dim, text.embeddings_CM, unknown, unknown)
    )
    source = ImageFiles(manifest.split(TRAIN), encoder, settings.augmentation, settings.num_processes)

    def inputs(split: str) -> Iterator[torch.Tensor]:
        plain = ImageFiles(manifest.split(split), encoder, num_processes=settings.num_processes)
        return plain.in_order(experiment.encoder.batch_size)

    return TrainingSetup(
        FineTuned(encoder, model, settings.batch_norm), source, inputs, feature_dim, fingerprint_of_encoder
    )  # fmt: skip
