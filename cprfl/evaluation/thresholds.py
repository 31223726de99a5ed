"""From which probability on an image counts as showing a class: chosen on images that the model has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    gives the wanted precision by its own counts takes the lowest that has it by all counts together, its own false
    images among them. Where not even those have it, the class is found in no more images than could be right, see
    `_sparing`: who asks for precision wants few false images, not many found ones.

    Args:
        probabilities_NC: float32.
        targets_NC: multi-hot, NaN where nobody knows.
        groups: indices of classes that lean on each other; no class is in two of them.
        goal: what the thresholds are for.
        wanted: precision or recall, a fraction.
        strength: how many positives the others count as.
    """
    threshold_C, short = np.full(probabilities_NC.shape[1], 0.5), list[int]()
    shown = shown_classes(targets_NC)  # the others' images would only count as false
    if not shown.any():
        return threshold_C, short
    grouped = list(groups)
    others_C = shown.copy()  # which are in no group
    for members in grouped:
        others_C[members] = False
    curves = [_curve(probabilities_NC, targets_NC, members[shown[members]]) for members in grouped]
    rest = _curve(probabilities_NC, targets_NC, np.flatnonzero(others_C))
    everything = _Curve([part for curve in (*curves, rest) for part in curve.parts])
    for members, group in zip(grouped, curves, strict=True):
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
    """Sorted probabilities of the images that show a class (or some classes), and of all whose target is known.

    They are in parts, of which all classes together have those of their groups: a copy would be the largest thing in
    memory.
    """

    parts: list[tuple[np.ndarray, np.ndarray]]
    weight: float = 1.0

    @property
    def num_positives(self) -> float:
        return self.weight * sum(len(shown) for shown, _ in self.parts)

    def weighing(self, factor: float) -> _Curve:
        return _Curve(self.parts, self.weight * factor)

    def counts(self, threshold_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hits [T], and images that are found at all [T]."""
        hits_T, found_T = (
            np.sum([len(values) - np.searchsorted(values, threshold_T) for values in every], axis=0)
            for every in zip(*self.parts, strict=True)
        )
        return self.weight * hits_T, self.weight * found_T

    def candidates(self) -> np.ndarray:
        """Thresholds in the middle below each positive (or many of them), float32."""
        shown = np.unique(np.concatenate([shown for shown, _ in self.parts]))
        if len(shown) > _CANDIDATES:
            shown = shown[np.linspace(0, len(shown) - 1, _CANDIDATES).astype(int)]
        below = np.max([_next_lower(known, shown) for _, known in self.parts], axis=0)
        middle = ((below.astype(float) + shown) / 2).astype(np.float32)
        return np.where(middle > below, middle, shown)


def _next_lower(known: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """The largest of sorted probabilities that is below each of others, float32; 0 where there is none."""
    if not len(known):
        return np.zeros(len(shown), dtype=np.float32)
    place = np.searchsorted(known, shown)
    return np.where(place > 0, known[np.maximum(place - 1, 0)], 0).astype(np.float32)


def _curve(probabilities_NC: np.ndarray, targets_NC: np.ndarray, classes: np.ndarray) -> _Curve:
    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in row_blocks((len(targets_NC), len(classes))):
            yield probabilities_NC[rows, classes], targets_NC[rows, classes]

    shown = np.concatenate([probability_BC[targets_BC > 0] for probability_BC, targets_BC in blocks()])
    known = np.empty(sum((~np.isnan(targets_BC)).sum() for _, targets_BC in blocks()), dtype=np.float32)
    end = 0
    for probability_BC, targets_BC in blocks():
        found = probability_BC[~np.isnan(targets_BC)]
        known[end : (end := end + len(found))] = found
    shown.sort()
    known.sort()
    return _Curve([(shown, known)])


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
    together_T = precise_T >= wanted
    for reached_T, by_its_own in ((alone_T & together_T, True), (alone_T, True), (together_T, False)):
        if reached_T.any():
            return float(threshold_T[reached_T].min()), by_its_own
    return _sparing(threshold_T, precise_T, found_T <= positives / wanted, curves), False


def _sparing(threshold_T: np.ndarray, precise_T: np.ndarray, may_be_T: np.ndarray, curves: Sequence[_Curve]) -> float:
    """Where no threshold has the wanted precision: the most precise, of several the highest, of those that still could.

    One that finds more images than there are positives over the wanted precision could not, however they are ranked.
    Where each does, the threshold is one that no probability reaches.
    """
    if not may_be_T.any():
        highest = np.float32(max(known[-1] for curve in curves for _, known in curve.parts if len(known)))
        return float(np.nextafter(highest, np.float32(2)))
    best = precise_T[may_be_T].max()
    return float(threshold_T[may_be_T & (precise_T == best)].max())
