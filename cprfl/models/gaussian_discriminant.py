"""Gaussian discriminant with labels: in closed form, and often better than a regression where images are few."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.evaluation.metrics import average_precision
from cprfl.models.base import ClosedFormConfig, Facts, Features
from cprfl.models.pooled import PooledLinear, fold_of_each, standardized


class GaussianDiscriminant(PooledLinear):
    """One discriminant per class against the rest, on the mean and the maximum over an image's cells, standardised.

    All share one covariance, shrunk towards a multiple of the identity (regularised discriminant analysis, Friedman,
    1989): w = S^-1 (m_class - m_rest), with the bias of two Gaussians of the classes' frequencies. As the covariance of
    the images about their common mean is shared, the mean of a class with three images is all that it has to learn.
    """

    class Config(ClosedFormConfig):
        """``shrinkages``: shares of the identity, of which the best on ``num_folds`` folds is taken."""

        name: Literal["gaussian_discriminant"] = "gaussian_discriminant"
        shrinkages: list[float] = Field(default=[0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98], min_length=1)
        num_folds: int = Field(default=5, ge=2)

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> GaussianDiscriminant:
            """The discriminant before it is fitted; text embeddings play no part in it."""
            return GaussianDiscriminant(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__(facts)
        self.config = config

    def fit(self, features: Features) -> None:
        """See `Method.fit`."""
        values_NF, targets_NC, mean_F, std_F = standardized(features)
        shrinkage = self._best_shrinkage(values_NF, targets_NC)
        weight_SCF, bias_SC = discriminants(values_NF, targets_NC, [shrinkage])
        self.take(mean_F, std_F, weight_SCF[0], bias_SC[0])

    def _best_shrinkage(self, values_NF: np.ndarray, targets_NC: np.ndarray) -> float:
        """The share with the highest mean average precision over all images, each scored when held out."""
        shares = self.config.shrinkages
        if len(shares) == 1:
            return shares[0]
        fold_N = fold_of_each(targets_NC, self.config.num_folds)
        scores_SNC = np.zeros((len(shares), *targets_NC.shape))
        for fold in range(self.config.num_folds):
            held_out = fold_N == fold
            if held_out.all():  # a single image
                continue
            weight_SCF, _ = discriminants(values_NF[~held_out], targets_NC[~held_out], shares)
            # without the biases, which differ from fold to fold and rank nothing within one
            scores_SNC[:, held_out] = np.einsum("nf,scf->snc", values_NF[held_out], weight_SCF, optimize=True)
        found = [np.nanmean(average_precision(scores_NC, targets_NC)) for scores_NC in scores_SNC]
        return shares[int(np.argmax(found))]


def discriminants(
    values_NF: np.ndarray, targets_NC: np.ndarray, shrinkages: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [S, C, F] and biases [S, C] for each share of the identity in the covariance.

    In the basis of the covariance's eigenvectors every share is a division; n images span n directions, outside of
    which no mean lies. Means and frequencies of a class are those of the images of which it is known; one that all or
    none of these show has no weights, and a bias that says so.

    Args:
        values_NF: standardised features of n images, all of which make the covariance.
        targets_NC: multi-hot, NaN where nobody knows.
        shrinkages: shares of the identity.
    """
    num_images, num_features = values_NF.shape
    mean_F = values_NF.mean(axis=0)
    _, singular_K, right_KF = np.linalg.svd(values_NF - mean_F, full_matrices=False)
    variance_K = singular_K**2 / num_images
    shown_NC, unknown_NC = (targets_NC > 0).astype(float), np.isnan(targets_NC).astype(float)
    count_C = shown_NC.sum(axis=0)
    rest_C = num_images - unknown_NC.sum(axis=0) - count_C
    usable_C = (count_C > 0) & (rest_C > 0)
    class_CF = shown_NC.T @ values_NF / np.maximum(count_C, 1)[:, None]
    known_CF = mean_F * num_images - unknown_NC.T @ values_NF  # sums over the images
    other_CF = (known_CF - class_CF * count_C[:, None]) / np.maximum(rest_C, 1)[:, None]
    apart_CK = np.where(usable_C[:, None], class_CF - other_CF, 0.0) @ right_KF.T
    middle_CF = (class_CF + other_CF) / 2
    odds_C = np.log((count_C + 0.5) / (rest_C + 0.5))
    weights, biases = [], []
    for share in shrinkages:
        scale_K = (1 - share) * variance_K + share * variance_K.sum() / num_features
        weight_CF = (apart_CK / np.maximum(scale_K, 1e-12)) @ right_KF
        weights.append(weight_CF)
        biases.append(odds_C - (weight_CF * middle_CF).sum(axis=1))
    return np.stack(weights), np.stack(biases)
