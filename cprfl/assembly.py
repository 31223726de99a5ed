"""The parts of a training, put together from an experiment and its prepared data: facts, objective, sources."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from cprfl.data.long_tail import class_counts, num_training_images
from cprfl.data.manifest import Manifest
from cprfl.encoders.base import Encoded
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.experiment import Experiment
from cprfl.losses import CorrelationPenalty
from cprfl.models.base import Facts, Features, feature_statistics
from cprfl.preparation import Prepared
from cprfl.training.objective import Objective
from cprfl.training.sources import ImageFiles, Source, StoredFeatures

BATCH = 256  # cached features that are looked at, or scored, at a time


def text_tower_of(experiment: Experiment) -> TextTower | None:
    """The frozen text tower, where the method is trained through it."""
    return experiment.text_encoder.tower(experiment.cache_dir) if experiment.model.needs_text_tower else None


def facts_of(experiment: Experiment, prepared: Prepared, training: Manifest) -> Facts:
    """What the method is built from."""
    grid_dim, global_dim = _dimensions(prepared)
    statistics = None
    if experiment.model.needs_statistics:
        assert prepared.store is not None
        plain = prepared.store.subset(training.image_ids).iter_batches(BATCH, views="plain")
        statistics = feature_statistics(batch.grid_BVD for batch in plain)
    text_CM = prepared.text.embeddings_CM
    return Facts.of_data(training, text_CM, grid_dim, global_dim, statistics, experiment.joint_space)


def objective_of(experiment: Experiment, prepared: Prepared, facts: Facts, text_tower: TextTower | None) -> Objective:
    """Method, criterion and penalties, with the image tower where it moves and its teacher.

    Draws from torch's random state: the tower is copied before the method is initialised.
    """
    train, manifest = experiment.train, prepared.manifest
    tower = copy.deepcopy(prepared.encoder()) if train.moves_tower else None
    teacher = copy.deepcopy(prepared.encoder()) if train.distill > 0 else None
    criterion = experiment.loss.build(class_counts(manifest), num_training_images(manifest))
    method = experiment.model.build(facts, text_tower)
    penalty = CorrelationPenalty(prepared.text.embeddings_CM, train.correlation) if train.correlation > 0 else None
    return Objective(method, criterion, train, tower, teacher, penalty)


def source_of(
    experiment: Experiment, prepared: Prepared, images: Manifest, objective: Objective, training: bool
) -> Source:
    """What the objective takes of these images: cached features, or the images for a tower that moves.

    To train on, images are augmented where they are decoded, and sampled as ``train.sampler`` says.
    """
    settings = experiment.train
    sampler = settings.sampler if training else "uniform"
    if prepared.store is not None:
        return StoredFeatures(images, prepared.store, settings.features_in_memory_mb * 2**20, sampler)
    assert objective.tower is not None
    finetune = settings.finetune
    augmentation = finetune.augmentation if training else None
    return ImageFiles(images, objective.tower, augmentation, finetune.num_processes, sampler)


def features_of(source: Source) -> Features:
    """Plain views of cached features, for what is fitted in closed form."""

    def batches() -> Iterator[tuple[Encoded, Tensor]]:
        for inputs, targets_BC, _ in source.in_order(BATCH, views="plain"):
            assert not isinstance(inputs, Tensor)
            yield inputs, targets_BC

    return batches


def _dimensions(prepared: Prepared) -> tuple[int, int]:
    """Channels of cells and summaries: those of the cached features, or found by encoding a blank image."""
    if prepared.store is not None:
        return prepared.store.grid_shape[1], prepared.store.global_dim
    encoder = prepared.encoder()
    with torch.inference_mode():
        encoded: Encoded = encoder(torch.zeros(1, 3, encoder.image_size, encoder.image_size))
    return encoded.grid_BVD.shape[-1], encoded.global_BE.shape[-1]
