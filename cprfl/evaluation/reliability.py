"""What decisions are worth on images with known targets: F1s at their thresholds, and whether probabilities hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cprfl.evaluation.blocks import row_blocks
from cprfl.evaluation.decisions import Decisions
from cprfl.evaluation.metrics import count_hits, f1_of_counts

BINS = 10  # of equal width

Reliability = dict[str, list[dict[str, float | int]]]
"""By group: the bins that hold a probability, each with ``from``, ``to``, ``count``, the mean ``probability`` there and
the share that is ``right``."""


@dataclass
class Bins:
    """Probabilities by their height, added up: of any number of images, a part at a time.

    Attributes:
        count_B: probabilities in each bin.
        probability_B: their sum.
        right_B: how many of them are so.
        variance_B: of `right_B`, were the probabilities what they say.
    """

    count_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS, dtype=np.int64))
    probability_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    right_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    variance_B: np.ndarray = field(default_factory=lambda: np.zeros(BINS))

    def add(self, probabilities: np.ndarray, targets: np.ndarray) -> None:
        """Add probabilities of which it is known whether they are so (their target is not NaN)."""
        known = ~np.isnan(targets)
        values, right = probabilities[known].astype(float), targets[known].astype(float)
        place = np.minimum((values * BINS).astype(int), BINS - 1)
        self.count_B += np.bincount(place, minlength=BINS)
        np.add.at(self.probability_B, place, values)
        np.add.at(self.right_B, place, right)
        np.add.at(self.variance_B, place, values * (1 - values))

    def table(self) -> list[dict[str, float | int]]:
        """The bins that hold a probability, as `Reliability` has them."""
        return [
            {"from": b / BINS, "to": (b + 1) / BINS, "count": int(self.count_B[b]),
             "probability": float(self.probability_B[b] / self.count_B[b]),
             "right": float(self.right_B[b] / self.count_B[b])}
            for b in np.flatnonzero(self.count_B).tolist()
        ]  # fmt: skip


def decided_metrics(
    decisions: Decisions, logits_NC: np.ndarray, targets_NC: np.ndarray, members: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, Reliability]]:
    """Metrics, percent, and the tables ``reliability`` and ``reliability_uncalibrated``.

    Metrics are those of `f1_scores` at the decisions' thresholds (``OF1_decided``, ...), and the expected calibration
    error of all classes and of each group (``ECE``, ``ECE_tail``, ...; before calibration ``ECE_uncalibrated``,
    ``ECE_uncalibrated_tail``, ...).

    Args:
        decisions: how the logits are read.
        logits_NC: of the images.
        targets_NC: multi-hot, NaN where nobody knows.
        members: class indices of each group.
    """
    blocks = row_blocks(logits_NC.shape)
    hits = [count_hits(decisions.found(logits_NC[rows]), targets_NC[rows]) for rows in blocks]
    found = f1_of_counts(np.sum(hits, axis=0))
    metrics, tables = {f"{name}_decided": value for name, value in found.items()}, dict[str, Reliability]()
    unfitted = Decisions.unfitted(decisions.class_names)
    for suffix, read in (("", decisions), ("_uncalibrated", unfitted)):
        table = {name: bins.table() for name, bins in reliability(read, logits_NC, targets_NC, members).items()}
        tables[f"reliability{suffix}"] = table
        for group, rows in table.items():
            name = f"ECE{suffix}" if group == "total" else f"ECE{suffix}_{group}"
            metrics[name] = calibration_error(rows)
    return metrics, tables


def reliability(
    decisions: Decisions, logits_NC: np.ndarray, targets_NC: np.ndarray, members: Mapping[str, np.ndarray]
) -> dict[str, Bins]:
    """How often probabilities of each height are right, over all images and the classes of a group together.

    A group without known targets is left out; ``total`` has all classes. The arguments are those of `decided_metrics`.
    """
    groups = {"total": np.arange(targets_NC.shape[1]), **members}
    found = {name: Bins() for name in groups}
    for rows in row_blocks(logits_NC.shape):
        probability_BC, targets_BC = decisions.probabilities(logits_NC[rows]), targets_NC[rows]
        for name, classes in groups.items():
            found[name].add(probability_BC[:, classes], targets_BC[:, classes])
    return {name: bins for name, bins in found.items() if bins.count_B.any()}


def calibration_error(bins: list[dict[str, float | int]]) -> float:
    """Expected calibration error, percent: the mean distance, over all probabilities, of a bin's mean to its share."""
    count_B, probability_B, right_B = (
        np.array([row[name] for row in bins], dtype=float) for name in ("count", "probability", "right")
    )
    return float(100 * (count_B * np.abs(probability_B - right_B)).sum() / count_B.sum())
