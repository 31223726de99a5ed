"""How surely average precision is known: models on the same resamples of the same images.

A resample draws as many images as there are, with replacement; it is a weight for each image, how often it was drawn.
One set of resamples serves all models and classes, so that differences are paired.

Shapes: M models, N images, C classes, S resamples, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from cprfl.evaluation.blocks import columns

RESAMPLES = 200
_LEVEL = 0.95
_AT_A_TIME = 2**23  # weights that are held at once


@dataclass(frozen=True)
class Interval:
    """A number in percent or points, and what it lies between in 95 % of the resamples."""

    value: float
    low: float
    high: float

    @property
    def above_zero(self) -> bool:
        """Whether the interval has no part at or below zero."""
        return self.low > 0

    @property
    def below_zero(self) -> bool:
        """Whether the interval has no part at or above zero."""
        return self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        """As a difference: ``+1.2 [-0.3, +2.6]``."""
        return f"{self.value:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


@dataclass(frozen=True)
class Bootstrap:
    """Average precision of models on the same images, percent; NaN where a class has no positive.

    Attributes:
        models: names of the M models.
        groups: class indices of ``total`` and of the groups that there are.
        precision_MC: on all images.
        resampled_MSC: in each resample.
    """

    models: tuple[str, ...]
    groups: Mapping[str, np.ndarray]
    precision_MC: np.ndarray
    resampled_MSC: np.ndarray

    def mean(self, model: str, group: str = "total") -> Interval | None:
        """A model's mean over the classes of a group; none where the images show none of them."""
        number, classes = self.models.index(model), self.groups[group]
        return _interval(means(self.precision_MC[number, classes]), means(self.resampled_MSC[number][:, classes]), 0)

    def gain(self, model: str, other: str, group: str = "total") -> Interval | None:
        """Points by which the mean of ``model`` is above that of ``other``; none where nothing can be compared."""
        (new, old), classes = map(self.models.index, (model, other)), self.groups[group]
        return _interval(
            means(self.precision_MC[new, classes]) - means(self.precision_MC[old, classes]),
            means(self.resampled_MSC[new][:, classes]) - means(self.resampled_MSC[old][:, classes]),
        )

    def class_gains(self, model: str, other: str) -> list[Interval | None]:
        """Points of average precision by which ``model`` is above ``other``, for each of the C classes."""
        new, old = map(self.models.index, (model, other))
        value_C = self.precision_MC[new] - self.precision_MC[old]
        resampled_SC = self.resampled_MSC[new] - self.resampled_MSC[old]
        return [_interval(value, column) for value, column in zip(value_C, resampled_SC.T, strict=True)]

    def classes(self, model: str) -> list[Interval | None]:
        """Average precision of a model on each of the C classes; none for one that no image shows."""
        number = self.models.index(model)
        columns = zip(self.precision_MC[number], self.resampled_MSC[number].T, strict=True)
        return [_interval(value, column, 0) for value, column in columns]


def bootstrap(
    scores: Mapping[str, np.ndarray],
    targets_NC: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Bootstrap:
    """Average precision of several models, on the images as they are and in resamples of them.

    Args:
        scores: of each model, [N, C].
        targets_NC: multi-hot; where one is NaN, of which nobody knows, the image is left out of its class.
        groups: class indices by group, see `cprfl.data.long_tail.groups`; ``total`` is added.
        resamples: how many.
        seed: of the resamples.
    """
    models, num_classes = tuple(scores), targets_NC.shape[1]
    as_they_are = np.ones((len(targets_NC), 1), dtype=np.float32)
    precision_MC = np.stack([weighted_precision(scores[name], targets_NC, as_they_are)[0] for name in models])
    parts = [
        np.stack([weighted_precision(scores[name], targets_NC, weights_NS) for name in models])
        for weights_NS in drawn(len(targets_NC), resamples, seed)
    ]
    there = {name: np.asarray(classes) for name, classes in groups.items() if len(classes)}
    return Bootstrap(
        models, {"total": np.arange(num_classes)} | there, 100 * precision_MC, 100 * np.concatenate(parts, axis=1)
    )


def drawn(num_images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each image was drawn, float32 [N, S], in parts that fit into memory."""
    rng = np.random.default_rng(seed)
    step = max(1, _AT_A_TIME // num_images)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        images = rng.integers(num_images, size=(size, num_images))
        counts = [np.bincount(row, minlength=num_images) for row in images]
        yield np.ascontiguousarray(np.stack(counts, axis=1), dtype=np.float32)


def weighted_precision(scores_NC: np.ndarray, targets_NC: np.ndarray, weights_NS: np.ndarray) -> np.ndarray:
    """Average precision for each column of image weights, a fraction, [S, C]; NaN where no positive weighs.

    The same as scikit-learn's with ``sample_weight``, for all columns at once.

    Args:
        scores_NC: of the images.
        targets_NC: multi-hot, NaN where nobody knows.
        weights_NS: float32, whole numbers.
    """
    result_SC = np.full((weights_NS.shape[1], targets_NC.shape[1]), np.nan)
    for label, (scores_N, targets_N) in enumerate(columns(scores_NC, targets_NC)):
        if (targets_N > 0).any():
            result_SC[:, label] = _of_class(scores_N, targets_N, weights_NS)
    return result_SC


def _of_class(scores_N: np.ndarray, targets_N: np.ndarray, weights_NS: np.ndarray) -> np.ndarray:
    """Average precision of one class that an image shows, [S].

    Precision counts only where recall grows: at the scores of positives, of which there are few. Between two of them
    the weights of all images are added up, by one sparse product.
    """
    shown_N = targets_N > 0
    fallen_T = np.unique(-scores_N[shown_N])  # the highest score first; tied scores are one threshold
    passed_N = np.searchsorted(fallen_T, -scores_N)  # the first threshold that an image reaches

    def added_up(images: np.ndarray) -> np.ndarray:
        ones, shape = np.ones(len(images), dtype=np.float32), (len(fallen_T), len(weights_NS))
        at_TN = csr_array((ones, (passed_N[images], images)), shape=shape)
        return np.cumsum(at_TN @ weights_NS, axis=0, dtype=np.float64)

    hits_TS = added_up(np.flatnonzero(shown_N))
    named_TS = added_up(np.flatnonzero(~np.isnan(targets_N) & (passed_N < len(fallen_T))))
    precision_TS = np.divide(hits_TS, named_TS, out=np.zeros_like(hits_TS), where=named_TS > 0)
    total_S = hits_TS[-1]
    sums_S = (precision_TS * np.diff(hits_TS, axis=0, prepend=0.0)).sum(axis=0)
    return np.divide(sums_S, total_S, out=np.full(len(total_S), np.nan), where=total_S > 0)


def means(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is not NaN; NaN where all is."""
    there = ~np.isnan(values)
    sums, counts = np.where(there, values, 0).sum(axis=-1), there.sum(axis=-1)
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def _interval(value: np.ndarray | float, resampled_S: np.ndarray, least: float = -100) -> Interval | None:
    """A value in percent, at least ``least``, and how the resamples are spread, around it.

    An image that was drawn twice makes a tie, and average precision rise by up to a few points where positives are few:
    what the resamples have more on the mean than the images themselves says nothing of the model.
    """
    if np.isnan(value):
        return None
    low, high = np.nanquantile(resampled_S, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]) - np.nanmean(resampled_S)
    return Interval(float(value), float(max(value + low, least)), float(min(value + high, 100)))
