"""Probabilities of logits: one sigmoid for each class, fitted to images that the model has not seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from scipy.special import expit

Calibration = Literal["platt", "temperature", "none"]

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
    known_NC = ~np.isnan(targets_NC)
    if kind == "none" or not known_NC.any():
        return slope_C, intercept_C
    centre = float(logits_NC[known_NC].mean()) if kind == "platt" else 0.0
    scale = float(logits_NC[known_NC].std()) or 1.0
    scaled_NC = (logits_NC - centre) / scale
    identity = np.array([scale, centre])  # in units of the scaled logits

    def fitted(classes: np.ndarray, start: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        known = known_NC[:, classes]
        z, y = scaled_NC[:, classes][known].astype(float), targets_NC[:, classes][known].astype(float)
        return _fit(z, y, start, precision, kind == "temperature", strength)

    shown: np.ndarray = np.any(targets_NC > 0, axis=0)  # the others' images would pull every sigmoid down
    everything = fitted(np.flatnonzero(shown), identity, np.eye(2))
    for members in groups:
        group = fitted(members[shown[members]], *everything)
        for label in members:
            (slope, intercept), _ = fitted(np.array([label]), *group)
            slope_C[label], intercept_C[label] = slope / scale, intercept - slope * centre / scale
    return slope_C, intercept_C


def _fit(
    z_N: np.ndarray, y_N: np.ndarray, start: np.ndarray, precision: np.ndarray, through_zero: bool, strength: float
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable slope and intercept under a prior, and the precision of the prior that they make."""
    from scipy.optimize import minimize  # takes a second to import

    positives = y_N.sum()
    if positives == 0 or positives == len(y_N):
        return start, precision

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        u_N = values[0] * z_N + values[1]
        residual_N, away = expit(u_N) - y_N, values - start
        value = (np.logaddexp(0, u_N) - y_N * u_N).sum() + away @ precision @ away / 2
        gradient = np.array([residual_N @ z_N, residual_N.sum()]) + precision @ away
        return value / positives, gradient / positives

    bounds = [(_LEAST, _MOST), (0, 0) if through_zero else (-_MOST, _MOST)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12}).x
    p_N = expit(found[0] * z_N + found[1])
    weight_N = p_N * (1 - p_N)
    cross = weight_N @ z_N
    information = np.array([[weight_N @ z_N**2, cross], [cross, weight_N.sum()]])
    return found, strength * information / positives
