"""Losses for long-tailed multi-label targets; every one takes (logits, targets), both [B, c]."""

from cprfl.losses.asymmetric import AsymmetricLoss

__all__ = ["AsymmetricLoss"]
