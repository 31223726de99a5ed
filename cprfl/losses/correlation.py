"""CCR: correlations of the predictions calibrated by what the texts say (CVPR 2026)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprfl.errors import ShapeError
from cprfl.losses.numerics import full_precision

# Deviations below this share of a class's predictions are the rounding of float32, not information.
_RELATIVE, _SMALLEST = 1e-5, 1e-12


class CorrelationPenalty(nn.Module):
    """weight * mean over pairs of classes of (correlation of their predictions - cosine of their texts)^2.

    The correlation is Pearson's, over the batch, of the probabilities sigmoid(z). Added to any loss, it asks that
    classes be predicted together as far as their texts are alike.

    The paper's text could not be read; its regulariser is reported as lambda times a norm of the squared difference.
    Ours: the mean over pairs of different classes instead, so that the weight means the same for 20 and 80 classes. In
    distributed training each worker has the correlation over its own images.

    Args:
        text_CM: an embedding of each class's text, of any length; constants here.
        weight: lambda.
    """

    cosine_CC: Tensor

    def __init__(self, text_CM: Tensor, weight: float) -> None:
        super().__init__()
        self.weight = weight
        unit_CM = F.normalize(text_CM.detach().double(), dim=-1)
        self.register_buffer("cosine_CC", unit_CM @ unit_CM.T)

    def forward(self, logits_BC: Tensor) -> Tensor:
        """The penalty, a scalar, computed in float32 or better.

        A pair with a class whose predictions are the same for all images, as in a batch of one, has no correlation; it
        adds nothing to the sum, but it counts among the pairs.

        Raises:
            ShapeError: where the classes are not those of the texts.
        """
        classes = len(self.cosine_CC)
        if logits_BC.ndim != 2 or logits_BC.shape[1] != classes:
            raise ShapeError(
                f"logits of shape {list(logits_BC.shape)} for the correlation penalty; expected [images, {classes}], a "
                "column for each text embedding"
            )
        logits_BC, cosine_CC = full_precision(logits_BC, self.cosine_CC)
        unit_BC, varies_C = _standardised(logits_BC.sigmoid())
        with torch.autocast(logits_BC.device.type, enabled=False):
            correlation_CC = unit_BC.T @ unit_BC
        pairs_CC = (varies_C[:, None] & varies_C).fill_diagonal_(False)
        squares_CC = torch.where(pairs_CC, correlation_CC - cosine_CC, 0.0).square()
        return self.weight * squares_CC.sum() / max(classes * (classes - 1), 1)


def _standardised(p_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from each class's mean, divided by their norm, and which classes have any, [C]."""
    deviation_BC = p_BC - p_BC.mean(dim=0)
    square_C = deviation_BC.square().sum(dim=0)
    rounding_C = (_RELATIVE * p_BC.square().sum(dim=0).sqrt()).clamp(min=_SMALLEST).square()
    varies_C = square_C > rounding_C.detach()
    # The root of a sum that is zero has no gradient, so it is taken of 1 in its place.
    return deviation_BC / torch.where(varies_C, square_C, 1.0).sqrt(), varies_C
