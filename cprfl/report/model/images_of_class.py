"""Which test images show best what a model does with a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logit

PICTURES = 1300
"""Pictures of classes on a page: with more of them it would be slow to open, and to write."""
_MOST, _LEAST = 6, 1  # of a kind, for each class


@dataclass(frozen=True)
class ImagesOfClass:
    """Rows of the test images.

    Attributes:
        missed: show the class and were not counted, the lowest probability first.
        false: do not and were, the highest first.
        uncertain: of the others, those next to the threshold.
        found: show it and were counted, the highest first.
    """

    missed: list[int]
    false: list[int]
    uncertain: list[int]
    found: list[int]

    @property
    def rows(self) -> list[int]:
        """All of them."""
        return [*self.missed, *self.false, *self.uncertain, *self.found]


def how_many(num_classes: int) -> int:
    """Images of a kind for each class, so that a page of all classes stays light."""
    return max(_LEAST, min(_MOST, PICTURES // (4 * max(num_classes, 1))))


def images_of_class(targets_N: np.ndarray, probability_N: np.ndarray, threshold: float, count: int) -> ImagesOfClass:
    """Choose images of each kind.

    Args:
        targets_N: 1, 0 or NaN where nobody knows.
        probability_N: of the class.
        threshold: from which on an image counts as showing it.
        count: images of a kind, at most.
    """
    counted_N = probability_N >= np.float32(threshold)
    shown_N, other_N = targets_N > 0, targets_N == 0
    missed = _first(np.flatnonzero(shown_N & ~counted_N), probability_N, count)
    false = _first(np.flatnonzero(other_N & counted_N), -probability_N, count)
    found = _first(np.flatnonzero(shown_N & counted_N), -probability_N, count)
    rest_N = shown_N | other_N
    rest_N[[*missed, *false, *found]] = False
    distance_N = np.abs(_logit(probability_N) - _logit(np.array(threshold)))
    return ImagesOfClass(missed, false, _first(np.flatnonzero(rest_N), distance_N, count), found)


def _first(rows: np.ndarray, key_N: np.ndarray, count: int) -> list[int]:
    chosen: list[int] = rows[np.argsort(key_N[rows], kind="stable")][:count].tolist()
    return chosen


def _logit(values: np.ndarray) -> np.ndarray:
    bounded: np.ndarray = logit(np.clip(values, 1e-6, 1 - 1e-6))
    return bounded


def top(probability_C: np.ndarray, count: int = 5) -> Sequence[int]:
    """Classes of the highest probabilities, the highest first."""
    return np.argsort(-probability_C, kind="stable")[:count].tolist()
