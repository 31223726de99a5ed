"""Focal loss (Lin et al., 2017), class-balanced focal loss (Cui et al., 2019) and plain re-weighting.

As implemented beside the Distribution-Balanced loss (Wu et al., ECCV 2020), whose tables they appear in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from cprfl.losses.counts import positive_counts
from cprfl.losses.numerics import focal_factor, known_entries, reduced, scale_of_mean

Reduction = Literal["mean", "none"]


class WeightedFocalLoss(nn.Module):
    """balance (1 - p_t)^gamma w BCE, element by element; w is 1, per class, or per image (the mean over its classes).

    Args:
        gamma: exponent; 0 leaves weighted cross-entropy.
        balance: scale.
        class_weight_C: weight of each class; none for 1.
        per_image: an image's entries all get the mean weight of the classes it shows (mode ``average_w``); an
            all-negative image gets the mean over all classes.
        reduction: ``mean`` over the known entries, or ``none``: 0 at the unknown ones.
    """

    class_weight_C: Tensor | None

    def __init__(
        self,
        gamma: float,
        balance: float,
        class_weight_C: Tensor | None = None,
        per_image: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("class_weight_C", class_weight_C)
        self.per_image, self.gamma, self.balance, self.reduction = per_image, gamma, balance, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        entropy_BC = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss_BC = self.balance * focal_factor(entropy_BC, self.gamma) * entropy_BC
        if self.class_weight_C is not None:
            weight_C = self.class_weight_C.to(logits.dtype)
            loss_BC = loss_BC * (self._image_weight(targets, weight_C)[..., None] if self.per_image else weight_C)
        return reduced(loss_BC, unknown, self.reduction)

    @staticmethod
    def _image_weight(targets: Tensor, weight_C: Tensor) -> Tensor:
        shown_B = targets.sum(dim=-1)
        # Not a matrix product, which autocast would compute in half precision.
        mean_B = (targets * weight_C).sum(dim=-1) / shown_B.clamp(min=1)
        return torch.where(shown_B > 0, mean_B, weight_C.mean())


def focal(gamma: NonNegativeFloat = 2.0, balance: PositiveFloat = 2.0) -> WeightedFocalLoss:
    """Focal loss with one weight for all classes."""
    return WeightedFocalLoss(gamma, balance)


def class_balanced_focal(
    class_counts: np.ndarray,
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.9,
    gamma: NonNegativeFloat = 2.0,
    balance: PositiveFloat = 2.0,
) -> WeightedFocalLoss:
    """Focal loss weighted by the effective number of images, (1 - beta) / (1 - beta^n), averaged over an image.

    A class without training images weighs as one with a single image.
    """
    return WeightedFocalLoss(gamma, balance, (1 - beta) / (1 - beta ** positive_counts(class_counts)), per_image=True)


def reweighted(class_counts: np.ndarray, num_images: int) -> WeightedFocalLoss:
    """Binary cross-entropy weighted by sqrt(N / n_i): RW in the tables.

    A class without training images weighs as one with a single image, sqrt(N).
    """
    return WeightedFocalLoss(0.0, 1.0, (num_images / positive_counts(class_counts)).sqrt())


class CrossEntropy(nn.Module):
    """One of torch's means of binary cross-entropy, over the known entries.

    Args:
        mean: of logits, targets and a ``weight`` of each entry, all [B, c].
    """

    def __init__(self, mean: Callable[..., Tensor]) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [B, c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        known = (~unknown).to(logits.dtype)
        return self.mean(logits, targets, weight=known) * scale_of_mean(unknown, logits.dtype)


def binary_cross_entropy() -> CrossEntropy:
    """Binary cross-entropy."""
    return CrossEntropy(F.binary_cross_entropy_with_logits)


def soft_margin() -> CrossEntropy:
    """Multi-label soft margin (MLS in the tables): the mean over classes of binary cross-entropy.

    With a mean over images it has the value of `binary_cross_entropy`; the papers list the two apart.
    """
    return CrossEntropy(F.multilabel_soft_margin_loss)
