"""Models of the same features that are trained side by side and evaluated as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Ensemble(nn.Module):
    """Each member has its own loss; the logits of an evaluated image are the mean of theirs.

    Members that start from different weights make different mistakes where images are few (deep ensembles,
    Lakshminarayanan et al., NeurIPS 2017).

    Args:
        members: each gives logits [B, C] of grid features.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, features_BVD: Tensor) -> Tensor:
        """Logits of M members, [M, B, C], while training; their mean [B, C] otherwise."""
        logits_MBC = torch.stack([member(features_BVD) for member in self.members])
        return logits_MBC if self.training else logits_MBC.mean(dim=0)
