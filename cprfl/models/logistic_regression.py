"""Logistic regression on pooled frozen features: what anybody would try first, and what every method has to beat."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field, PositiveFloat
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.evaluation.metrics import average_precision
from cprfl.models.base import ClosedFormConfig, Facts, Features
from cprfl.models.pooled import PooledLinear, fold_of_each, standardized

MAX_ITERATIONS = 1000


class LogisticRegression(PooledLinear):
    """One L2-regularised convex problem per class on the mean and the maximum over an image's cells, standardised.

    scikit-learn's solver; the strength of the regularisation is chosen on folds of the training images.
    """

    class Config(ClosedFormConfig):
        """``strengths``: scikit-learn's C, of which the best on ``num_folds`` folds is taken; one is taken as it is."""

        name: Literal["logistic_regression"] = "logistic_regression"
        strengths: list[PositiveFloat] = Field(default=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3], min_length=1)
        num_folds: int = Field(default=5, ge=2)

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> LogisticRegression:
            """The regression before it is fitted; text embeddings play no part in it."""
            return LogisticRegression(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(facts)
        self.config = config

    def fit(self, features: Features) -> None:
        """See `Method.fit`."""
        standardized_NF, targets, mean_F, std_F = standardized(features)
        # With an L2 penalty the solution lies in the span of the images: rotated there, n dimensions are enough.
        left_NK, singular_K, right_KF = np.linalg.svd(standardized_NF, full_matrices=False)
        rotated_NK = left_NK * singular_K
        weight_CK, bias_C = solve(rotated_NK, targets, self._best_strength(rotated_NK, targets))
        self.take(mean_F, std_F, weight_CK @ right_KF, bias_C)

    def _best_strength(self, features_NK: np.ndarray, targets_NC: np.ndarray) -> float:
        """The strength with the highest mean average precision over all images, each scored when held out."""
        strengths: Sequence[float] = self.config.strengths
        if len(strengths) == 1:
            return strengths[0]
        folds = self.config.num_folds
        fold_N = fold_of_each(targets_NC, folds)
        found = []
        for strength in strengths:
            logits_NC = np.zeros(targets_NC.shape)
            for fold in range(folds):
                held_out = fold_N == fold
                weight_CK, bias_C = solve(features_NK[~held_out], targets_NC[~held_out], strength)
                logits_NC[held_out] = features_NK[held_out] @ weight_CK.T + bias_C
            found.append(np.nanmean(average_precision(logits_NC, targets_NC)))
        return strengths[int(np.argmax(found))]


def solve(features_NK: np.ndarray, targets_NC: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [C, K] and biases [C] of one logistic regression per class, on the images of which it is known.

    A class that all or none of these show has no weights, and a bias that says so: the log odds of half an image.

    Args:
        features_NK: of n images.
        targets_NC: multi-hot, NaN where nobody knows.
        strength: scikit-learn's C.
    """
    num_classes = targets_NC.shape[1]
    weight_CK, bias_C = np.zeros((num_classes, features_NK.shape[1])), np.zeros(num_classes)
    for label in range(num_classes):
        known_N = ~np.isnan(targets_NC[:, label])
        shown_n = targets_NC[known_N, label] > 0
        positives, negatives = int(shown_n.sum()), int((~shown_n).sum())
        if not positives or not negatives:
            bias_C[label] = np.log((positives + 0.5) / (negatives + 0.5))
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = ScikitLogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
            model.fit(features_NK[known_N], shown_n)
        weight_CK[label], bias_C[label] = model.coef_[0], model.intercept_[0]
    return weight_CK, bias_C
