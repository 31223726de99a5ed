"""LMPT: prompts with a class-specific embedding loss (arXiv 2305.04536, ALVR at ACL 2024).

The published loss compares tokens of an image's caption with tokens of the class prompts. Its code as released raises
where the weights are summed, so the trained form is uncertain. Ours: cosines in place of distances, so that the
prompts of an image's classes are drawn to its caption and the others pushed away, means in place of sums over tokens,
raw class counts in margins and weights, and captions that are made of the image's labels ("a photo of a dog, cat."),
since a captioner's are not at hand.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Criterion, Facts
from cprfl.models.prompts import PHRASE, PromptConfig, PromptMethod, Prompts, ScaledCosine

_SHIFT = 2  # tokens by which caption and prompt are moved against each other


class LMPT(PromptMethod):
    """CoOp's classifier, trained with a share of the class-specific embedding loss."""

    margin_C: Tensor
    weight_C: Tensor

    class Config(PromptConfig):
        """Settings of `LMPT`.

        Attributes:
            num_context: M, learned tokens before each name.
            class_specific: a context for each class (as released) or one for all.
            criterion_share: of the criterion in the loss; the rest is the embedding loss's.
            margin: largest of the classes' margins, which fall with the fourth root of their images.
            logits: what is made of the cosine; see `ScaledCosine`.
        """

        brings: ClassVar[dict[str, Any]] = {"loss": {"name": "distribution_balanced"}}

        name: Literal["lmpt"] = "lmpt"
        num_context: PositiveInt = 16
        class_specific: bool = True
        criterion_share: float = Field(default=0.5, gt=0, le=1)
        margin: NonNegativeFloat = 0.2
        logits: Literal["learned", "clip"] = "clip"

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> LMPT:
            """See `PromptConfig.build`."""
            return LMPT(self, facts, text_tower)

    def __init__(self, config: Config, facts: Facts, text_tower: TextTower | None) -> None:
        super().__init__()
        self.class_names, self.criterion_share = facts.class_names, config.criterion_share
        self.prompts = Prompts(facts, text_tower, config.num_context, config.class_specific)
        self.scale = ScaledCosine(config.logits)
        count_C = facts.class_counts_C.clamp(min=1).float()
        self.register_buffer("margin_C", config.margin * count_C**-0.25, persistent=False)
        self.register_buffer("weight_C", count_C**-2 / (count_C**-2).sum(), persistent=False)

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of summaries [B, E]; the cells are not used."""
        logits_BC: Tensor = self.scale(F.normalize(global_BE, dim=1) @ self.prompts().T)
        return logits_BC

    def losses(
        self, criterion: Criterion, targets_BC: Tensor, grid_BVD: Tensor, global_BE: Tensor
    ) -> dict[str, Tensor]:
        """A share of the criterion, and the rest of the embedding loss."""
        found = self.criterion_share * criterion(self(grid_BVD, global_BE), targets_BC)
        return {"criterion": found, "class_embedding": (1 - self.criterion_share) * self._embedding_loss(targets_BC)}

    def _embedding_loss(self, targets_BC: Tensor) -> Tensor:
        """Sum over classes of w_c relu(m_c - y cos), y = 1 for an image's classes and -1 for others; mean of images.

        Classes of which nobody knows are in neither caption nor sum, and images without a known one not in the mean.
        """
        tower = self.prompts.text_tower
        assert tower is not None, "built to predict only"
        names = [
            ", ".join(name for name, shown in zip(self.class_names, row, strict=True) if shown)
            for row in (targets_BC > 0).tolist()
        ]
        with torch.no_grad():
            caption_BLD = tower.embed(tower.tokens([f"{PHRASE} {name}." for name in names]))
        caption_BLD = F.normalize(caption_BLD[:, :-_SHIFT], dim=-1)
        prompt_CLD = F.normalize(self.prompts.embedded()[:, _SHIFT:], dim=-1)
        cosine_BC = torch.einsum("bld,cld->bc", caption_BLD, prompt_CLD) / caption_BLD.shape[1]
        sign_BC = torch.where(targets_BC > 0, 1.0, -1.0)
        unknown_BC = targets_BC.isnan()
        costs_BC = (self.weight_C * F.relu(self.margin_C - sign_BC * cosine_BC)).masked_fill(unknown_BC, 0)
        images = (~unknown_BC.all(dim=1)).sum().clamp(min=1)
        return costs_BC.sum(dim=1).mean() * (len(costs_BC) / images)
