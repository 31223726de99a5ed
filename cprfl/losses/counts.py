"""Class counts as the losses that weigh by them need them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def positive_counts(class_counts: np.ndarray | Tensor) -> Tensor:
    """Training images per class, float64 [c]; a class without any counts as if it had one.

    Such a class (a rare one of which a fold or a subset has no image) has negatives only. Its weight reaches the loss
    through those, and through normalisation by the rarest class, so it need not be right, but it must be finite.
    """
    return torch.as_tensor(class_counts).double().clamp(min=1)
