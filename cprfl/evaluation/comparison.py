"""Challenger against champion on the same images: how much better, how surely, and what the rules say to that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from cprfl.config import Config
from cprfl.evaluation.metrics import Evaluation

_CHUNK = 2**23  # weights of a class's images held at once


class PromotionConfig(Config):
    """When a challenger replaces the champion. Points are percentage points of average precision.

    Attributes:
        min_gain: points of total mAP that it must gain at least.
        max_group_loss: points that none of head, medium and tail may lose more than.
        class_floors: average precision, percent, that it must reach on each of the classes named here.
        confidence: share of the bootstrap's resamples in which its mAP must be the higher; 0 asks for no significance.
        resamples: of the images, drawn with replacement, the same for both models.
    """

    min_gain: NonNegativeFloat = 0.0
    max_group_loss: NonNegativeFloat = 2.0
    class_floors: dict[str, float] = {}
    confidence: float = Field(default=0.95, ge=0, lt=1)
    resamples: PositiveInt = 1000


@dataclass(frozen=True)
class Comparison:
    """What the comparison found.

    Attributes:
        challenger: its metrics, percent.
        champion: those of the champion on the same images.
        gain_interval: points of mAP between which the gain lies in 95 % of the resamples.
        share_better: share of the resamples in which the challenger's mAP is the higher.
        objections: the rules that it breaks, one sentence each; it is promoted where there are none.
    """

    challenger: dict[str, float]
    champion: dict[str, float]
    gain_interval: tuple[float, float]
    share_better: float
    objections: list[str]

    @property
    def promoted(self) -> bool:
        """Whether the challenger breaks no rule."""
        return not self.objections

    @property
    def reason(self) -> str:
        """The decision in one sentence."""
        gain = f"mAP {self.challenger['mAP']:.2f} against {self.champion['mAP']:.2f}"
        if self.objections:
            return f"{gain}; " + "; ".join(self.objections)
        return f"{gain}; better in {100 * self.share_better:.1f} % of the resamples, and no rule is broken"

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON-like values."""
        return {**asdict(self), "promoted": self.promoted, "reason": self.reason}


def compare(
    challenger: Evaluation,
    champion: Evaluation,
    challenger_scores: np.ndarray,
    champion_scores: np.ndarray,
    targets: np.ndarray,
    rules: PromotionConfig,
    seed: int = 0,
) -> Comparison:
    """Compare two models' scores [n, c] of the same images, and apply the rules.

    The bootstrap is paired: each resample draws images with replacement and takes both models' mAP of them, over the
    classes that it shows.
    """
    gains = bootstrap_gains(challenger_scores, champion_scores, targets, rules.resamples, seed)
    share = float((gains > 0).mean())
    new, old = challenger.metrics, champion.metrics
    objections = []
    if new["mAP"] - old["mAP"] < rules.min_gain:
        objections.append(f"it gains {new['mAP'] - old['mAP']:+.2f} points, the rule asks for {rules.min_gain:g}")
    for group in ("mAP_head", "mAP_medium", "mAP_tail"):
        if group in new and group in old and old[group] - new[group] > rules.max_group_loss:
            lost = old[group] - new[group]
            objections.append(f"{group} loses {lost:.2f} points, the rule allows {rules.max_group_loss:g}")
    for name, floor in rules.class_floors.items():
        reached = new.get(f"AP/{name}")
        if reached is not None and reached < floor:
            objections.append(f"AP of {name} is {reached:.2f}, its floor {floor:g}")
    if share < rules.confidence:
        objections.append(
            f"it is better in {100 * share:.1f} % of the resamples, the rule asks for {100 * rules.confidence:g} %"
        )
    low, high = np.quantile(gains, [0.025, 0.975])
    return Comparison(new, old, (float(low), float(high)), share, objections)


def bootstrap_gains(
    challenger_scores: np.ndarray, champion_scores: np.ndarray, targets: np.ndarray, resamples: int, seed: int
) -> np.ndarray:
    """Points of mAP that the challenger gains in each resample of the images, float64 [resamples].

    A resample is a weight for each image: how often it was drawn. Where a target is NaN, of which nobody knows, the
    image is left out of its class.
    """
    rng, images = np.random.default_rng(seed), len(targets)
    shown_C = np.flatnonzero((targets > 0).any(axis=0))
    found = []
    step = max(1, _CHUNK // images)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        weights_SN = rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float32)
        both = []
        for scores in (challenger_scores, champion_scores):
            precision_SC = np.full((size, targets.shape[1]), np.nan)
            for label in shown_C:
                precision_SC[:, label] = weighted_precision(scores[:, label], targets[:, label], weights_SN)
            shown = ~np.isnan(precision_SC)
            both.append(np.where(shown, precision_SC, 0).sum(1) / np.maximum(shown.sum(1), 1))
        found.append(100 * (both[0] - both[1]))
    return np.concatenate(found)


def weighted_precision(scores: np.ndarray, targets: np.ndarray, weights_SN: np.ndarray) -> np.ndarray:
    """Average precision of one class for each row of image weights, a fraction, [S]; NaN where no positive weighs.

    The same as scikit-learn's with ``sample_weight``, for all rows at once.

    Args:
        scores: of the images, [n].
        targets: whether an image shows the class, [n]; NaN where nobody knows, but not everywhere.
        weights_SN: weights of the images.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[~np.isnan(targets[order])]
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # tied scores are one threshold
    hits = np.cumsum(weights_SN[:, order] * (targets[order] > 0), axis=1, dtype=np.float64)[:, ends]
    named = np.cumsum(weights_SN[:, order], axis=1, dtype=np.float64)[:, ends]
    precision = np.divide(hits, named, out=np.zeros_like(hits), where=named > 0)
    steps = np.diff(hits, axis=1, prepend=0.0)
    total = hits[:, -1]
    return np.divide((precision * steps).sum(1), total, out=np.full(len(total), np.nan), where=total > 0)
