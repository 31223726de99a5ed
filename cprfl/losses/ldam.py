"""Label-distribution-aware margins (Cao et al., NeurIPS 2019) for multi-label targets."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from cprfl.losses.counts import positive_counts
from cprfl.losses.numerics import known_entries, scale_of_mean


class LDAMLoss(nn.Module):
    """Binary cross-entropy that asks more of the positives of rare classes: BCE(scale (z_i - m_i y_i), y_i).

    The margin is m_i = max_margin (n_min / n_i)^(1/4): proportional to n_i^(-1/4) as the paper's equation for two
    classes derives it, and scaled so that the rarest class has the largest, as in the paper's code.

    The paper is about one label an image, with a softmax. The row "LDAM" of the multi-label tables (first in Wu et al.,
    ECCV 2020) was made with code that is not in their repository, so this form is ours: a sigmoid for each class, the
    margin on positives alone, no deferred re-weighting, the mean over all entries, and a scale of 1.

    Args:
        class_counts: training images per class, [c]; none counts as one, and has the largest margin.
        max_margin: the largest margin, in units of a logit.
        scale: what logits less margins are multiplied by. LDAM's own 30 belongs to logits that are cosines, in [-1, 1];
            the methods here scale theirs themselves.
        reduction: ``mean`` over the known entries, or ``none``: 0 at the unknown ones.
    """

    margin_C: Tensor

    def __init__(
        self,
        class_counts: np.ndarray | Tensor,
        max_margin: NonNegativeFloat = 0.5,
        scale: PositiveFloat = 1.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> None:
        super().__init__()
        counts_C = positive_counts(class_counts)
        self.scale, self.reduction = scale, reduction
        self.register_buffer("margin_C", max_margin * (counts_C.min() / counts_C) ** 0.25)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        shifted_BC = self.scale * (logits - self.margin_C.to(logits.dtype) * targets)
        known = (~unknown).to(logits.dtype)
        loss = F.binary_cross_entropy_with_logits(shifted_BC, targets, weight=known, reduction=self.reduction)
        return loss * scale_of_mean(unknown, loss.dtype) if self.reduction == "mean" else loss
