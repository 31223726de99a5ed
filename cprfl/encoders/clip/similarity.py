"""Cells that attend to what is like them: the last block of CLIP's ViT without its global bias.

SCLIP (Wang, Mei and Yuille, ECCV 2024): in CLIP's last block every cell attends to much the same places, which suits
the class token and blurs the grid. Where queries are compared with queries and keys with keys, a cell attends to itself
and its like, and its output says what is there. Nothing is trained.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprfl.errors import WeightsError


class SimilarityAttention(nn.MultiheadAttention):
    """softmax(q q' s) + softmax(k k' s), applied to v, for the cells; softmax(q k' s), as ever, for the class token.

    Per head, with s = 1 / sqrt(channels of a head). What follows attention treats each token by itself, so in the last
    block the summary stays what it was.
    """

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, **_: Any
    ) -> tuple[Tensor, None]:
        """[B, 1 + V, D] to [B, 1 + V, D]; the three arguments are the same tokens, the class token first.

        No weights are returned and no mask is known: open_clip's image towers ask for neither.
        """
        projected_BN3D = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q_BHNd, k_BHNd, v_BHNd = projected_BN3D.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attend = F.scaled_dot_product_attention
        class_BH1d = attend(q_BHNd[:, :, :1], k_BHNd, v_BHNd)
        cells_BHVd = attend(q_BHNd[:, :, 1:], q_BHNd, v_BHNd) + attend(k_BHNd[:, :, 1:], k_BHNd, v_BHNd)
        heads_BHNd = torch.cat([class_BH1d, cells_BHVd], dim=2)
        tokens_BND: Tensor = self.out_proj(heads_BHNd.transpose(1, 2).flatten(2))
        return tokens_BND, None


def attend_by_similarity(visual: Any, model: str) -> None:
    """Have the last block of an image tower attend by similarity, with the weights that it has.

    Args:
        visual: open_clip's image tower.
        model: its name.

    Raises:
        WeightsError: where it is no vision transformer of CLIP's own kind, whose summary is its class token.
    """
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    own = getattr(blocks[-1], "attn", None) if blocks else None
    by_class_token = getattr(visual, "pool_type", None) == "tok" and visual.attn_pool is None
    if not blocks or not isinstance(own, nn.MultiheadAttention) or not by_class_token:
        raise WeightsError(
            f"{model}: encoder.attention=similarity needs a vision transformer of CLIP's own kind, whose summary is "
            "its class token, such as ViT-B-16; set encoder.attention: own"
        )
    with torch.device("meta"):  # neither memory nor random numbers
        similar = SimilarityAttention(
            own.embed_dim, own.num_heads, bias=own.in_proj_bias is not None, batch_first=own.batch_first
        )
    similar.load_state_dict(own.state_dict(), assign=True)
    blocks[-1].attn = similar
