"""HP-DVAL: hierarchical prompts after dual-view alignment (IEEE TIP 34, 2025, arXiv 2509.17747).

Two experiments in a chain. ``stage: alignment`` trains the image tower against fixed texts ("a photo of a NAME"), with
``train.distill`` towards the tower as it was (equation 2); ``stage: prompts`` learns a global and a local prompt
through the frozen text tower, on cached features of the tower that the first one made.

Where paper and released code disagree `variant` chooses. Ours, in both: the paper's "embedding layer" of two linear
layers is CLIP's own projection (``encoder.project``), as in the released code, which makes the other and leaves it
unused; and its temperature, which neither states (the released code's L2 norm over the classes and scale of the loss
stand in for it), is learned unless `logits` says otherwise.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Criterion, Facts, check_joint_space
from cprfl.models.cells import top_weights
from cprfl.models.prompts import PromptConfig, PromptMethod, Prompts, ScaledCosine


def dual_view_scores(
    global_BE: Tensor, cells_BVE: Tensor, text_global_CE: Tensor, text_local_CE: Tensor, top_k: int, alpha: float
) -> Tensor:
    """alpha cos(summary, text) + (1 - alpha) mean of the top_k largest cos(cell, text), [B, C] (equations 4 and 5).

    Args:
        global_BE: summaries in the joint space.
        cells_BVE: cells in the joint space; all of them are taken where there are fewer than ``top_k``.
        text_global_CE: what the summary is compared with.
        text_local_CE: what the cells are compared with.
        top_k: cells of a class that count.
        alpha: weight of the summary's view.
    """
    view_BC = F.normalize(global_BE, dim=-1) @ F.normalize(text_global_CE, dim=-1).T
    cell_BVC = F.normalize(cells_BVE, dim=-1) @ F.normalize(text_local_CE, dim=-1).T
    return alpha * view_BC + (1 - alpha) * _top_mean(cell_BVC, top_k)


def released_scores(
    global_BE: Tensor, cells_BVE: Tensor, text_global_CE: Tensor, text_local_CE: Tensor, top_k: int, alpha: float
) -> Tensor:
    """What the released code computes: dot products, either view divided by its L2 norm over the classes.

    And ``alpha`` weighs the cells. The arguments are those of `dual_view_scores`.
    """
    view_BC = F.normalize(global_BE @ text_global_CE.T, dim=-1)
    local_BC = F.normalize(_top_mean(cells_BVE @ text_local_CE.T, top_k), dim=-1)
    return alpha * local_BC + (1 - alpha) * view_BC


def _top_mean(cell_BVC: Tensor, top_k: int) -> Tensor:
    return cell_BVC.topk(min(top_k, cell_BVC.shape[1]), dim=1).values.mean(dim=1)


class HPDVAL(PromptMethod):
    """Scores of both views, with fixed texts (alignment) or a learned prompt for each (prompts)."""

    template_CE: Tensor

    class Config(PromptConfig):
        """Settings of `HPDVAL`.

        Attributes:
            variant: ``paper`` (sections III and IV-A.3) or ``released``: dot products normalised over the classes,
                alpha on the cells, prompts that begin as "a photo of a", and semantic consistency of the local prompt.
            stage: ``alignment`` needs a tower that moves; ``prompts`` a text tower.
            num_context: M, tokens of each prompt; all classes share them.
            top_k: cells per class; 32 (paper) or 16 (released).
            alpha: fusion; 0.4 of the summary (paper) or 0.5.
            consistency: weight of the mean absolute difference between template and learned prompt (equation 10; the
                paper's sum is a mean here as in the released code).
            logits: what is made of the fused score; see `ScaledCosine`.
        """

        brings: ClassVar[dict[str, Any]] = {
            "encoder": {"project": True, "layer": -1},
            "model": {"logits": "plain"},  # a learned scale hardly moves at the paper's learning rates
            "loss": {"name": "db_star"},
            "first": {
                "model": {"name": "hp_dval", "stage": "alignment", "logits": "plain"},
                "train": {"backbone": "finetune", "distill": 1.0},
            },
        }

        name: Literal["hp_dval"] = "hp_dval"
        variant: Literal["paper", "released"] = "paper"
        stage: Literal["alignment", "prompts"] = "prompts"
        top_k: PositiveInt | None = None
        alpha: float | None = Field(default=None, ge=0, le=1)
        consistency: NonNegativeFloat = 1.0
        logits: Literal["learned", "plain"] = "learned"

        @property
        def needs_text_tower(self) -> bool:
            """See `MethodConfig.needs_text_tower`."""
            return self.stage == "prompts"

        @property
        def needs_joint_cells(self) -> bool:
            """See `MethodConfig.needs_joint_cells`."""
            return True

        @property
        def needs_moving_tower(self) -> bool:
            """See `MethodConfig.needs_moving_tower`."""
            return self.stage == "alignment"

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> HPDVAL:
            """See `PromptConfig.build`."""
            return HPDVAL(self, facts, text_tower)

    def __init__(self, config: Config, facts: Facts, text_tower: TextTower | None) -> None:
        super().__init__()
        paper = config.variant == "paper"
        self.scores = dual_view_scores if paper else released_scores
        self.top_k = config.top_k or (32 if paper else 16)
        self.alpha = config.alpha if config.alpha is not None else (0.4 if paper else 0.5)
        self.local_share = 1 - self.alpha if paper else self.alpha
        self.prompts_stage, self.consistency = config.stage == "prompts", config.consistency
        self.consistent_local = not paper
        self.lr = 1e-3 if self.prompts_stage else 1e-5  # of prompts, and of a pretrained tower (the paper's)
        check_joint_space(facts, config.name, cells=True)
        self.register_buffer("template_CE", F.normalize(facts.text_embeddings_CM, dim=1), persistent=False)
        if self.prompts_stage:
            start: Literal["random", "phrase"] = "random" if paper else "phrase"
            self.global_prompts = Prompts(facts, text_tower, config.num_context, start=start)
            self.local_prompts = Prompts(facts, text_tower, config.num_context, start=start)
        self.scale = ScaledCosine(config.logits)

    def texts(self) -> tuple[Tensor, Tensor]:
        """What the summary and what the cells are compared with, both [C, E]."""
        if not self.prompts_stage:
            return self.template_CE, self.template_CE
        return self.global_prompts(), self.local_prompts()

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of cells [B, V, E] and summaries [B, E], both in the joint space."""
        return self._logits(grid_BVD, global_BE, *self.texts())

    def attention(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor | None:
        """See `Method.attention`: the cells of a class that count, alike; none where all do, or only the summary."""
        if self.top_k >= grid_BVD.shape[1] or not self.local_share:
            return None
        cells_BVE, text_CE = grid_BVD, self.texts()[1]
        if self.scores is dual_view_scores:
            cells_BVE, text_CE = F.normalize(cells_BVE, dim=-1), F.normalize(text_CE, dim=-1)
        return top_weights(cells_BVE @ text_CE.T, self.top_k).transpose(1, 2)

    def losses(
        self, criterion: Criterion, targets_BC: Tensor, grid_BVD: Tensor, global_BE: Tensor
    ) -> dict[str, Tensor]:
        """The criterion and, for learned prompts, semantic consistency (equation 10)."""
        texts = self.texts()
        parts = {"criterion": criterion(self._logits(grid_BVD, global_BE, *texts), targets_BC)}
        if self.prompts_stage and self.consistency > 0:
            learned_CE = texts[1] if self.consistent_local else texts[0]
            parts["semantic_consistency"] = self.consistency * F.l1_loss(learned_CE, self.template_CE)
        return parts

    def _logits(self, cells_BVE: Tensor, global_BE: Tensor, text_global_CE: Tensor, text_local_CE: Tensor) -> Tensor:
        logits_BC: Tensor = self.scale(
            self.scores(global_BE, cells_BVE, text_global_CE, text_local_CE, self.top_k, self.alpha)
        )
        return logits_BC
