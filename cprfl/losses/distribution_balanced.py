"""Distribution-Balanced loss (Wu et al., ECCV 2020), element-wise as in its own code."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from cprfl.losses.counts import positive_counts


class DistributionBalancedLoss(nn.Module):
    """Re-balanced weights for images that several classes would sample, and negative-tolerant regularisation.

    With n_i images of class i among N, and the labels y of an image: r_i = (1 / n_i) / sum_j y_j / n_j and the weight
    is w_i = map_alpha + sigmoid(map_beta (r_i - map_gamma)). Logits are shifted by
    nu_i = -(init_bias / neg_scale) log(N / n_i - 1); negatives are scaled by neg_scale, and their weight divided by it.

    Args:
        class_counts: training images per class, [c].
        num_images: N.
        focal: multiply by balance (1 - p_t)^gamma, where p_t is taken element by element. (The copies of this loss in
            LMPT, CPRFL and HP-DVAL average p_t over the batch; this is the original.)
        neg_scale: 5 (VOC-LT) or 2 (COCO-LT).
        init_bias: kappa.
        map_alpha: smallest weight.
        map_beta: steepness of the map.
        map_gamma: 0.3 (VOC-LT) or 0.2 (COCO-LT).
        gamma: exponent of the focal factor.
        balance: its scale.
        reduction: ``mean`` or ``none``.

    Raises:
        DatasetError: where a class has no training image.
    """

    map_weight_C: Tensor
    bias_C: Tensor

    def __init__(
        self,
        class_counts: np.ndarray | Tensor,
        num_images: int,
        focal: bool = True,
        neg_scale: PositiveFloat = 2.0,
        init_bias: NonNegativeFloat = 0.05,
        map_alpha: NonNegativeFloat = 0.1,
        map_beta: PositiveFloat = 10.0,
        map_gamma: float = 0.2,
        gamma: NonNegativeFloat = 2.0,
        balance: PositiveFloat = 2.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        counts_C = positive_counts(class_counts)
        self.focal, self.neg_scale, self.reduction = focal, neg_scale, reduction
        self.map_alpha, self.map_beta, self.map_gamma = map_alpha, map_beta, map_gamma
        self.gamma, self.balance = gamma, balance
        # A class that every image shows would have an infinite bias.
        odds_C = (num_images / counts_C - 1).clamp(min=1 / num_images)
        self.register_buffer("map_weight_C", 1 / counts_C)
        self.register_buffer("bias_C", -init_bias / neg_scale * odds_C.log())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; half precision is computed in float32."""
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        targets = targets.to(logits.dtype)
        inverse_C = self.map_weight_C.to(logits.dtype)
        # An all-negative image has no class to be sampled by: r is infinite, and its weight the largest.
        ratio_BC = inverse_C / (targets @ inverse_C)[..., None]
        weight_BC = self.map_alpha + torch.sigmoid(self.map_beta * (ratio_BC - self.map_gamma))
        scale_BC = targets + (1 - targets) * self.neg_scale
        shifted_BC = (logits + self.bias_C.to(logits.dtype)) * scale_BC
        entropy_BC = F.binary_cross_entropy_with_logits(shifted_BC, targets, reduction="none")
        loss_BC = weight_BC / scale_BC * entropy_BC
        if self.focal:
            loss_BC = self.balance * (-torch.expm1(-entropy_BC)) ** self.gamma * loss_BC
        return loss_BC.mean() if self.reduction == "mean" else loss_BC
