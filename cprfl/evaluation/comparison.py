"""Challenger against champion on the same images: how much better, how surely, and what the rules say to that."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from cprfl.config import Config
from cprfl.evaluation.intervals import drawn, means, weighted_precision
from cprfl.evaluation.metrics import Evaluation


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

    Where a target is NaN, of which nobody knows, the image is left out of its class.
    """
    found = []
    for weights_NS in drawn(len(targets), resamples, seed):
        new_S, old_S = (
            np.nan_to_num(means(weighted_precision(scores, targets, weights_NS)))
            for scores in (challenger_scores, champion_scores)
        )
        found.append(100 * (new_S - old_S))
    return np.concatenate(found)
