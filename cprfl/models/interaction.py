"""Visual-semantic interaction: class prompts attend to an image's cells and to each other (CPRFL, section 3.3).

The published block is one pre-norm transformer layer over the tokens [cells; prompts] *without* residual connections,
of whose output only the prompts' rows are used. And the prompts going in are the same for every image. So queries are
needed for the prompts alone, and the prompts' own projections once per batch. Two exact ways to do the rest:

* project: keys and values of all cells, as usual;
* absorb: (q W_k) f instead of q (W_k f), and (a f) W_v instead of a (W_v f), so that the projections are applied to
  the few queries and contexts instead of the many cells.

Which one is cheaper depends on the shape and follows from counting multiplications (`absorbing_is_cheaper`).

Shapes: B images, V cells, C prompts, N tokens, D width, H heads, E width of a head; a leading ``...`` is nothing for
prompts that all images share, or B.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Interaction(nn.Module):
    """Transformer blocks over [cells; prompts]; the last one is evaluated at the prompts only.

    Args:
        dim: D.
        num_heads: H.
        head_dim: E.
        mlp_dim: width of the hidden layer of the MLP.
        dropout: after the attention's output projection and after both layers of the MLP.
        depth: number of blocks (1 in the paper). Blocks before the last need the cells' output too, and from then on
            the prompts differ between images.
        residual: add each layer's input to its output (not so in the released code).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int,
        mlp_dim: int,
        dropout: float = 0.0,
        depth: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, head_dim, mlp_dim, dropout, residual) for _ in range(depth))

    def forward(self, cells_BVD: Tensor, prompts_CD: Tensor) -> Tensor:
        """Prompts refined by each image, [B, C, D]."""
        *earlier, last = self.blocks
        prompts = prompts_CD
        for block in earlier:
            tokens_BND = torch.cat([cells_BVD, prompts.expand(len(cells_BVD), -1, -1)], dim=1)
            tokens_BND = block(tokens_BND[:, :0], tokens_BND)
            cells_BVD, prompts = tokens_BND.split([cells_BVD.shape[1], len(prompts_CD)], dim=1)
        refined_BCD: Tensor = last(cells_BVD, prompts)
        return refined_BCD


class Block(nn.Module):
    """One pre-norm block, evaluated at the prompts; its arguments are those of `Interaction`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int, dropout: float, residual: bool) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.head_dim, self.residual = num_heads, head_dim, residual
        self.attention_norm = nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, cells_BVD: Tensor, prompts: Tensor) -> Tensor:
        """The block's output at ``prompts`` [..., C, D], which attend to the cells and to each other: [B, C, D]."""
        normed_BVD = self.attention_norm(cells_BVD)
        heads = self._heads(self.attention_norm(prompts))
        absorb = absorbing_is_cheaper(cells_BVD.shape[1], prompts.shape[-2], cells_BVD.shape[2], self.head_dim)
        attended_BHCE = (self._absorb if absorb else self._project)(normed_BVD, *heads)
        output_BCD = self.to_out(attended_BHCE.transpose(1, 2).flatten(2))
        if self.residual:
            output_BCD = prompts + output_BCD
            return output_BCD + self.mlp(self.mlp_norm(output_BCD))
        refined_BCD: Tensor = self.mlp(self.mlp_norm(output_BCD))
        return refined_BCD

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled by 1 / sqrt(E)), keys and values of the prompts, each [..., H, C, E]."""
        qkv = self.to_qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = (part.transpose(-3, -2) for part in qkv.unbind(-3))
        return query * self.head_dim**-0.5, key, value

    def _project(self, cells_BVD: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch = len(cells_BVD)
        key_value = F.linear(cells_BVD, self.to_qkv.weight[self.num_heads * self.head_dim :])
        keys, values = key_value.unflatten(2, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(
            query.expand(batch, -1, -1, -1),
            torch.cat([keys, key.expand(batch, -1, -1, -1)], dim=2),
            torch.cat([values, value.expand(batch, -1, -1, -1)], dim=2),
            scale=1.0,
        )

    def _absorb(self, cells_BVD: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, num_prompts, _ = query.shape[-3:]
        batch, num_cells, dim = cells_BVD.shape
        _, key_weight_HED, value_weight_HED = self.to_qkv.weight.view(3, heads, self.head_dim, dim).unbind(0)
        absorbed = (query @ key_weight_HED).flatten(-3, -2)
        scores_BHCV = (absorbed @ cells_BVD.transpose(1, 2)).unflatten(1, (heads, num_prompts))
        prompt_scores = (query @ key.transpose(-2, -1)).expand(batch, -1, -1, -1)
        weights = torch.cat([scores_BHCV, prompt_scores], dim=3).softmax(dim=3)
        weights_BHCV, weights_BHCC = weights.split([num_cells, num_prompts], dim=3)
        contexts_BHCD = (weights_BHCV.flatten(1, 2) @ cells_BVD).unflatten(1, (heads, num_prompts))
        return contexts_BHCD @ value_weight_HED.transpose(1, 2) + weights_BHCC @ value


def absorbing_is_cheaper(num_cells: int, num_prompts: int, dim: int, head_dim: int) -> bool:
    """Compare the multiplications per image and head of the two ways.

    Projecting: keys and values of V cells (2 V D E), then scores and contexts of C queries in E (2 V C E).
    Absorbing: scores and contexts in D (2 V C D), then the values' projection of C contexts (C D E).
    """
    project = 2 * num_cells * head_dim * (dim + num_prompts)
    absorb = 2 * num_cells * num_prompts * dim + num_prompts * dim * head_dim
    return absorb < project
