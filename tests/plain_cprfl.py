"""CPRFL's head written down from its equations: full self-attention over all tokens. What the fast one must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from cprfl.models.cprfl import CPRFL
from cprfl.models.interaction import Block


def plain_logits(model: CPRFL, features_BVD: Tensor) -> Tensor:
    """Logits of ``model`` with its own weights, by a plain transformer over [cells; prompts] (dropout off)."""
    prompts_CD = model.prompts()
    cells_BVD = model.visual(features_BVD)
    tokens_BND = torch.cat([cells_BVD, prompts_CD.expand(len(features_BVD), -1, -1)], dim=1)
    for block in model.interaction.blocks:
        assert isinstance(block, Block)
        batch, num_tokens, _ = tokens_BND.shape
        normed_BND = block.attention_norm(tokens_BND)
        query, key, value = (
            layer(normed_BND).view(batch, num_tokens, block.num_heads, block.head_dim).transpose(1, 2)
            for layer in (block.to_query, block.to_key, block.to_value)
        )
        weights = (query @ key.transpose(2, 3) * block.head_dim**-0.5).softmax(dim=3)
        attended = block.to_out((weights @ value).transpose(1, 2).reshape(batch, num_tokens, -1))
        tokens_BND = tokens_BND + attended if block.residual else attended
        refined = block.mlp(block.mlp_norm(tokens_BND))
        tokens_BND = tokens_BND + refined if block.residual else refined
    return (tokens_BND[:, -len(prompts_CD) :] * prompts_CD).sum(dim=2)
