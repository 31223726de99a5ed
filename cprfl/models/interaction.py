"""Visual-semantic interaction: class prompts attend to an image's cells and to each other (CPRFL, section 3.3).

The published block is one pre-norm transformer layer over the tokens [cells; prompts] *without* residual connections,
of whose output only the prompts' rows are used. And the prompts going in are the same for every image. So queries are
needed for the prompts alone, and the prompts' own projections once per batch. Two exact ways to do the rest:

* project: keys and values of all cells, as usual;
* absorb: (q W_k) f instead of q (W_k f), and (a f) W_v instead of a (W_v f), so that the projections are applied to
  the few queries and contexts instead of the many cells.

Which one is cheaper depends on the shape and follows from counting multiplications (`absorbing_is_cheaper`).

Shapes: B images, V cells, C prompts, D width, H heads, E width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Interaction(nn.Module):
    """One pre-norm transformer block without residual connections, evaluated at the prompts only.

    Args:
        dim: D.
        num_heads: H.
        head_dim: E.
        mlp_dim: width of the hidden layer of the MLP.
        dropout: after the attention's output projection and after both layers of the MLP.
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.attention_norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, cells_BVD: Tensor, prompts_CD: Tensor) -> Tensor:
        """Prompts refined by each image, [B, C, D]."""
        cells_BVD = self.attention_norm(cells_BVD)
        query_HCE, prompt_key_HCE, prompt_value_HCE = self._heads(self.attention_norm(prompts_CD))
        num_cells, dim = cells_BVD.shape[1:]
        if absorbing_is_cheaper(num_cells, len(prompts_CD), dim, self.head_dim):
            attended_BHCE = self._absorb(cells_BVD, query_HCE, prompt_key_HCE, prompt_value_HCE)
        else:
            attended_BHCE = self._project(cells_BVD, query_HCE, prompt_key_HCE, prompt_value_HCE)
        attended_BCD = self.to_out(attended_BHCE.transpose(1, 2).flatten(2))
        refined_BCD: Tensor = self.mlp(self.mlp_norm(attended_BCD))
        return refined_BCD

    def _heads(self, tokens_CD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled by 1 / sqrt(E)), keys and values of the prompts, each [H, C, E]."""
        qkv_3HCE = self.to_qkv(tokens_CD).view(len(tokens_CD), 3, self.num_heads, self.head_dim).permute(1, 2, 0, 3)
        query_HCE, key_HCE, value_HCE = qkv_3HCE.unbind(0)
        return query_HCE * self.head_dim**-0.5, key_HCE, value_HCE

    def _project(self, cells_BVD: Tensor, query_HCE: Tensor, key_HCE: Tensor, value_HCE: Tensor) -> Tensor:
        batch, num_cells, _ = cells_BVD.shape
        inner = self.num_heads * self.head_dim
        key_value = F.linear(cells_BVD, self.to_qkv.weight[inner:])
        keys, values = (
            key_value.view(batch, num_cells, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return F.scaled_dot_product_attention(
            query_HCE.expand(batch, -1, -1, -1),
            torch.cat([keys, key_HCE.expand(batch, -1, -1, -1)], dim=2),
            torch.cat([values, value_HCE.expand(batch, -1, -1, -1)], dim=2),
            scale=1.0,
        )

    def _absorb(self, cells_BVD: Tensor, query_HCE: Tensor, key_HCE: Tensor, value_HCE: Tensor) -> Tensor:
        heads, num_prompts, _ = query_HCE.shape
        batch, num_cells, dim = cells_BVD.shape
        _, key_weight, value_weight = self.to_qkv.weight.view(3, heads, self.head_dim, dim).unbind(0)
        absorbed_HCD = query_HCE @ key_weight
        scores_BHCV = (absorbed_HCD.flatten(0, 1) @ cells_BVD.transpose(1, 2)).unflatten(1, (heads, num_prompts))
        prompt_scores_HCC = query_HCE @ key_HCE.transpose(1, 2)
        scores = torch.cat([scores_BHCV, prompt_scores_HCC.expand(batch, -1, -1, -1)], dim=3)
        weights_BHCV, weights_BHCC = scores.softmax(dim=3).split([num_cells, num_prompts], dim=3)
        contexts_BHCD = (weights_BHCV.flatten(1, 2) @ cells_BVD).unflatten(1, (heads, num_prompts))
        return contexts_BHCD @ value_weight.transpose(1, 2) + weights_BHCC @ value_HCE


def absorbing_is_cheaper(num_cells: int, num_prompts: int, dim: int, head_dim: int) -> bool:
    """Compare the multiplications per image and head of the two ways.

    Projecting: keys and values of V cells (2 V D E), then scores and contexts of C queries in E (2 V C E).
    Absorbing: scores and contexts in D (2 V C D), then the values' projection of C contexts (C D E).
    """
    project = 2 * num_cells * head_dim * (dim + num_prompts)
    absorb = 2 * num_cells * num_prompts * dim + num_prompts * dim * head_dim
    return absorb < project
