"""What a model is built from, and the checks and layers that models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cprfl.config import Config
from cprfl.errors import ShapeError


@dataclass(frozen=True)
class ModelInputs:
    """What data set and encoders determine.

    Attributes:
        num_classes: c.
        feature_dim: D, channels of a grid cell.
        text_embeddings_CM: one embedding per class.
        feature_mean_D: mean of each channel over all cells of the training images; for models that standardize.
        feature_std_D: standard deviation likewise.
    """

    num_classes: int
    feature_dim: int
    text_embeddings_CM: Tensor
    feature_mean_D: Tensor
    feature_std_D: Tensor


class ModelConfig(Config):
    """Settings of every model. ``standardize``: bring each channel to mean 0 and deviation 1 first."""

    standardize: bool = False

    @abstractmethod
    def build(self, inputs: ModelInputs) -> nn.Module:
        """The model, freshly initialised from torch's random state."""

    def standardization(self, inputs: ModelInputs) -> nn.Module:
        """The first layer of a model: what ``standardize`` asks for, with the statistics of the training images."""
        return Standardize(inputs.feature_mean_D, inputs.feature_std_D) if self.standardize else nn.Identity()


class Standardize(nn.Module):
    """Subtract a fixed mean and divide by a fixed deviation, both [D]; a constant channel becomes 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean_D: Tensor, std_D: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean_D.clone())
        self.register_buffer("std", std_D.clamp(min=1e-6))

    def forward(self, features_BVD: Tensor) -> Tensor:
        """[B, V, D] to [B, V, D]."""
        return (features_BVD - self.mean) / self.std


def check_features(features_BVD: Tensor, feature_dim: int) -> None:
    """Refuse features that the model was not built for.

    Raises:
        ShapeError: naming both shapes.
    """
    if features_BVD.ndim != 3 or features_BVD.shape[-1] != feature_dim:
        raise ShapeError(
            f"features have shape {list(features_BVD.shape)}, the model takes [images, cells, {feature_dim}]; "
            "train and predict with the same encoder (encoder.model, encoder.layer, encoder.project)"
        )


def feature_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] over images and cells of batches of grids [n, V, D]."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for grids_NVD in batches:
        values = grids_NVD.flatten(0, 1).double()
        count, total, squares = count + len(values), total + values.sum(dim=0), squares + values.square().sum(dim=0)
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()
