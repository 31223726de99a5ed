"""Class counts, head/medium/tail groups, and the construction of a long tail (Wu et al., ECCV 2020)."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from scipy.sparse import csr_array

from cprfl.config import Config
from cprfl.data.manifest import TRAIN, VALIDATION, Groups, Manifest, TrainingCounts
from cprfl.errors import DatasetError

GroupName = Literal["head", "medium", "tail"]


def class_counts(manifest: Manifest) -> np.ndarray:
    """Images per class of the data set's training split, int64 [c]: before any were held out for validation."""
    if manifest.whole_training is not None:
        return np.array(manifest.whole_training.per_class, dtype=np.int64)
    return manifest.split(TRAIN).positives


def co_occurrence(manifest: Manifest) -> csr_array:
    """How many images show both of two classes, int64 [c, c], sparse; on the diagonal how many show the class."""
    ends = np.cumsum([0, *map(len, manifest.labels)])
    labels = np.fromiter(chain.from_iterable(manifest.labels), np.int64)
    shown_NC = csr_array((np.ones_like(labels), labels, ends), shape=(len(manifest), len(manifest.class_names)))
    return (shown_NC.T @ shown_NC).tocsr()


def num_training_images(manifest: Manifest) -> int:
    """Images of the data set's training split, before any were held out for validation."""
    return manifest.whole_training.images if manifest.whole_training else manifest.splits.count(TRAIN)


def hold_out(manifest: Manifest, held_out: np.ndarray) -> Manifest:
    """Move training images to the validation split; class counts, and so the groups, stay those of all of them.

    Args:
        manifest: the images.
        held_out: whether each of its training images is moved, bool.
    """
    splits = np.array(manifest.splits, dtype=object)
    splits[np.flatnonzero(splits == TRAIN)[held_out]] = VALIDATION
    counts = TrainingCounts(num_training_images(manifest), tuple(class_counts(manifest).tolist()))
    return replace(manifest, splits=tuple(splits), whole_training=counts)


def groups(counts: np.ndarray, head: int = Groups.head, tail: int = Groups.tail) -> dict[GroupName, np.ndarray]:
    """Class indices of each group: head has ``counts >= head``, tail ``counts < tail``, medium what lies between."""
    counts = np.asarray(counts)
    return {
        "head": np.flatnonzero(counts >= head),
        "medium": np.flatnonzero((counts >= tail) & (counts < head)),
        "tail": np.flatnonzero(counts < tail),
    }


class ParetoConfig(Config):
    """Make the training split long-tailed.

    ``max_count`` and ``min_count`` bound the reference count of the most and the least frequent class; ``power`` is
    the Pareto distribution's b (6 in the paper).
    """

    max_count: PositiveInt
    min_count: PositiveInt = 1
    power: PositiveFloat = 6.0
    seed: NonNegativeInt = 0


def pareto_counts(num_classes: int, config: ParetoConfig) -> np.ndarray:
    """Reference counts, int64 [c], descending: int(pdf(x) (max - min) / b + min), x evenly from ppf(0) to ppf(.99)."""
    from scipy.stats import pareto  # takes a second to import

    x = np.linspace(pareto.ppf(0, config.power), pareto.ppf(0.99, config.power), num_classes)
    span = config.max_count - config.min_count
    return (pareto.pdf(x, config.power) * span / config.power + config.min_count).astype(np.int64)


def make_long_tailed(manifest: Manifest, config: ParetoConfig) -> Manifest:
    """Draw a long-tailed training split from ``manifest``'s; the other splits stay as they are.

    Classes are walked by descending column sums of the conditional co-occurrence P(class | i): below its reference
    count a class gets random further images, above it random ones already chosen are dropped; either changes the
    counts of all labels of that image, so that the counts reached only approach the reference (as in the published
    construction).

    Raises:
        DatasetError: where a class has no training image to draw from.
    """
    training = manifest.split(TRAIN)
    targets, totals = training.targets() > 0, training.positives
    if (totals == 0).any():
        missing = [manifest.class_names[i] for i in np.flatnonzero(totals == 0)]
        raise DatasetError(f"long_tail: no training image of {', '.join(missing)}; drop the class or add images")
    conditional = co_occurrence(training).toarray() / totals[:, None]
    rng = np.random.default_rng(config.seed)
    chosen = np.zeros(len(targets), dtype=bool)
    reference = pareto_counts(len(totals), config)
    for wanted, name in zip(reference, np.argsort(-conditional.sum(axis=0), kind="stable"), strict=True):
        surplus = int(targets[chosen, name].sum() - wanted)
        pool = np.flatnonzero(targets[:, name] & (chosen if surplus > 0 else ~chosen))
        chosen[rng.choice(pool, size=min(abs(surplus), len(pool)), replace=False)] = surplus < 0
    train_rows = np.flatnonzero(np.array(manifest.splits, dtype=str) == TRAIN)
    keep = np.ones(len(manifest), dtype=bool)
    keep[train_rows[~chosen]] = False
    return manifest.select(np.flatnonzero(keep))
