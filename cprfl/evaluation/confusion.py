"""What a class is taken for: what else the images show in which a model finds it, misses it, or in which it is.

Shapes: N images, C classes, L of them that are asked for, B images of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cprfl.evaluation.blocks import row_blocks

FIRST = 30  # false positives that are looked at, those of the highest scores
_SHOWN = 5  # classes that are named
_FEWEST = 2  # images that two classes must share before anything is said of it
_SURE = 3.0  # standard deviations above chance: of many classes, some are above it by chance


@dataclass(frozen=True)
class Company:
    """Another class, and how often it is there.

    Attributes:
        class_name: of the other class.
        images: of those looked at that have it.
        share: of those looked at.
        lift: how many times as often as among the images that they are compared with; infinite where none of those
            has it.
    """

    class_name: str
    images: int
    share: float
    lift: float


@dataclass(frozen=True)
class Confusion:
    """One class's mistakes.

    Attributes:
        class_name: of the class.
        false_positives: images that do not show it and in which it is found.
        misses: images that show it and in which it is not found.
        looked_at: the first false positives, at most `FIRST`; where there are none, the images without the class that
            score the highest.
        shown_instead: what those show, compared with all images without the class.
        found_instead: what is falsely found in the images that show the class and are missed, compared with all images.
        comes_with: what the images of the class show too, compared with those without it.
    """

    class_name: str
    false_positives: int
    misses: int
    looked_at: int
    shown_instead: tuple[Company, ...]
    found_instead: tuple[Company, ...]
    comes_with: tuple[Company, ...]


def confusions(
    labels: Sequence[int],
    scores_NC: np.ndarray,
    found_NC: np.ndarray,
    targets_NC: np.ndarray,
    class_names: Sequence[str],
    first: int = FIRST,
) -> list[Confusion]:
    """What classes are confused with and come with.

    Args:
        labels: numbers of the L classes.
        scores_NC: by which images are ranked.
        found_NC: whether an image counts as showing a class, bool (`Decisions.found`).
        targets_NC: multi-hot; NaN where nobody knows, which counts as neither.
        class_names: of the C classes.
        first: false positives to look at.
    """
    together = _count(labels, found_NC, targets_NC)
    found: list[Confusion] = []
    for place, label in enumerate(labels):
        without_N = targets_NC[:, label] == 0
        wrong_N = without_N & found_NC[:, label]
        candidates = np.flatnonzero(wrong_N if wrong_N.any() else without_N)
        looked_at = candidates[np.argsort(-scores_NC[candidates, label], kind="stable")[:first]]
        without, missed = int(without_N.sum()), int(together.missed_L[place])
        chance = _Seen(together.shown_without_LC[place], without)
        found.append(
            Confusion(
                class_names[label], int(wrong_N.sum()), missed, len(looked_at),
                _company(label, _Seen((targets_NC[looked_at] == 1).sum(axis=0), len(looked_at)), chance, class_names),
                _company(label, _Seen(together.falsely_in_missed_LC[place], missed),
                         _Seen(together.falsely_C, len(targets_NC)), class_names),
                _company(label, _Seen(together.shown_with_LC[place], int(together.with_L[place])), chance, class_names),
            )
        )  # fmt: skip
    return found


@dataclass(frozen=True)
class _Together:
    """In how many images each of C classes is shown, or falsely found, besides each of L."""

    with_L: np.ndarray
    missed_L: np.ndarray
    shown_with_LC: np.ndarray
    shown_without_LC: np.ndarray
    falsely_in_missed_LC: np.ndarray
    falsely_C: np.ndarray


class _Seen(NamedTuple):
    """In how many of some images each class is seen."""

    count_C: np.ndarray
    images: int


def _count(labels: Sequence[int], found_NC: np.ndarray, targets_NC: np.ndarray) -> _Together:
    """All counts at once, for a count per class takes C times as long; a block of images at a time."""
    num_classes, of = targets_NC.shape[1], list(labels)
    pairs_3LC = np.zeros((3, len(of), num_classes))
    with_L, missed_L, falsely_C = np.zeros(len(of)), np.zeros(len(of)), np.zeros(num_classes)
    for rows in row_blocks(targets_NC.shape):
        found_BC, targets_BC = found_NC[rows], targets_NC[rows]
        shown_BC, falsely_BC = targets_BC == 1, found_BC & (targets_BC == 0)
        missed_BL = shown_BC[:, of] & ~found_BC[:, of]
        of_these = (shown_BC[:, of], targets_BC[:, of] == 0, missed_BL)
        for pairs_LC, these_BL, seen_BC in zip(pairs_3LC, of_these, (shown_BC, shown_BC, falsely_BC), strict=True):
            pairs_LC += these_BL.T.astype(np.float32) @ seen_BC.astype(np.float32)
        with_L += shown_BC[:, of].sum(axis=0)
        missed_L += missed_BL.sum(axis=0)
        falsely_C += falsely_BC.sum(axis=0)
    shown_with_LC, shown_without_LC, falsely_in_missed_LC = pairs_3LC
    return _Together(with_L, missed_L, shown_with_LC, shown_without_LC, falsely_in_missed_LC, falsely_C)


def _company(label: int, these: _Seen, others: _Seen, class_names: Sequence[str]) -> tuple[Company, ...]:
    """The classes that say most about these images: frequent in them, and surely more so than in the others.

    Their order is that of their shares of the Kullback-Leibler divergence, share x log(lift).
    """
    if not these.images:
        return ()
    share_C = these.count_C / these.images
    chance_C = others.count_C / max(others.images, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift_C = share_C / chance_C
    # Where hardly any of the others has it, or all do, chance is taken as if half an image was otherwise.
    half = 0.5 / max(others.images, 1)
    usual_C = np.clip(chance_C, half, 1 - half)
    told_C = share_C * np.log(np.maximum(share_C, 1e-12) / usual_C)
    deviations_C = (share_C - usual_C) / np.sqrt(usual_C * (1 - usual_C) / these.images)
    worth_it_C = (these.count_C >= min(_FEWEST, these.images)) & (deviations_C > _SURE)
    worth_it_C[label] = False
    named = [other for other in np.argsort(-told_C, kind="stable") if worth_it_C[other]]
    return tuple(
        Company(class_names[other], int(these.count_C[other]), float(share_C[other]), float(lift_C[other]))
        for other in named[:_SHOWN]
    )
