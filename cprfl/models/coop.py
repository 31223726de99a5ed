"""CoOp: contexts of the class names, learned through CLIP's frozen text tower (Zhou et al., IJCV 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower, blank_prompts
from cprfl.errors import ShapeError
from cprfl.models.base import Facts, Method, MethodConfig


class CoOp(Method):
    """Cosine of the image's summary and Enc_T([v_1 ... v_M, NAME]), as a logit.

    The texts of all classes are encoded once per step, not per image; once trained they are a buffer.
    """

    text_CE: Tensor
    tokens_CL: Tensor
    embeddings_CLD: Tensor
    text_tower: TextTower | None

    class Config(MethodConfig):
        """Settings of `CoOp`.

        Attributes:
            num_context: M, learned tokens before each name, drawn from N(0, 0.02).
            class_specific: a context for each class instead of one for all (as LMPT's tables have it).
            logits: ``learned`` scales and shifts the cosine by learned numbers that begin at SigLIP's 10 and -10, which
                suits losses of independent classes (our choice); ``clip`` scales by 100 as LMPT's code does.
        """

        name: Literal["coop"] = "coop"
        num_context: PositiveInt = 4
        class_specific: bool = False
        logits: Literal["learned", "clip"] = "learned"

        @property
        def needs_text_tower(self) -> bool:
            """See `MethodConfig.needs_text_tower`."""
            return True

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> CoOp:
            """The classifier, with its text tower to be trained, without to predict only."""
            return CoOp(self, facts, text_tower)

    def __init__(self, config: Config, facts: Facts, text_tower: TextTower | None) -> None:
        super().__init__()
        self.register_buffer("text_CE", torch.zeros(facts.num_classes, facts.global_dim))
        learned = config.logits == "learned"
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0 if learned else 100.0)), requires_grad=learned)
        self.shift = nn.Parameter(torch.tensor(-10.0 if learned else 0.0), requires_grad=learned)
        self.__dict__["text_tower"] = text_tower  # frozen: in no state, average or gradient
        if text_tower is None:
            return
        tokens_CL, embeddings_CLD = blank_prompts(text_tower, facts.class_names, config.num_context)
        self.register_buffer("tokens_CL", tokens_CL, persistent=False)
        self.register_buffer("embeddings_CLD", embeddings_CLD, persistent=False)
        sets = facts.num_classes if config.class_specific else 1
        self.context_CMD = nn.Parameter(torch.randn(sets, config.num_context, embeddings_CLD.shape[2]) * 0.02)
        if text_tower(embeddings_CLD[:1], tokens_CL[:1]).shape[1] != facts.global_dim:
            raise ShapeError(
                f"model.name=coop: texts have other channels than the images' {facts.global_dim}; give encoder and "
                "text_encoder the same open_clip model"
            )
        self.bake()

    @property
    def learned_through_text(self) -> list[str]:
        """See `Method.learned_through_text`."""
        return ["context_CMD"]

    def texts(self) -> Tensor:
        """The classes in the joint space [C, E], of unit length."""
        contexts_CMD = self.context_CMD.expand(len(self.tokens_CL), -1, -1)
        num_context = contexts_CMD.shape[1]
        prompts_CLD = torch.cat(
            [self.embeddings_CLD[:, :1], contexts_CMD, self.embeddings_CLD[:, 1 + num_context :]], dim=1
        )
        assert self.text_tower is not None, "built to predict only"
        return F.normalize(self.text_tower.to(prompts_CLD.device)(prompts_CLD, self.tokens_CL), dim=1)

    @torch.no_grad()
    def bake(self) -> None:
        """See `Method.bake`."""
        self.text_CE.copy_(self.texts())

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of summaries [B, E]; the cells are not used."""
        text_CE = self.texts() if self.training and self.text_tower is not None else self.text_CE
        return self.log_scale.exp() * (F.normalize(global_BE, dim=1) @ text_CE.T) + self.shift
