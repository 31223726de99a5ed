"""CoOp: contexts of the class names, learned through CLIP's frozen text tower (Zhou et al., IJCV 2022)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts
from cprfl.models.prompts import PromptConfig, PromptMethod, Prompts, ScaledCosine


class CoOp(PromptMethod):
    """Cosine of the image's summary and Enc_T([v_1 ... v_M, NAME]), as a logit."""

    class Config(PromptConfig):
        """Settings of `CoOp`.

        Attributes:
            num_context: M, learned tokens before each name, drawn from N(0, 0.02).
            class_specific: a context for each class instead of one for all (as LMPT's tables have it).
            logits: what is made of the cosine; see `ScaledCosine`.
        """

        name: Literal["coop"] = "coop"
        class_specific: bool = False
        logits: Literal["learned", "clip"] = "learned"

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> CoOp:
            """See `PromptConfig.build`."""
            return CoOp(self, facts, text_tower)

    def __init__(self, config: Config, facts: Facts, text_tower: TextTower | None) -> None:
        super().__init__()
        self.prompts = Prompts(facts, text_tower, config.num_context, config.class_specific)
        self.scale = ScaledCosine(config.logits)

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of summaries [B, E]; the cells are not used."""
        logits_BC: Tensor = self.scale(F.normalize(global_BE, dim=1) @ self.prompts().T)
        return logits_BC
