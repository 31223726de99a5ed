"""Visual-semantic interaction: class prompts attend to an image's cells and to each other (CPRFL, section 3.3).

The published block is one pre-norm transformer layer over the tokens [cells; prompts] *without* residual connections,
of whose output only the prompts' rows are used. And the prompts going in are the same for every image. So queries are
needed for the prompts alone, and the prompts' own projections once per batch. Two exact ways to do the rest:

* project: keys and values of all cells, as usual;
* absorb: (q W_k) f instead of q (W_k f), and (a f) W_v instead of a (W_v f), so that a projection is applied to the few
  queries or contexts instead of the many cells.

Which one is cheaper depends on the shape, for keys and values separately, and follows from counting multiplications
(`cheapest_way`).

Shapes: B images, V cells, C prompts, N tokens, D width, H heads, E width of a head; a leading ``...`` is nothing for
prompts that all images share, or B.
"""

from __future__ import annotations

from typing import Literal

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
        dropout: float,
        depth: int,
        residual: bool,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, head_dim, mlp_dim, dropout, residual) for _ in range(depth))

    def forward(self, cells_BVD: Tensor, prompts_CD: Tensor) -> Tensor:
        """Prompts refined by each image, [B, C, D]."""
        refined_BCD: Tensor = self.blocks[-1](*self._before_last(cells_BVD, prompts_CD))
        return refined_BCD

    def attention(self, cells_BVD: Tensor, prompts_CD: Tensor) -> Tensor:
        """How the last block's prompts share out among the cells what they do not give to prompts, [B, C, V]."""
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        return last.attention(*self._before_last(cells_BVD, prompts_CD))

    def _before_last(self, cells_BVD: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Cells [B, V, D] and prompts [..., C, D] as they enter the last block."""
        num_cells, num_prompts = cells_BVD.shape[1], prompts.shape[-2]
        for block in self.blocks[:-1]:
            tokens_BND = torch.cat([cells_BVD, prompts.expand(len(cells_BVD), -1, -1)], dim=1)
            tokens_BND = block(tokens_BND[:, :0], tokens_BND)
            cells_BVD, prompts = tokens_BND.split([num_cells, num_prompts], dim=1)
        return cells_BVD, prompts


class Block(nn.Module):
    """One pre-norm block, evaluated at the prompts; its arguments are those of `Interaction`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int, dropout: float, residual: bool) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads, self.head_dim, self.residual = num_heads, head_dim, residual
        self.attention_norm = nn.LayerNorm(dim)
        self.to_query, self.to_key, self.to_value = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(inner, dim), nn.Dropout(dropout))
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )

    def forward(self, cells_BVD: Tensor, prompts: Tensor) -> Tensor:
        """The block's output at ``prompts`` [..., C, D], which attend to the cells and to each other: [B, C, D]."""
        cells_BVD, normed = self.attention_norm(cells_BVD), self.attention_norm(prompts)
        query = self._split(self.to_query(normed)) * self.head_dim**-0.5
        batch, num_cells, dim = cells_BVD.shape
        way = cheapest_way(batch, num_cells, dim, prompts.shape[-2], self.head_dim)
        if way == "project":
            attended_BHCE = self._project(cells_BVD, normed, query)
        else:
            attended_BHCE = self._absorb(cells_BVD, normed, query, values_too=way == "absorb")
        output_BCD = self.to_out(attended_BHCE.transpose(1, 2).flatten(2))
        if self.residual:
            output_BCD = prompts + output_BCD
            return output_BCD + self.mlp(self.mlp_norm(output_BCD))
        refined_BCD: Tensor = self.mlp(self.mlp_norm(output_BCD))
        return refined_BCD

    def attention(self, cells_BVD: Tensor, prompts: Tensor) -> Tensor:
        """The softmax by which `forward` weighs the cells, mean of the heads, brought to sum 1: [B, C, V]."""
        cells_BVD, normed = self.attention_norm(cells_BVD), self.attention_norm(prompts)
        query = self._split(self.to_query(normed)) * self.head_dim**-0.5
        to_cells_BHCV = query @ self._split(self.to_key(cells_BVD)).transpose(-2, -1)
        to_prompts = query @ self._split(self.to_key(normed)).transpose(-2, -1)
        # The softmax over cells and prompts, without the scores of all of them for each image. In logarithms, so that
        # a prompt that attends to prompts alone still has cells that it prefers.
        of_all_BHC = torch.logaddexp(to_cells_BHCV.logsumexp(dim=3), to_prompts.logsumexp(dim=-1))
        return (to_cells_BHCV - of_all_BHC[..., None]).logsumexp(dim=1).softmax(dim=2)

    def _split(self, tokens: Tensor) -> Tensor:
        """[..., N, H E] to [..., H, N, E]."""
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(-3, -2)

    def _project(self, cells_BVD: Tensor, prompts: Tensor, query: Tensor) -> Tensor:
        batch = len(cells_BVD)

        def tokens(layer: nn.Linear) -> Tensor:
            of_prompts = self._split(layer(prompts)).expand(batch, -1, -1, -1)
            return torch.cat([self._split(layer(cells_BVD)), of_prompts], dim=2)

        return F.scaled_dot_product_attention(
            query.expand(batch, -1, -1, -1), tokens(self.to_key), tokens(self.to_value), scale=1.0
        )

    def _absorb(self, cells_BVD: Tensor, prompts: Tensor, query: Tensor, values_too: bool) -> Tensor:
        (batch, num_cells, _), (heads, num_prompts, _) = cells_BVD.shape, query.shape[-3:]
        by_head, by_class = (heads, self.head_dim), (num_prompts, heads)
        # Class by class, so that one head's contexts of all images are a matrix with a stride, and need no copy.
        absorbed = _by_head(query, self.to_key.weight.unflatten(0, by_head)).transpose(-3, -2).flatten(-3, -2)
        prompt_scores = (absorbed @ prompts.transpose(-2, -1)).expand(batch, -1, -1)
        weights = torch.cat([absorbed @ cells_BVD.transpose(1, 2), prompt_scores], dim=2).softmax(dim=2)
        to_cells, to_prompts = weights.split([num_cells, num_prompts], dim=2)
        from_prompts = to_prompts.unflatten(1, by_class).transpose(1, 2) @ self._split(self.to_value(prompts))
        if values_too:
            contexts_HND = (to_cells @ cells_BVD).view(batch * num_prompts, heads, -1).transpose(0, 1)
            # E x N rather than N x E, so that the weight's gradient comes out in the weight's own layout
            from_cells_HEN = self.to_value.weight.unflatten(0, by_head) @ contexts_HND.transpose(1, 2)
            return from_prompts + from_cells_HEN.unflatten(2, (batch, num_prompts)).permute(2, 0, 3, 1)
        values_BHVE = self._split(self.to_value(cells_BVD))
        return from_prompts + to_cells.unflatten(1, by_class).transpose(1, 2) @ values_BHVE


def _by_head(tokens: Tensor, weight_HED: Tensor) -> Tensor:
    """[..., H, C, E] times [H, E, D]; a broadcasting matmul would copy the weights once per image."""
    if tokens.ndim == 3:
        return tokens @ weight_HED
    return torch.einsum("bhce,hed->bhcd", tokens, weight_HED)


def cheapest_way(
    batch: int, num_cells: int, dim: int, num_prompts: int, head_dim: int
) -> Literal["project", "absorb_keys", "absorb"]:
    """Compare the multiplications per image and head.

    Projecting keys, or values, of V cells and using them for C queries takes V D E + V C E. Absorbing takes V C D and
    the projection itself: C D E once per batch for the keys, for every image for the values. So whoever absorbs the
    values absorbs the keys too.
    """
    project = num_cells * head_dim * (dim + num_prompts)
    absorb, projection = num_cells * num_prompts * dim, num_prompts * dim * head_dim
    if absorb + projection < project:
        return "absorb"
    return "absorb_keys" if absorb + projection / batch < project else "project"
