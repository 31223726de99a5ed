"""Linear classifiers in closed form on pooled cells: what logistic regression and Gaussian discriminant share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cprfl.data.stratify import stratify
from cprfl.models.base import Facts, Features, Method, check_features


class PooledLinear(Method):
    """Logits linear in the mean and the maximum over an image's cells, standardised."""

    weight_CF: Tensor
    bias_C: Tensor
    mean_F: Tensor
    std_F: Tensor

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.grid_dim = facts.grid_dim
        num_features = 2 * facts.grid_dim
        self.register_buffer("weight_CF", torch.zeros(facts.num_classes, num_features))
        self.register_buffer("bias_C", torch.zeros(facts.num_classes))
        self.register_buffer("mean_F", torch.zeros(num_features))
        self.register_buffer("std_F", torch.ones(num_features))

    def forward(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """Logits [B, C] of grid features [B, V, D]; the summary is not used."""
        check_features(grid_BVD, self.grid_dim)
        return (pooled(grid_BVD) - self.mean_F) / self.std_F @ self.weight_CF.T + self.bias_C

    def take(self, mean_F: Tensor, std_F: Tensor, weight_CF: np.ndarray, bias_C: np.ndarray) -> None:
        """Take what a fit on `standardized` features found."""
        for buffer, value in (
            (self.mean_F, mean_F),
            (self.std_F, std_F),
            (self.weight_CF, torch.from_numpy(weight_CF)),
            (self.bias_C, torch.from_numpy(bias_C)),
        ):
            buffer.copy_(value)


def pooled(grid_BVD: Tensor) -> Tensor:
    """Mean and maximum over the cells, side by side, [B, 2 D]."""
    return torch.cat([grid_BVD.mean(dim=1), grid_BVD.amax(dim=1)], dim=1)


def standardized(features: Features) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    """Pooled features [n, F] of mean 0 and deviation 1, targets [n, C], and the mean and deviation [F] taken out."""
    parts = [(pooled(encoded.grid_BVD.float()), targets_BC) for encoded, targets_BC in features()]
    pooled_NF, targets_NC = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    mean_F, std_F = pooled_NF.mean(dim=0), pooled_NF.std(dim=0, correction=0).clamp(min=1e-6)
    return ((pooled_NF - mean_F) / std_F).double().numpy(), targets_NC.numpy(), mean_F, std_F


def fold_of_each(targets_NC: np.ndarray, num_folds: int) -> np.ndarray:
    """The fold of each image, every class spread over the folds; what is unknown counts as not shown."""
    labels = [np.flatnonzero(targets_C > 0).tolist() for targets_C in targets_NC]
    return stratify(labels, [1 / num_folds] * num_folds, seed=0)
