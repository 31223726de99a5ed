"""From which probability on an image counts as showing a class: chosen on images that the model has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cprfl.evaluation.blocks import row_blocks, shown_classes

Goal = Literal["f1", "precision", "recall"]

_CANDIDATES = 200  # thresholds of the other classes that are tried beside a class's own


def choose_thresholds(
    probabilities_NC: np.ndarray,
    targets_NC: np.ndarray,
    groups: Iterable[np.ndarray],
    goal: Goal,
    wanted: float | None,
    strength: float,
) -> tuple[np.ndarray, list[int]]:
    """A threshold for each class, float64 [C], and the classes that reach the wanted precision with none.

    The counts of which F1, precision and recall are made are a class's own and its group's together, the latter scaled
    to ``strength`` positives (and the group's are joined by those of all classes in the same way). So a class with n
    positives has the weight n / (n + strength) itself; one without positives takes the group's threshold.

    For ``f1`` the best threshold is chosen; for a wanted precision the lowest that has it, for a wanted recall the
    highest: with the group's counts and, where that is possible at all, by the class's own. A class that no threshold
    gives the wanted precision gets the one nearest to it.

    Args:
        probabilities_NC: float32.
        targets_NC: multi-hot, NaN where nobody knows.
        groups: indices of classes that lean on each other.
        goal: what the thresholds are for.
        wanted: precision or recall, a fraction.
        strength: how many positives the others count as.
    """
    threshold_C, short = np.full(probabilities_NC.shape[1], 0.5), list[int]()
    shown = shown_classes(targets_NC)  # the others' images would only count as false
    if not shown.any():
        return threshold_C, short
    everything = _curve(probabilities_NC, targets_NC, np.flatnonzero(shown))
    for members in groups:
        group = _curve(probabilities_NC, targets_NC, members[shown[members]])
        others = [group.weighing(1.0), everything.weighing(strength / everything.num_positives)]
        share = strength / (group.num_positives + strength) if strength else 0.0
        if not group.num_positives:
            others, share = [everything], strength / everything.num_positives
        for label in members:
            own = _curve(probabilities_NC, targets_NC, np.array([label]))
            if own.num_positives:
                leaning = [own, *(curve.weighing(share) for curve in others)]
                threshold_C[label], reached = _best(own, leaning, goal, wanted)
                if not reached:
                    short.append(int(label))
            else:
                threshold_C[label], _ = _best(others[0], others, goal, wanted)
    return threshold_C, sorted(short)


def choose_one(
    probabilities_NC: np.ndarray, targets_NC: np.ndarray, goal: Goal, wanted: float | None
) -> tuple[np.ndarray, bool]:
    """One threshold for all classes, chosen on all of their images together, float64 [C]; whether it does it."""
    everything = _curve(probabilities_NC, targets_NC, np.arange(probabilities_NC.shape[1]))
    threshold, reached = _best(everything, [everything], goal, wanted) if everything.num_positives else (0.5, True)
    return np.full(probabilities_NC.shape[1], threshold), reached


@dataclass(frozen=True)
class _Curve:
    """Sorted probabilities of the images that show a class (or some classes), and of all whose target is known."""

    shown: np.ndarray
    known: np.ndarray
    weight: float = 1.0

    @property
    def num_positives(self) -> float:
        return self.weight * len(self.shown)

    def weighing(self, factor: float) -> _Curve:
        return _Curve(self.shown, self.known, self.weight * factor)

    def counts(self, threshold_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hits [T], and images that are found at all [T]."""
        hits_T, found_T = (len(values) - np.searchsorted(values, threshold_T) for values in (self.shown, self.known))
        return self.weight * hits_T, self.weight * found_T

    def candidates(self) -> np.ndarray:
        """Thresholds in the middle below each positive (or many of them), float32."""
        shown = np.unique(self.shown)
        if len(shown) > _CANDIDATES:
            shown = shown[np.linspace(0, len(shown) - 1, _CANDIDATES).astype(int)]
        place = np.searchsorted(self.known, shown)
        below = np.where(place > 0, self.known[np.maximum(place - 1, 0)], 0).astype(np.float32)
        middle = ((below.astype(float) + shown) / 2).astype(np.float32)
        return np.where(middle > below, middle, shown)


def _curve(probabilities_NC: np.ndarray, targets_NC: np.ndarray, classes: np.ndarray) -> _Curve:
    shown, known = list[np.ndarray](), list[np.ndarray]()
    for rows in row_blocks((len(targets_NC), len(classes))):
        probability_BC, targets_BC = probabilities_NC[rows, classes], targets_NC[rows, classes]
        shown.append(probability_BC[targets_BC > 0])
        known.append(probability_BC[~np.isnan(targets_BC)])
    all_shown, all_known = np.concatenate(shown), np.concatenate(known)
    all_shown.sort()  # in their place: of all classes' images they are the largest thing in memory
    all_known.sort()
    return _Curve(all_shown, all_known)


def _best(own: _Curve, curves: Sequence[_Curve], goal: Goal, wanted: float | None) -> tuple[float, bool]:
    """The threshold for the goal by the counts of all curves together, and whether the own ones reach it."""
    threshold_T = np.unique(np.concatenate([curve.candidates() for curve in curves if curve.weight > 0]))
    counted = [curve.counts(threshold_T) for curve in curves]
    hits_T, found_T = (np.sum(values, axis=0) for values in zip(*counted, strict=True))
    positives = sum(curve.num_positives for curve in curves)
    if goal == "f1":
        best = int(np.argmax(2 * hits_T / (found_T + positives)))
        return float(threshold_T[best]), True
    assert wanted is not None
    own_hits_T, own_found_T = own.counts(threshold_T)
    if goal == "recall":
        reached_T = (own_hits_T >= wanted * own.num_positives) & (hits_T >= wanted * positives - 1e-9)
        return float(threshold_T[reached_T].max()), True  # the lowest candidate finds all of them
    precise_T, own_precise_T = hits_T / np.maximum(found_T, 1e-12), own_hits_T / np.maximum(own_found_T, 1e-12)
    alone_T = (own_hits_T > 0) & (own_precise_T >= wanted)
    both_T = alone_T & (precise_T >= wanted)
    for reached_T in (both_T, alone_T):
        if reached_T.any():
            return float(threshold_T[reached_T].min()), True
    return float(threshold_T[np.argmax(own_precise_T)]), False
