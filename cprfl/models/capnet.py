"""CAPNET: class-aware prompts refined by a label graph (arXiv 2511.20641, 2025).

No code of the published method could be read, nor its full text. What is here follows its summaries and development
states of its second author's code: one context for all classes that begins as "a photo of a", a label graph of text
alone, a three-layer GCN whose output is added to the texts, adapters in the tower (``train.backbone: adapter``), five
crops at test time (``encoder.crops``). Ours, since the sources are silent or disagree: the temperature is trained from
CLIP's 100 (as in the summaries; the code freezes it), prompts and GCN share one optimiser, and the loss is the
Distribution-Balanced one unless another is chosen.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, check_joint_space
from cprfl.models.graph import GraphNetwork, label_graph
from cprfl.models.prompts import PromptConfig, PromptMethod, Prompts, ScaledCosine

__all__ = ["CAPNET", "label_graph"]


class CAPNET(PromptMethod):
    """Temperature times the cosine of the image's summary and normalised F_t + GCN(F_t), F_t the learned prompts."""

    adjacency_CC: Tensor

    class Config(PromptConfig):
        """Settings of `CAPNET`.

        Attributes:
            num_context: tokens of the prompts' context; those of "a photo of a".
            graph: whether the GCN is there; without it the prompts alone classify (an ablation).
            top_k: neighbours in the label graph, the class itself included; 60 (COCO) or all.
            reweight: s, the neighbours' share before the softmax.
            temperature: T of the graph's row softmax.
            hidden: width of the GCN's two hidden layers.
            logits: what is made of the cosine; see `ScaledCosine`.
        """

        brings: ClassVar[dict[str, Any]] = {
            "encoder": {"crops": 5},
            "loss": {"name": "distribution_balanced"},
            "train": {"backbone": "adapter"},
        }

        name: Literal["capnet"] = "capnet"
        graph: bool = True
        top_k: PositiveInt = 60
        reweight: float = Field(default=0.2, ge=0, le=1)
        temperature: PositiveFloat = 0.3
        hidden: PositiveInt = 2048
        logits: Literal["learned", "temperature", "clip"] = "temperature"

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> CAPNET:
            """See `PromptConfig.build`."""
            return CAPNET(self, facts, text_tower)

    def __init__(self, config: Config, facts: Facts, text_tower: TextTower | None) -> None:
        super().__init__()
        check_joint_space(facts, config.name, cells=False)
        self.prompts = Prompts(facts, text_tower, config.num_context, start="phrase")
        self.network: GraphNetwork | None = None
        if config.graph:
            adjacency_CC = label_graph(facts.text_embeddings_CM, config.top_k, config.reweight, config.temperature)
            self.register_buffer("adjacency_CC", adjacency_CC, persistent=False)
            self.network = GraphNetwork([facts.global_dim, config.hidden, config.hidden, facts.global_dim])
        self.scale = ScaledCosine(config.logits)

    def classifiers(self) -> Tensor:
        """The classes in the joint space [C, E], of unit length."""
        text_CE: Tensor = self.prompts()
        if self.network is not None:
            text_CE = F.normalize(text_CE + self.network(text_CE, self.adjacency_CC), dim=1)
        return text_CE

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of summaries [B, E]; the cells are not used."""
        logits_BC: Tensor = self.scale(F.normalize(global_BE, dim=1) @ self.classifiers().T)
        return logits_BC
