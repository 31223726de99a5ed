"""What methods in CLIP's joint space share: prompts learned through the frozen text tower, and cosines as logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower, blank_prompts
from cprfl.errors import ConfigError, ShapeError
from cprfl.models.base import Facts, Method, MethodConfig

_CLIP_SCALE = 100.0  # that CLIP's own temperature ends at
PHRASE = "a photo of a"


class Prompts(nn.Module):
    """Enc_T([v_1 ... v_M, NAME.]) for each class, of unit length (CoOp, Zhou et al., IJCV 2022).

    The texts of all classes are encoded once per step, not per image; what they become is a buffer, with which scoring
    needs no text tower.

    Args:
        facts: the class names.
        text_tower: frozen; none to predict only.
        num_context: M, learned tokens before each name.
        class_specific: a context for each class instead of one for all.
        start: ``random`` draws the tokens from N(0, 0.02); ``phrase`` begins with "a photo of a", four tokens.
    """

    text_CE: Tensor
    tokens_CL: Tensor
    embeddings_CLD: Tensor
    text_tower: TextTower | None

    def __init__(
        self,
        facts: Facts,
        text_tower: TextTower | None,
        num_context: int,
        class_specific: bool = False,
        start: Literal["random", "phrase"] = "random",
    ) -> None:
        super().__init__()
        self.register_buffer("text_CE", torch.zeros(facts.num_classes, facts.global_dim))
        self.__dict__["text_tower"] = text_tower  # frozen: in no state, average or gradient
        if text_tower is None:
            return
        tokens_CL, embeddings_CLD = blank_prompts(text_tower, facts.class_names, num_context)
        self.register_buffer("tokens_CL", tokens_CL, persistent=False)
        self.register_buffer("embeddings_CLD", embeddings_CLD, persistent=False)
        sets = facts.num_classes if class_specific else 1
        context_MD = torch.randn(sets, num_context, embeddings_CLD.shape[2]) * 0.02
        if start == "phrase":
            words_MD = text_tower.embed(text_tower.tokens([PHRASE]))[0, 1:]
            if num_context != len(PHRASE.split()):
                raise ConfigError(f"model.num_context: {PHRASE!r} has {len(PHRASE.split())} tokens; set it to that")
            context_MD = words_MD[:num_context].detach().expand(sets, -1, -1).clone()
        self.context_CMD = nn.Parameter(context_MD)
        if text_tower(embeddings_CLD[:1], tokens_CL[:1]).shape[1] != facts.global_dim:
            raise ShapeError(
                f"prompts: texts have other channels than the images' {facts.global_dim}; give encoder and "
                "text_encoder the same open_clip model"
            )
        self.bake()

    def embedded(self) -> Tensor:
        """Token embeddings of the prompts [C, L, D], the contexts in their places."""
        contexts_CMD = self.context_CMD.expand(len(self.tokens_CL), -1, -1)
        after = 1 + contexts_CMD.shape[1]
        return torch.cat([self.embeddings_CLD[:, :1], contexts_CMD, self.embeddings_CLD[:, after:]], dim=1)

    def encoded(self) -> Tensor:
        """The classes in the joint space [C, E], of unit length, through the tower."""
        assert self.text_tower is not None, "built to predict only"
        prompts_CLD = self.embedded()
        return F.normalize(self.text_tower.to(prompts_CLD.device)(prompts_CLD, self.tokens_CL), dim=1)

    def forward(self) -> Tensor:
        """The classes in the joint space [C, E]: through the tower in training, as baked otherwise."""
        return self.encoded() if self.training and self.text_tower is not None else self.text_CE

    @torch.no_grad()
    def bake(self) -> None:
        """Write what the tower makes of the prompts into the buffer."""
        self.text_CE.copy_(self.encoded())


class PromptMethod(Method):
    """A method with `Prompts` among its modules."""

    @property
    def learned_through_text(self) -> list[str]:
        """See `Method.learned_through_text`."""
        return [
            f"{name}.context_CMD"
            for name, module in self.named_modules()
            if isinstance(module, Prompts) and module.text_tower is not None
        ]

    def bake(self) -> None:
        """See `Method.bake`."""
        for module in self.modules():
            if isinstance(module, Prompts) and module.text_tower is not None:
                module.bake()


class PromptConfig(MethodConfig):
    """Settings of methods whose prompts are learned through the text tower."""

    num_context: PositiveInt = 4

    @property
    def needs_text_tower(self) -> bool:
        """See `MethodConfig.needs_text_tower`."""
        return True

    @property
    def needs_joint_space(self) -> bool:
        """See `MethodConfig.needs_joint_space`."""
        return True

    @abstractmethod
    def build(self, facts: Facts, text_tower: TextTower | None = None) -> Method:
        """The classifier, with its text tower to be trained, without to predict only."""


LogitScale = Literal["learned", "temperature", "clip", "plain"]


class ScaledCosine(nn.Module):
    """Cosines as logits: scale * cosine + shift.

    Args:
        kind: ``learned`` scales and shifts by learned numbers that begin at SigLIP's 10 and -10, which suits losses of
            independent classes (our choice); ``temperature`` learns the scale from CLIP's 100 (CAPNET); ``clip``
            keeps 100 (LMPT's code); ``plain`` leaves the cosine as it is.
    """

    def __init__(self, kind: LogitScale) -> None:
        super().__init__()
        scale = {"learned": 10.0, "plain": 1.0}.get(kind, _CLIP_SCALE)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=kind in ("learned", "temperature"))
        self.shift = nn.Parameter(torch.tensor(-10.0 if kind == "learned" else 0.0), requires_grad=kind == "learned")

    def forward(self, cosine: Tensor) -> Tensor:
        """Logits of cosines, of any shape."""
        return self.log_scale.exp() * cosine + self.shift
