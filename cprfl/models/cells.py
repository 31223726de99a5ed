"""What single cells weigh where a class pools its scores of them.

Shapes: B images, V cells, C classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_weights(scores_BVC: Tensor, top_k: int) -> Tensor:
    """What the cells with the ``top_k`` highest scores of a class weigh in their mean, [B, V, C] likewise."""
    top_k = min(top_k, scores_BVC.shape[1])
    return torch.zeros_like(scores_BVC).scatter(1, scores_BVC.topk(top_k, dim=1).indices, 1 / top_k)


def softmax_weights(scores_BVC: Tensor, temperature: float) -> Tensor:
    """Softmax over cells of scores [B, V, C] at a temperature; at inf 1 at the highest."""
    if math.isinf(temperature):
        return top_weights(scores_BVC, 1)
    return (temperature * scores_BVC).softmax(dim=1)
