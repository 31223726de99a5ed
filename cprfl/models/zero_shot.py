"""Zero-shot CLIP: the cosine of the image's embedding and each class name's; nothing is fitted."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, Method, MethodConfig, check_joint_space


class ZeroShot(Method):
    """Scores of the summary in the joint space of image and text (Radford et al., ICML 2021)."""

    text_CE: Tensor

    class Config(MethodConfig):
        """``scores``: how images are ranked.

        ``cosine`` is the plain one; ``softmax`` the logit of its softmax over the classes of an image, at
        ``temperature``. The two rank images differently, by ten points of mAP in the literature.
        """

        name: Literal["zero_shot"] = "zero_shot"
        scores: Literal["cosine", "softmax"] = "cosine"
        temperature: PositiveFloat = 100.0

        @property
        def by_gradients(self) -> bool:
            """See `MethodConfig.by_gradients`."""
            return False

        @property
        def needs_joint_space(self) -> bool:
            """See `MethodConfig.needs_joint_space`."""
            return True

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> ZeroShot:
            """The classifier.

            Raises:
                ShapeError: where text embeddings and image summaries are not of one space.
            """
            return ZeroShot(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        check_joint_space(facts, config.name, cells=False)
        self.register_buffer("text_CE", F.normalize(facts.text_embeddings_CM, dim=1), persistent=False)

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of summaries [B, E]; the cells are not used."""
        cosine_BC = F.normalize(global_BE, dim=1) @ self.text_CE.T
        if self.config.scores == "cosine":
            return cosine_BC
        return log_odds((self.config.temperature * cosine_BC).log_softmax(dim=1))


def log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p; 1 - p is what the other classes have, and rounds to 0 where one class has it all."""
    return log_probability - torch.log(-torch.expm1(log_probability.clamp(max=-1e-6)))
