"""Losses for long-tailed multi-label targets; every one takes (logits, targets), both [..., c].

A target of NaN is one of which nobody knows: its entry is left out, as if it had been deleted, and gets no gradient
(`numerics.known_entries`). In distributed training each worker takes the mean over its own known entries.

A new loss is a class or a function that makes one, and a line in `LOSSES`. `CorrelationPenalty` is none of them: it
takes logits alone, of unknown entries too, and is added to any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field
from torch import nn

from cprfl.losses.asymmetric import AsymmetricLoss
from cprfl.losses.balanced_asymmetric import BalancedAsymmetricLoss
from cprfl.losses.config import LossConfig, config_of
from cprfl.losses.correlation import CorrelationPenalty
from cprfl.losses.db_star import DBStar
from cprfl.losses.distribution_balanced import DistributionBalancedLoss
from cprfl.losses.focal import (
    WeightedFocalLoss,
    binary_cross_entropy,
    class_balanced_focal,
    focal,
    reweighted,
    soft_margin,
)
from cprfl.losses.ldam import LDAMLoss
from cprfl.losses.two_way import TwoWayLoss

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "asymmetric": AsymmetricLoss,
    "distribution_balanced": DistributionBalancedLoss,
    "class_balanced_focal": class_balanced_focal,
    "focal": focal,
    "reweighted": reweighted,
    "bce": binary_cross_entropy,
    "soft_margin": soft_margin,
    "db_star": DBStar,
    "ldam": LDAMLoss,
    "two_way": TwoWayLoss,
    "balanced_asymmetric": BalancedAsymmetricLoss,
}
CONFIGS = {name: config_of(name, make) for name, make in LOSSES.items()}

if TYPE_CHECKING:
    AnyLoss = LossConfig
else:
    AnyLoss = Annotated[Union[tuple(CONFIGS.values())], Field(discriminator="name")]  # noqa: UP007

__all__ = [
    "CONFIGS",
    "LOSSES",
    "AnyLoss",
    "AsymmetricLoss",
    "BalancedAsymmetricLoss",
    "CorrelationPenalty",
    "DBStar",
    "DistributionBalancedLoss",
    "LDAMLoss",
    "LossConfig",
    "TwoWayLoss",
    "WeightedFocalLoss",
]
