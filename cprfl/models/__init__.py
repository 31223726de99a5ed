"""Classifiers of grid features; every one is an `nn.Module` with ``forward(features_BVD) -> logits_BC``."""

from cprfl.models.cprfl import CPRFL
from cprfl.models.linear_probe import LinearProbe

__all__ = ["CPRFL", "LinearProbe"]
