"""Balanced asymmetric loss (BAL) of LM-CLIP (IEEE Access 13, 2025), after its released code."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from cprfl.losses.asymmetric import AsymmetricLoss
from cprfl.losses.counts import positive_counts
from cprfl.losses.numerics import known_entries, reduced


class BalancedAsymmetricLoss(nn.Module):
    """Asymmetric loss with label smoothing, and positives of rare classes weighted up.

    With the weight w_i = (n_min / n_i)^class_weight_power, which is (N / n_i)^power divided by its maximum, and
    y' = (1 - label_smoothing) y + label_smoothing / c, an entry costs

        -f [ y' (1 + w_i) log p + (1 - y) log(1 - p_m) ],   f = (1 - p)^gamma_pos for a positive, p_m^gamma_neg else,

    with p and p_m as in `AsymmetricLoss`. As in the released code, only the first term is smoothed, so a negative has a
    share of it, and gradients pass through f. Ours: f is chosen by y, where the released code mixes both by the
    smoothed label (which moves p by label_smoothing / c at most); and the maximum that logits are divided by is at
    least 1, so that negative and tiny ones neither flip nor explode. LM-CLIP adds CLIP's contrastive loss and draws
    images by weight; neither belongs to this class.

    Args:
        class_counts: training images per class, [c]; none counts as one.
        gamma_neg: focusing of the negatives.
        gamma_pos: focusing of the positives.
        clip: probability below which a negative costs nothing.
        label_smoothing: share of a positive's label that is spread over all classes.
        class_weight_power: 1.35 (VOC-LT) or 1.6 (COCO-LT).
        divide_by_max: divide the logits by the largest of the batch before the sigmoid, as the released code does. Off,
            because it bounds p by sigmoid(1) = 0.73 and makes an image's loss depend on the batch that it is in.
        detach_focal_weight: treat f as a constant in the backward pass.
        reduction: ``mean`` over the known entries, or ``none``: 0 at the unknown ones.
    """

    class_weight_C: Tensor

    def __init__(
        self,
        class_counts: np.ndarray | Tensor,
        gamma_neg: NonNegativeFloat = 9.8,
        gamma_pos: NonNegativeFloat = 0.0,
        clip: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        class_weight_power: NonNegativeFloat = 1.6,
        divide_by_max: bool = False,
        detach_focal_weight: bool = False,
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        counts_C = positive_counts(class_counts)
        self.asymmetric = AsymmetricLoss(gamma_neg, gamma_pos, clip, detach_focal_weight)
        self.label_smoothing, self.divide_by_max, self.reduction = label_smoothing, divide_by_max, reduction
        self.register_buffer("class_weight_C", (counts_C.min() / counts_C) ** class_weight_power)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        if self.divide_by_max:
            logits = logits / logits.max().clamp(min=1)  # unknown ones are 0, below 1
        smoothed = (1 - self.label_smoothing) * targets + self.label_smoothing / targets.shape[-1]
        positive_weight = smoothed * (1 + self.class_weight_C.to(logits.dtype))
        loss = self.asymmetric.elementwise(logits, targets, positive_weight)
        return reduced(loss, unknown, self.reduction)
