"""What every loss does with its inputs, and powers whose gradient is finite at zero."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 where they came in half precision, and targets of the same type; both [..., c]."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits, targets.to(logits.dtype)


def power(base: Tensor, exponent: float) -> Tensor:
    """base ** exponent of a base >= 0, with 0 ** 0 = 1 and a gradient that is finite at 0 for every exponent >= 0."""
    if exponent == 0:
        return torch.ones_like(base)
    if exponent < 1:  # the slope at 0 is infinite, and infinity times a gradient that has underflowed is NaN
        base = base.clamp(min=torch.finfo(base.dtype).tiny)
    return base**exponent


def focal_factor(entropy: Tensor, gamma: float) -> Tensor:
    """(1 - p_t)^gamma (Lin et al., 2017), element by element, from the cross-entropy -log p_t."""
    return power(-torch.expm1(-entropy), gamma)
