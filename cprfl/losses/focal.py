"""Focal loss (Lin et al., 2017), class-balanced focal loss (Cui et al., 2019) and plain re-weighting.

As implemented beside the Distribution-Balanced loss (Wu et al., ECCV 2020), whose tables they appear in.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from cprfl.config import Config as BaseConfig
from cprfl.losses.counts import positive_counts

Reduction = Literal["mean", "none"]


class WeightedFocalLoss(nn.Module):
    """balance (1 - p_t)^gamma w BCE, element by element; w is 1, per class, or per image (the mean over its classes).

    Args:
        class_weight_C: weight of each class; none for 1.
        per_image: an image's entries all get the mean weight of the classes it shows (mode ``average_w``); an
            all-negative image gets the mean over all classes.
        gamma: exponent; 0 leaves weighted cross-entropy.
        balance: scale.
        reduction: ``mean`` or ``none``.
    """

    class_weight_C: Tensor | None

    def __init__(
        self,
        class_weight_C: Tensor | None = None,
        per_image: bool = False,
        gamma: float = 2.0,
        balance: float = 2.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("class_weight_C", class_weight_C)
        self.per_image, self.gamma, self.balance, self.reduction = per_image, gamma, balance, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; half precision is computed in float32."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        targets = targets.to(logits.dtype)
        entropy_BC = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss_BC = self.balance * entropy_BC
        if self.gamma > 0:
            loss_BC = (-torch.expm1(-entropy_BC)) ** self.gamma * loss_BC
        if self.class_weight_C is not None:
            weight_C = self.class_weight_C.to(logits.dtype)
            loss_BC = loss_BC * (self._image_weight(targets, weight_C)[..., None] if self.per_image else weight_C)
        return loss_BC.mean() if self.reduction == "mean" else loss_BC

    @staticmethod
    def _image_weight(targets: Tensor, weight_C: Tensor) -> Tensor:
        shown_B = targets.sum(dim=-1)
        return torch.where(shown_B > 0, targets @ weight_C / shown_B.clamp(min=1), weight_C.mean())


class FocalConfig(BaseConfig):
    """Focal loss with one weight for all classes."""

    name: Literal["focal"] = "focal"
    gamma: NonNegativeFloat = 2.0
    balance: PositiveFloat = 2.0

    def build(self, class_counts: np.ndarray, num_images: int) -> WeightedFocalLoss:
        """The loss; class counts play no part in it."""
        return WeightedFocalLoss(gamma=self.gamma, balance=self.balance)


class ClassBalancedFocalConfig(BaseConfig):
    """Focal loss weighted by the effective number of images, (1 - beta) / (1 - beta^n), averaged over an image."""

    name: Literal["class_balanced_focal"] = "class_balanced_focal"
    beta: float = Field(default=0.9, gt=0, lt=1)
    gamma: NonNegativeFloat = 2.0
    balance: PositiveFloat = 2.0

    def build(self, class_counts: np.ndarray, num_images: int) -> WeightedFocalLoss:
        """The loss for these class counts."""
        weight_C = (1 - self.beta) / (1 - self.beta ** positive_counts(class_counts))
        return WeightedFocalLoss(weight_C, per_image=True, gamma=self.gamma, balance=self.balance)


class ReweightedConfig(BaseConfig):
    """Binary cross-entropy weighted by sqrt(N / n_i): RW in the tables."""

    name: Literal["reweighted"] = "reweighted"

    def build(self, class_counts: np.ndarray, num_images: int) -> WeightedFocalLoss:
        """The loss for these class counts."""
        return WeightedFocalLoss((num_images / positive_counts(class_counts)).sqrt(), gamma=0.0, balance=1.0)


class BceConfig(BaseConfig):
    """Binary cross-entropy."""

    name: Literal["bce"] = "bce"

    def build(self, class_counts: np.ndarray, num_images: int) -> nn.Module:
        """The loss; class counts play no part in it."""
        return nn.BCEWithLogitsLoss()


class SoftMarginConfig(BaseConfig):
    """Multi-label soft margin (MLS in the tables): the mean over classes of binary cross-entropy.

    With a mean over images it is `BceConfig`'s value; the papers list the two apart.
    """

    name: Literal["soft_margin"] = "soft_margin"

    def build(self, class_counts: np.ndarray, num_images: int) -> nn.Module:
        """The loss; class counts play no part in it."""
        return nn.MultiLabelSoftMarginLoss()
