"""What decisions are worth on images with known targets: F1s at their thresholds, and whether probabilities hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cprfl.evaluation.decisions import Decisions
from cprfl.evaluation.metrics import f1_scores

BINS = 10  # of equal width

Reliability = dict[str, list[dict[str, float | int]]]
"""By group: the bins that hold a probability, each with ``from``, ``to``, ``count``, the mean ``probability`` there and
the share that is ``right``."""


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
    found = f1_scores(decisions.found(logits_NC), targets_NC)
    metrics, tables = {f"{name}_decided": value for name, value in found.items()}, dict[str, Reliability]()
    unfitted = Decisions.unfitted(decisions.class_names)
    for suffix, read in (("", decisions), ("_uncalibrated", unfitted)):
        table = reliability(read.probabilities(logits_NC), targets_NC, members)
        tables[f"reliability{suffix}"] = table
        for group, bins in table.items():
            name = f"ECE{suffix}" if group == "total" else f"ECE{suffix}_{group}"
            metrics[name] = calibration_error(bins)
    return metrics, tables


def reliability(probabilities_NC: np.ndarray, targets_NC: np.ndarray, members: Mapping[str, np.ndarray]) -> Reliability:
    """How often probabilities of each height are right, over all images and the classes of a group together.

    A group without known targets is left out; ``total`` has all classes.
    """
    groups = {"total": np.arange(targets_NC.shape[1]), **members}
    tables = {name: _table(probabilities_NC[:, classes], targets_NC[:, classes]) for name, classes in groups.items()}
    return {name: bins for name, bins in tables.items() if bins}


def calibration_error(bins: list[dict[str, float | int]]) -> float:
    """Expected calibration error, percent: the mean distance, over all probabilities, of a bin's mean to its share."""
    count_B, probability_B, right_B = (
        np.array([row[name] for row in bins], dtype=float) for name in ("count", "probability", "right")
    )
    return float(100 * (count_B * np.abs(probability_B - right_B)).sum() / count_B.sum())


def _table(probabilities: np.ndarray, targets: np.ndarray) -> list[dict[str, Any]]:
    known = ~np.isnan(targets)
    values, right = probabilities[known].astype(float), targets[known].astype(float)
    place = np.minimum((values * BINS).astype(int), BINS - 1)
    count_B, sum_B, right_B = (np.bincount(place, weights, BINS) for weights in (None, values, right))
    return [
        {"from": b / BINS, "to": (b + 1) / BINS, "count": int(count_B[b]),
         "probability": float(sum_B[b] / count_B[b]), "right": float(right_B[b] / count_B[b])}
        for b in np.flatnonzero(count_B).tolist()
    ]  # fmt: skip
