"""Losses for long-tailed multi-label targets; every one takes (logits, targets), both [..., c]."""

from cprfl.losses.asymmetric import AsymmetricLoss
from cprfl.losses.distribution_balanced import DistributionBalancedLoss
from cprfl.losses.focal import WeightedFocalLoss

__all__ = ["AsymmetricLoss", "DistributionBalancedLoss", "WeightedFocalLoss"]
