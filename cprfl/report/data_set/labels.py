"""What the labels say: images per class and split, labels per image, classes that come together.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from cprfl.data.long_tail import GroupName, class_counts, co_occurrence, groups
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest

SPLITS = (TRAIN, VALIDATION, TEST)
_FEW = 3  # images that show two classes: fewer say nothing of how they come together


@dataclass(frozen=True)
class ClassFacts:
    """One class.

    Attributes:
        name: of the class.
        group: head, medium or tail, by its training images.
        images: that show it, for each split.
        unknown: images, of all splits, of which nobody knows whether they show it.
        alone: training images that show it and nothing else.
    """

    name: str
    group: GroupName
    images: Mapping[str, int]
    unknown: int
    alone: int


@dataclass(frozen=True)
class Together:
    """Two classes that come together in training images.

    Attributes:
        first: the rarer one.
        second: the other.
        images: training images that show both.
        share: of the rarer one's images that show the other too.
        lift: how many times as often as if they came independently.
    """

    first: str
    second: str
    images: int
    share: float
    lift: float


@dataclass(frozen=True)
class LabelFacts:
    """The labels of a data set.

    Attributes:
        images: of each split.
        classes: the one with the most training images first.
        labels_per_image: for each split, images with 0, 1, 2, ... labels.
        without_label: ids of the images that show no class, for each split.
        partly_open: how many of those have unknown labels beside the classes that they are known not to show.
        wholly_open: how many of those have none but unknown labels.
        together: pairs of classes, the strongest tie first.
        never_alone: classes of some training images that all show another class too; with the one they come with most.
        shares_CC: share of a row's training images that show the column, of the first `SHOWN` classes.
    """

    images: Mapping[str, int]
    classes: tuple[ClassFacts, ...]
    labels_per_image: Mapping[str, tuple[int, ...]]
    without_label: Mapping[str, tuple[str, ...]]
    partly_open: int
    wholly_open: int
    together: tuple[Together, ...]
    never_alone: tuple[Together, ...]
    shares_CC: np.ndarray

    @property
    def mean_labels(self) -> float:
        """Labels of an image, on the mean over all splits."""
        sums = [number * count for counts in self.labels_per_image.values() for number, count in enumerate(counts)]
        return sum(sums) / max(1, sum(self.images.values()))


SHOWN = 30  # classes whose co-occurrence is drawn
_PAIRS = 20


def label_facts(manifest: Manifest) -> LabelFacts:
    """Count what a manifest's labels say."""
    parts = {name: manifest.split(name) for name in SPLITS}
    shown = {name: part.positives for name, part in parts.items()}
    training = parts[TRAIN]
    order = np.argsort(-shown[TRAIN], kind="stable")
    together_CC = co_occurrence(training)
    lengths = {name: np.array([len(own) for own in part.labels], dtype=np.int64) for name, part in parts.items()}
    pairs = _pairs(manifest.class_names, together_CC, shown[TRAIN], len(training))
    open_N = np.array([len(doubts) for own, doubts in zip(manifest.labels, manifest.unknown, strict=False) if not own])
    wholly = open_N == len(manifest.class_names)
    return LabelFacts(
        images={name: len(part) for name, part in parts.items()},
        classes=_classes(manifest, shown, order),
        labels_per_image={name: tuple(np.bincount(found).tolist()) for name, found in lengths.items()},
        without_label={
            name: tuple(parts[name].image_ids[row] for row in np.flatnonzero(found == 0))
            for name, found in lengths.items()
        },
        partly_open=int(((open_N > 0) & ~wholly).sum()),
        wholly_open=int(wholly.sum()),
        together=tuple(sorted(pairs, key=_tie, reverse=True)[:_PAIRS]),
        never_alone=_never_alone(manifest, together_CC, shown[TRAIN], order),
        shares_CC=_shares(together_CC, shown[TRAIN], order[:SHOWN]),
    )


def _classes(manifest: Manifest, shown: Mapping[str, np.ndarray], order: np.ndarray) -> tuple[ClassFacts, ...]:
    num_classes = len(manifest.class_names)
    unknown = _label_counts(manifest.unknown, num_classes)
    alone = _label_counts([own for own in manifest.split(TRAIN).labels if len(own) == 1], num_classes)
    members = groups(class_counts(manifest), manifest.groups.head, manifest.groups.tail)
    group = {int(label): name for name, labels in members.items() for label in labels}
    return tuple(
        ClassFacts(
            manifest.class_names[label],
            group[label],
            {name: int(counts[label]) for name, counts in shown.items()},
            int(unknown[label]),
            int(alone[label]),
        )
        for label in order.tolist()
    )


def _label_counts(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    return np.bincount(np.array([label for own in labels for label in own], dtype=np.int64), minlength=num_classes)


def _pairs(names: Sequence[str], together_CC: csr_array, counts_C: np.ndarray, num_images: int) -> list[Together]:
    """Every pair of classes that comes in some images more often than by chance."""
    found = together_CC.tocoo()
    result = []
    for first, second, images in zip(found.row.tolist(), found.col.tolist(), found.data.tolist(), strict=True):
        if images < _FEW or (counts_C[first], first) >= (counts_C[second], second):
            continue
        lift = images * num_images / (counts_C[first] * counts_C[second])
        if lift > 1:
            result.append(Together(names[first], names[second], images, float(images / counts_C[first]), float(lift)))
    return result


def _tie(pair: Together) -> float:
    """Images, weighed by the logarithm of the lift: neither two rare classes met twice nor two frequent ones lead."""
    return float(pair.images * np.log(pair.lift))


def _never_alone(
    manifest: Manifest, together_CC: csr_array, counts_C: np.ndarray, order: np.ndarray
) -> tuple[Together, ...]:
    training = manifest.split(TRAIN)
    alone = _label_counts([own for own in training.labels if len(own) == 1], len(counts_C))
    result = []
    for label in order[(counts_C >= _FEW)[order] & (alone == 0)[order]].tolist():
        row = together_CC[[label]].toarray()[0]
        row[label] = 0
        other = int(np.argmax(row))
        images, names = int(row[other]), manifest.class_names
        lift = images * len(training) / (counts_C[label] * counts_C[other])
        result.append(Together(names[label], names[other], images, float(images / counts_C[label]), float(lift)))
    return tuple(sorted(result, key=lambda pair: -pair.share))


def _shares(together_CC: csr_array, counts_C: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    square = together_CC[chosen][:, chosen].toarray().astype(np.float64)
    return square / np.maximum(counts_C[chosen], 1)[:, None]
