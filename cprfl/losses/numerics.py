"""What every loss does with its inputs and its entries, and powers whose gradient is finite at zero."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def full_precision(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in float32 where they came in half precision, and targets of the same type; both [..., c]."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits, targets.to(logits.dtype)


def known_entries(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits and targets as of `full_precision` with 0 where the target is unknown, and where that is; all [..., c].

    A target of NaN is unknown. Its logit is replaced before anything is computed of it, so that it gets a gradient of
    exactly 0; its target of 0 adds nothing to a sum over an image's labels.
    """
    logits, targets = full_precision(logits, targets)
    unknown = targets.isnan()
    return logits.masked_fill(unknown, 0), targets.masked_fill(unknown, 0), unknown


def reduced(loss: Tensor, unknown: Tensor, reduction: Literal["mean", "sum", "none"]) -> Tensor:
    """The mean or the sum of the known entries of a loss, or all entries with 0 at the unknown ones.

    Without known entries the mean is 0.

    Args:
        loss: of each entry, finite.
        unknown: which are left out, of the same shape.
        reduction: ``mean``, ``sum`` or ``none``.
    """
    loss = loss.masked_fill(unknown, 0)
    if reduction == "mean":
        return loss.mean() * scale_of_mean(unknown, loss.dtype)
    return loss.sum() if reduction == "sum" else loss


def scale_of_mean(unknown: Tensor, dtype: torch.dtype) -> Tensor:
    """What makes the mean over all entries, of which the unknown ones are 0, that over the known ones; a scalar.

    Exactly 1 where all are known, and computed without waiting for the device.
    """
    entries = unknown.numel()
    return entries / (entries - unknown.sum(dtype=dtype)).clamp(min=1)


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
