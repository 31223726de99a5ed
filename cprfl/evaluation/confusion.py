"""What a class is taken for: what else the images show in which a model finds it, misses it, or in which it is.

Shapes: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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


def confusion(
    label: int,
    scores_NC: np.ndarray,
    found_NC: np.ndarray,
    targets_NC: np.ndarray,
    class_names: Sequence[str],
    first: int = FIRST,
) -> Confusion:
    """What one class is confused with and comes with.

    Args:
        label: number of the class.
        scores_NC: by which images are ranked.
        found_NC: whether an image counts as showing a class, bool (`Decisions.found`).
        targets_NC: multi-hot; NaN where nobody knows, which counts as neither.
        class_names: of the C classes.
        first: false positives to look at.
    """
    without_N, with_N = targets_NC[:, label] == 0, targets_NC[:, label] == 1
    wrong_N, missed_N = without_N & found_NC[:, label], with_N & ~found_NC[:, label]
    candidates = np.flatnonzero(wrong_N if wrong_N.any() else without_N)
    looked_at = candidates[np.argsort(-scores_NC[candidates, label], kind="stable")[:first]]
    everywhere = np.ones(len(targets_NC), dtype=bool)
    shown_NC, falsely_NC = targets_NC == 1, found_NC & (targets_NC == 0)

    def company(rows: np.ndarray, others: np.ndarray, has_NC: np.ndarray) -> tuple[Company, ...]:
        return _company(label, has_NC[rows], has_NC[others], class_names)

    return Confusion(
        class_names[label],
        int(wrong_N.sum()),
        int(missed_N.sum()),
        len(looked_at),
        company(looked_at, without_N, shown_NC),
        company(missed_N, everywhere, falsely_NC),
        company(with_N, without_N, shown_NC),
    )


def _company(label: int, has_nC: np.ndarray, others_nC: np.ndarray, class_names: Sequence[str]) -> tuple[Company, ...]:
    """The classes that say most about these images: frequent in them, and surely more so than in the others.

    Their order is that of their shares of the Kullback-Leibler divergence, share x log(lift).
    """
    if not len(has_nC):
        return ()
    count_C, share_C = has_nC.sum(axis=0), has_nC.mean(axis=0)
    chance_C = others_nC.mean(axis=0) if len(others_nC) else np.zeros_like(share_C)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift_C = share_C / chance_C
    # Where hardly any of the others has it, or all do, chance is taken as if half an image was otherwise.
    half = 0.5 / max(len(others_nC), 1)
    usual_C = np.clip(chance_C, half, 1 - half)
    told_C = share_C * np.log(np.maximum(share_C, 1e-12) / usual_C)
    deviations_C = (share_C - usual_C) / np.sqrt(usual_C * (1 - usual_C) / len(has_nC))
    worth_it_C = (count_C >= min(_FEWEST, len(has_nC))) & (deviations_C > _SURE)
    worth_it_C[label] = False
    named = [other for other in np.argsort(-told_C, kind="stable") if worth_it_C[other]]
    return tuple(
        Company(class_names[other], int(count_C[other]), float(share_C[other]), float(lift_C[other]))
        for other in named[:_SHOWN]
    )
