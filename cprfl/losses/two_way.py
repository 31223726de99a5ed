"""Two-way multi-label loss (Kobayashi, CVPR 2023)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor, nn

from cprfl.losses.numerics import known_entries


class TwoWayLoss(nn.Module):
    """Compares positives with negatives, across the classes of an image and across the images of a class.

    For a row of logits z with positives P and negatives Q, at temperatures T_pos and T_neg,

        softplus( T_neg log sum_Q exp(z / T_neg) + T_pos log sum_P exp(-z / T_pos) ),

    a smooth form of: the highest negative less the lowest positive. The loss is the mean over images (rows of the
    batch) plus the mean over classes (its columns), so it depends on which images a batch has.

    As in the author's code, the means are over images and classes with a positive in the batch. One that has no
    negative there costs nothing, exactly; in the author's code nearly so. A batch without positives costs nothing.
    Entries of which nobody knows are on neither side.

    Args:
        temperature_pos: T_pos, 4 in the author's code.
        temperature_neg: T_neg, 1 there.
    """

    def __init__(self, temperature_pos: PositiveFloat = 4.0, temperature_neg: PositiveFloat = 1.0) -> None:
        super().__init__()
        self.temperature_pos, self.temperature_neg = temperature_pos, temperature_neg

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of ``logits`` and multi-hot ``targets``, both [..., B, c]; see `known_entries`."""
        logits, targets, unknown = known_entries(logits, targets)
        positive = targets > 0
        negative = ~(positive | unknown)
        return self._one_way(logits, positive, negative, dim=-1) + self._one_way(logits, positive, negative, dim=-2)

    def _one_way(self, logits: Tensor, positive: Tensor, negative: Tensor, dim: int) -> Tensor:
        """Mean over the rows along ``dim`` that have a positive."""
        shown = positive.any(dim=dim)
        compared = shown & negative.any(dim=dim)
        # A row with nothing to compare takes all its entries on both sides: its value is dropped below, and a sum over
        # nothing would have a gradient of NaN.
        dropped = ~compared.unsqueeze(dim)
        hardest_pos = self._soft_max(-logits, positive | dropped, self.temperature_pos, dim)
        hardest_neg = self._soft_max(logits, negative | dropped, self.temperature_neg, dim)
        costs = torch.where(compared, F.softplus(hardest_neg + hardest_pos), 0.0)
        return costs.sum() / shown.sum().clamp(min=1)

    @staticmethod
    def _soft_max(values: Tensor, chosen: Tensor, temperature: float, dim: int) -> Tensor:
        scaled = (values / temperature).masked_fill(~chosen, -torch.inf)
        return temperature * scaled.logsumexp(dim=dim)
