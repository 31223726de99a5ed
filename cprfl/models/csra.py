"""CSRA: each class attends to the cells that score highest for it (Zhu and Wu, ICCV 2021, arXiv 2108.02456)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, Method, StandardizingConfig, check_features
from cprfl.models.cells import softmax_weights


class CSRA(Method):
    """The sum over heads of mean_v(s_vc) + lam sum_v(softmax_v(T s_vc) s_vc), plus a bias per class.

    s_vc = x_v . m_c / |m_c| is the score of cell v: the classifiers are of unit length, not the cells, so that T means
    the same for all classes. Each head has classifiers and a temperature of its own; at T infinite its second term is
    lam max_v(s_vc). The residual: classes share the mean of the cells, and attend to some beside it.

    The bias is ours. The paper's cells come from a ReLU, so their mean is positive and can serve as one; standardised
    cells average to 0, and then no classifier of unit length could say that a class is rare.
    """

    class Config(StandardizingConfig):
        """Settings of `CSRA`; the released code's by default. It standardises its input unless told otherwise.

        Attributes:
            num_heads: 1, 2, 4, 6 or 8; their temperatures are `temperatures`. Released models have 1 for VOC, 4 or 6
                for COCO.
            lam: weight of what a class attends to beside the mean.
        """

        name: Literal["csra"] = "csra"
        standardize: bool = True
        num_heads: Literal[1, 2, 4, 6, 8] = 1
        lam: NonNegativeFloat = 0.1

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> CSRA:
            """The classifier; text embeddings play no part in it."""
            return CSRA(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.lam, self.temperatures = config.lam, temperatures(config.num_heads)
        self.standardize = config.standardization(facts)
        bound = 1 / math.sqrt(facts.grid_dim)  # as nn.Linear starts: their length is free, but sets their pace
        weight_HCD = torch.empty(config.num_heads, facts.num_classes, facts.grid_dim).uniform_(-bound, bound)
        self.weight_HCD = nn.Parameter(weight_HCD)
        self.bias_C = nn.Parameter(torch.zeros(facts.num_classes))

    def forward(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """Logits [B, C] of grid features [B, V, D]; the summary is not used.

        Raises:
            ShapeError: where the cells have other channels than the model was built for.
        """
        check_features(grid_BVD, self.weight_HCD.shape[2])
        cells_BVD = self.standardize(grid_BVD)
        logits_BC = self.bias_C.expand(len(grid_BVD), -1)
        for temperature, weight_CD in zip(self.temperatures, F.normalize(self.weight_HCD, dim=2), strict=True):
            scores_BVC = cells_BVD @ weight_CD.T
            logits_BC = logits_BC + scores_BVC.mean(dim=1) + self.lam * attended(scores_BVC, temperature)
        return logits_BC

    def attention(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor | None:
        """See `Method.attention`: of what a class attends to beside the mean of all cells."""
        if self.lam == 0:
            return None
        cells_BVD = self.standardize(grid_BVD)
        weights = [
            softmax_weights(cells_BVD @ weight_CD.T, temperature)
            for temperature, weight_CD in zip(self.temperatures, F.normalize(self.weight_HCD, dim=2), strict=True)
        ]
        return torch.stack(weights).mean(dim=0).transpose(1, 2)


def temperatures(num_heads: int) -> list[float]:
    """T of each head: 1, 2, 3 ... and infinity, as released; but 1 alone of one head, and 1, 2, 4, infinity of four."""
    if num_heads == 4:
        return [1, 2, 4, math.inf]
    return [*range(1, num_heads), math.inf] if num_heads > 1 else [1]


def attended(scores_BVC: Tensor, temperature: float) -> Tensor:
    """Mean over cells of scores [B, V, C], weighed by their softmax at a temperature: [B, C]; at inf the maximum."""
    if math.isinf(temperature):
        return scores_BVC.amax(dim=1)
    return (softmax_weights(scores_BVC, temperature) * scores_BVC).sum(dim=1)
