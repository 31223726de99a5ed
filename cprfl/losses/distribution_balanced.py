"""Distribution-Balanced loss (Wu et al., ECCV 2020), element-wise as in its own code."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from cprfl.losses.counts import positive_counts
from cprfl.losses.numerics import focal_factor, known_entries, reduced


def log_odds_of_absence(counts_C: Tensor, num_images: int) -> Tensor:
    """log(N / n_i - 1), [c]; finite too for a class that every image shows."""
    return (num_images / counts_C - 1).clamp(min=1 / num_images).log()


def rebalancing_weight(targets: Tensor, counts_C: Tensor, alpha: float, beta: float, gamma: float) -> Tensor:
    """Weights for images that several classes would sample: alpha + sigmoid(beta (r_i - gamma)), [..., c].

    With n_i images of class i, and the labels y of an image, r_i = (1 / n_i) / sum_j y_j / n_j, for all classes i. An
    all-negative image has no class to be sampled by: r is infinite, and its weight the largest, 1 + alpha.

    Args:
        targets: multi-hot, [..., c], of the type that is computed in.
        counts_C: n_i, at least 1.
        alpha: smallest weight.
        beta: steepness of the map.
        gamma: the r in its middle.
    """
    inverse_C = (1 / counts_C).to(targets.dtype)
    # Not a matrix product, which autocast would compute in half precision.
    ratio = inverse_C / (targets * inverse_C).sum(dim=-1, keepdim=True)
    return alpha + torch.sigmoid(beta * (ratio - gamma))


class DistributionBalancedLoss(nn.Module):
    """Re-balanced weights for images that several classes would sample, and negative-tolerant regularisation.

    With n_i images of class i among N, the weight w_i is `rebalancing_weight`. Logits are shifted by
    nu_i = -(init_bias / neg_scale) log(N / n_i - 1); negatives are scaled by neg_scale, and their weight divided by it.

    With ``focal: true`` this is the row "DB Focal" of the papers' tables; with ``focal: false`` it is DB-0FL, also
    called "DB without focal": re-balancing and negative-tolerant regularisation alone.

    Args:
        class_counts: training images per class, [c]; none counts as one.
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
        reduction: ``mean`` over the known entries, or ``none``: 0 at the unknown ones.
    """

    counts_C: Tensor
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
        self.register_buffer("counts_C", counts_C)
        self.register_buffer("bias_C", -init_bias / neg_scale * log_odds_of_absence(counts_C, num_images))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        scale_BC = targets + (1 - targets) * self.neg_scale
        shifted_BC = (logits + self.bias_C.to(logits.dtype)) * scale_BC
        entropy_BC = F.binary_cross_entropy_with_logits(shifted_BC, targets, reduction="none")
        weight_BC = rebalancing_weight(targets, self.counts_C, self.map_alpha, self.map_beta, self.map_gamma)
        loss_BC = weight_BC / scale_BC * entropy_BC
        if self.focal:
            loss_BC = self.balance * focal_factor(entropy_BC, self.gamma) * loss_BC
        return reduced(loss_BC, unknown, self.reduction)
