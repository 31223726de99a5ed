"""Class counts as the losses that weigh by them need them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cprfl.errors import DatasetError


def positive_counts(class_counts: np.ndarray | Tensor) -> Tensor:
    """Training images per class, float64 [c].

    Raises:
        DatasetError: where a class has none, so that its weight would be infinite.
    """
    counts_C = torch.as_tensor(class_counts).double()
    absent = (counts_C <= 0).nonzero().flatten().tolist()
    if absent:
        raise DatasetError(
            f"classes with index {absent[:10]} have no training image, and this loss weighs by class counts; "
            "drop them, add images, or choose loss.name=asymmetric"
        )
    return counts_C
