"""Probabilities of logits: one sigmoid for each class, fitted to images that the model has not seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np
from scipy.special import expit

from cprfl.evaluation.blocks import columns, row_blocks, shown_classes

Calibration = Literal["platt", "temperature", "none"]
_Part = tuple[np.ndarray, np.ndarray]  # scaled logits and their targets

_LEAST, _MOST = 1e-2, 1e3  # of a slope, for logits of unit variance: never turned round, never a step


def calibrate(
    logits_NC: np.ndarray, targets_NC: np.ndarray, groups: Iterable[np.ndarray], kind: Calibration, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept [C] of the sigmoids: Platt's (2000), or a temperature for each class (no intercept).

    Classes with few positives lean on others: one sigmoid is fitted to all classes, from there one to each group, and
    from there one to each class. Each step is the most probable sigmoid under a normal prior around the one before,
    with the information that ``strength`` positives of those others carry (their Fisher information over their number
    of positives, times ``strength``). So a class with n positives that are as informative as the others' gets the
    weight n / (n + strength) itself. A class without positives, or without negatives, takes its group's.

    Args:
        logits_NC: of images that the model has not seen.
        targets_NC: multi-hot, NaN where nobody knows.
        groups: indices of classes that lean on each other.
        kind: what is fitted.
        strength: how many positives the others count as.
    """
    num_classes = logits_NC.shape[1]
    slope_C, intercept_C = np.ones(num_classes), np.zeros(num_classes)
    if kind == "none" or all(np.isnan(targets_NC[rows]).all() for rows in row_blocks(targets_NC.shape)):
        return slope_C, intercept_C
    mean, deviation = _mean_and_deviation(logits_NC, targets_NC)
    centre, scale = mean if kind == "platt" else 0.0, deviation or 1.0
    identity = np.array([scale, centre])  # in units of the scaled logits

    def known(logits: np.ndarray, targets: np.ndarray) -> _Part:
        there = ~np.isnan(targets)
        return ((logits - centre) / scale)[there].astype(float), targets[there].astype(float)

    def fitted(classes: np.ndarray, start: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        def parts() -> Iterator[_Part]:
            blocks = row_blocks(logits_NC.shape)
            return (known(logits_NC[rows][:, classes], targets_NC[rows][:, classes]) for rows in blocks)

        return _fit(parts, start, precision, kind == "temperature", strength)

    shown = shown_classes(targets_NC)  # the others' images would pull every sigmoid down
    everything = fitted(np.flatnonzero(shown), identity, np.eye(2))
    group_of: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for members in groups:
        group_of |= dict.fromkeys(members.tolist(), fitted(members[shown[members]], *everything))
    for label, (logits_N, targets_N) in enumerate(columns(logits_NC, targets_NC)):
        if label in group_of:
            own = [known(logits_N, targets_N)].__iter__
            (slope, intercept), _ = _fit(own, *group_of[label], kind == "temperature", strength)
            slope_C[label], intercept_C[label] = slope / scale, intercept - slope * centre / scale
    return slope_C, intercept_C


def _mean_and_deviation(logits_NC: np.ndarray, targets_NC: np.ndarray) -> tuple[float, float]:
    """Of the logits whose targets are known."""

    def parts() -> Iterator[np.ndarray]:
        return (logits_NC[rows][~np.isnan(targets_NC[rows])] for rows in row_blocks(logits_NC.shape))

    count = sum(map(len, parts()))
    mean = sum(part.sum() for part in parts()) / count
    return float(mean), float(np.sqrt(sum(((part - mean) ** 2).sum() for part in parts()) / count))


def _fit(
    parts: Callable[[], Iterable[_Part]],
    start: np.ndarray,
    precision: np.ndarray,
    through_zero: bool,
    strength: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable slope and intercept under a prior, and the precision of the prior that they make."""
    from scipy.optimize import minimize  # takes a second to import

    positives = sum(y_N.sum() for _, y_N in parts())
    if positives == 0 or positives == sum(len(y_N) for _, y_N in parts()):
        return start, precision

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        away = values - start
        value, gradient = away @ precision @ away / 2, precision @ away
        sums_3 = np.sum([_loss(values, z_N, y_N) for z_N, y_N in parts()], axis=0)
        return (sums_3[0] + value) / positives, (sums_3[1:] + gradient) / positives

    bounds = [(_LEAST, _MOST), (0, 0) if through_zero else (-_MOST, _MOST)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    information = np.sum([_information(found, z_N) for z_N, _ in parts()], axis=0)
    return found, strength * information / positives


def _loss(values: np.ndarray, z_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Cross-entropy of a slope and an intercept, and its derivatives by them."""
    u_N = values[0] * z_N + values[1]
    residual_N = expit(u_N) - y_N
    return np.array([(np.logaddexp(0, u_N) - y_N * u_N).sum(), residual_N @ z_N, residual_N.sum()])


def _information(values: np.ndarray, z_N: np.ndarray) -> np.ndarray:
    """Fisher's, of a slope and an intercept, [2, 2]."""
    p_N = expit(values[0] * z_N + values[1])
    weight_N = p_N * (1 - p_N)
    cross = weight_N @ z_N
    return np.array([[weight_N @ z_N**2, cross], [cross, weight_N.sum()]])
