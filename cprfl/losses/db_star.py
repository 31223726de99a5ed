"""DB*, the classification loss of HP-DVAL (IEEE TIP 34, 2025, arXiv 2509.17747), equations 11 to 15."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from cprfl.losses.counts import positive_counts
from cprfl.losses.distribution_balanced import log_odds_of_absence, rebalancing_weight
from cprfl.losses.numerics import focal_factor, known_entries, reduced


class DBStar(nn.Module):
    """The Distribution-Balanced loss with positive logits scaled by their class's share of the images.

    With n_i images of class i among N, the score s_i, the label y_i, lambda = neg_scale, and r_i the
    `rebalancing_weight`, an entry costs

        r_i [ y_i log(1 + exp(-w_i (s_i - v_i))) + (1 - y_i) log(1 + exp(lambda (s_i - v_i))) / lambda ],

    where v_i = init_bias log(N / n_i - 1) and w_i = n_i / max_j n_j. Two things differ from `DistributionBalancedLoss`:
    w_i, which is 1 there; and v_i, which is divided by lambda there and is not here.

    The released code departs from the paper's equations: it has a constant in place of w_i (``pos_scale``) and the
    focal factor (``focal``). In both, as here, the positive term is not divided by its scale.

    Args:
        class_counts: training images per class, [c]; none counts as one.
        num_images: N.
        neg_scale: lambda, 5 (VOC-LT) or 2 (COCO-LT).
        init_bias: kappa.
        map_alpha: smallest re-balancing weight (tau in the paper).
        map_beta: steepness of its map.
        map_gamma: 0.3 (VOC-LT) or 0.2 (COCO-LT) (mu in the paper).
        pos_scale: a constant in place of w_i; 10 (VOC-LT) or 5 (COCO-LT) in the released code, none in the paper.
        focal: multiply by balance (1 - p_t)^gamma, where p_t is taken element by element from the scaled logit, as in
            `DistributionBalancedLoss`; on in the released code, not in the paper.
        gamma: exponent of the focal factor.
        balance: its scale.
        reduction: ``mean`` over the known entries, or ``none``: 0 at the unknown ones.
    """

    counts_C: Tensor
    pos_scale_C: Tensor
    shift_C: Tensor

    def __init__(
        self,
        class_counts: np.ndarray | Tensor,
        num_images: int,
        neg_scale: PositiveFloat = 2.0,
        init_bias: NonNegativeFloat = 0.05,
        map_alpha: NonNegativeFloat = 0.1,
        map_beta: PositiveFloat = 10.0,
        map_gamma: float = 0.2,
        pos_scale: PositiveFloat | None = None,
        focal: bool = False,
        gamma: NonNegativeFloat = 2.0,
        balance: PositiveFloat = 2.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        counts_C = positive_counts(class_counts)
        share_C = counts_C / counts_C.max()
        self.neg_scale, self.focal, self.reduction = neg_scale, focal, reduction
        self.map_alpha, self.map_beta, self.map_gamma = map_alpha, map_beta, map_gamma
        self.gamma, self.balance = gamma, balance
        self.register_buffer("counts_C", counts_C)
        self.register_buffer("pos_scale_C", share_C if pos_scale is None else torch.full_like(share_C, pos_scale))
        self.register_buffer("shift_C", init_bias * log_odds_of_absence(counts_C, num_images))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        shifted_BC = logits - self.shift_C.to(logits.dtype)
        positive_BC = F.softplus(-self.pos_scale_C.to(logits.dtype) * shifted_BC)
        negative_BC = F.softplus(self.neg_scale * shifted_BC)
        weight_BC = rebalancing_weight(targets, self.counts_C, self.map_alpha, self.map_beta, self.map_gamma)
        loss_BC = weight_BC * (targets * positive_BC + (1 - targets) * negative_BC / self.neg_scale)
        if self.focal:
            entropy_BC = targets * positive_BC + (1 - targets) * negative_BC
            loss_BC = self.balance * focal_factor(entropy_BC, self.gamma) * loss_BC
        return reduced(loss_BC, unknown, self.reduction)
