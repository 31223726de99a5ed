"""Asymmetric Loss (Ridnik et al., ICCV 2021), in a form that stays finite for any finite logit."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from cprfl.losses.numerics import known_entries, power, reduced


class AsymmetricLoss(nn.Module):
    """Focal binary cross-entropy with its own focusing for positives and negatives, and shifted negatives.

    With p = sigmoid(z) and p_m = max(p - clip, 0), a positive costs -(1 - p)^gamma_pos log p, a negative
    -(p_m)^gamma_neg log(1 - p_m).

    Args:
        gamma_neg: focusing of the negatives.
        gamma_pos: focusing of the positives.
        clip: probability below which a negative costs nothing; 0 switches the shift off.
        detach_focal_weight: treat the focal factors as constants in the backward pass, as the published code does.
        reduction: ``mean`` over the known entries (CPRFL) or ``sum`` of them (the loss's own code). Learning rates of
            the two do not carry over.
    """

    def __init__(
        self,
        gamma_neg: NonNegativeFloat = 4.0,
        gamma_pos: NonNegativeFloat = 0.0,
        clip: Annotated[float, Field(ge=0, lt=1)] = 0.05,
        detach_focal_weight: bool = True,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip
        self.detach_focal_weight, self.reduction = detach_focal_weight, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        return reduced(self.elementwise(logits, targets, targets), unknown, self.reduction)

    def elementwise(self, logits: Tensor, targets: Tensor, positive_weight: Tensor) -> Tensor:
        """The loss of each entry, [..., c].

        Args:
            logits: z, [..., c].
            targets: multi-hot; they choose the focal factor, and their complement weighs log(1 - p_m).
            positive_weight: what weighs log p; the targets themselves in the loss as published.
        """
        log_p, log_1mp = F.logsigmoid(logits), F.logsigmoid(-logits)
        p_m = log_p.exp()
        if self.clip > 0:
            p_m = (p_m - self.clip).clamp(min=0)
            log_1mp = (log_1mp.exp() + self.clip).clamp(max=1).log()  # 1 - p_m without the cancellation in 1 - p
        entropy = positive_weight * log_p + (1 - targets) * log_1mp
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_focal_weight):
            positive, negative = power(-torch.expm1(log_p), self.gamma_pos), power(p_m, self.gamma_neg)
            weight = targets * positive + (1 - targets) * negative
        return -(weight * entropy)
