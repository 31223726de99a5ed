"""CPRFL: Category-Prompt Refined Feature Learning (Yan et al., ACM MM 2024, arXiv 2408.08125)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.errors import CheckpointError, ShapeError
from cprfl.models.base import Facts, Method, StandardizingConfig, check_features
from cprfl.models.interaction import Interaction

# Names of our parameters and of the published ones (whose to_qkv is taken apart into query, key and value first).
_PUBLISHED = {
    "visual.": "fc.0.",
    "prompt.0.": "label_emb.0.",
    "prompt.3.": "label_emb.3.",
    "interaction.blocks.0.attention_norm.": "attention.layers.0.0.norm.",
    "interaction.blocks.0.to_query.": "attention.layers.0.0.fn.to_query.",
    "interaction.blocks.0.to_key.": "attention.layers.0.0.fn.to_key.",
    "interaction.blocks.0.to_value.": "attention.layers.0.0.fn.to_value.",
    "interaction.blocks.0.to_out.": "attention.layers.0.0.fn.to_out.",
    "interaction.blocks.0.mlp_norm.": "attention.layers.0.1.norm.",
    "interaction.blocks.0.mlp.": "attention.layers.0.1.fn.net.",
}


_RATE = 0.256  # peak learning rate times width: 1e-3 at 256 channels, 1.25e-4 at the published 2048


def width(num_images: int, num_classes: int) -> int:
    """Channels that fit a data set: 256 for a few hundred images, the published 2048 for a hundred thousand.

    The power of two nearest to 8 sqrt(images), or to twice the classes where that is more. Ours: the published width is
    one for all, and too wide for few images (docs/results.md).
    """
    wanted = max(8 * math.sqrt(num_images), 2 * num_classes)
    return int(min(max(2 ** round(math.log2(max(wanted, 1))), 256), 2048))


class CPRFL(Method):
    """Class prompts, made from text embeddings and refined by the image, are the classifier.

    P = GELU(T W1 + b1) W2 + b2 (prompt initialisation), P' = interaction([F W; P]) at the prompts, and the logit of
    class i is p'_i . p_i: each class only against its own prompt. Gradients reach P by both factors.
    """

    text_embeddings_CM: Tensor

    class Config(StandardizingConfig):
        """Settings of `CPRFL`. What is left out fits the data (`width`); the published values are in the brackets.

        Attributes:
            dim: D, width of prompts and cells (2048).
            num_heads: attention heads (8); one for each 64 channels unless given.
            head_dim: width of a head (512).
            mlp_dim: hidden width of the block's MLP (2048).
            tau: the prompt network's hidden width is tau * dim.
            dropout: in the prompt network and the block.
            prompt_network: ``nonlinear`` as above, or ``linear``: P = T W + b (an ablation of the paper's).
            depth: blocks of the interaction.
            residual: residual connections in the blocks (none in the released code).
            stop_gradient: cut one of the two paths by which gradients reach P: ``classifier`` (the factor p_i) or
                ``interaction`` (the prompts that enter the block).
            center_text: subtract the mean over the classes from the text embeddings and bring them to length 10 (not in
                the paper): with few images what all names share drowns what tells them apart.
        """

        name: Literal["cprfl"] = "cprfl"
        dim: PositiveInt | None = None
        num_heads: PositiveInt | None = None
        head_dim: PositiveInt = 64
        mlp_dim: PositiveInt | None = None
        tau: PositiveFloat = 0.5
        dropout: float = Field(default=0.1, ge=0, lt=1)
        prompt_network: Literal["nonlinear", "linear"] = "nonlinear"
        depth: PositiveInt = 1
        residual: bool = False
        stop_gradient: Literal["none", "classifier", "interaction"] = "none"
        center_text: bool = False

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> CPRFL:
            """The model of these class names and features."""
            return CPRFL(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        dim, text_dim = config.dim or width(facts.num_images, facts.num_classes), facts.text_embeddings_CM.shape[1]
        self.lr = _RATE / dim
        hidden = max(1, round(config.tau * dim))
        self.stop_gradient = config.stop_gradient
        text_CM = facts.text_embeddings_CM
        if config.center_text:
            text_CM = 10 * F.normalize(text_CM - text_CM.mean(dim=0), dim=1)
        self.register_buffer("text_embeddings_CM", text_CM.clone(), persistent=False)
        self.standardize = config.standardization(facts)
        self.visual = nn.Linear(facts.grid_dim, dim)
        self.prompt: nn.Module = nn.Linear(text_dim, dim)
        if config.prompt_network == "nonlinear":
            self.prompt = nn.Sequential(
                nn.Linear(text_dim, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, dim)
            )
        num_heads, mlp_dim = config.num_heads or max(1, dim // config.head_dim), config.mlp_dim or dim
        self.interaction = Interaction(
            dim, num_heads, config.head_dim, mlp_dim, config.dropout, config.depth, config.residual
        )

    @classmethod
    def from_published(cls, state_dict: Mapping[str, Tensor], text_embeddings: Tensor, num_heads: int = 8) -> CPRFL:
        """The model of a published checkpoint's head, with its dtype, dropout 0.1 as released.

        Args:
            state_dict: its weights by their published names; a ``module.`` prefix is dropped, ``Backbone.`` weights
                belong to the image encoder and are passed over.
            text_embeddings: [c, m], the embeddings it was trained with.
            num_heads: heads of its attention, which the weights do not tell.

        Raises:
            CheckpointError: where weights are missing or unknown.
            ShapeError: where the text embeddings do not fit.
        """
        state = {name.removeprefix("module."): value for name, value in state_dict.items()}
        state = {name: value for name, value in state.items() if not name.startswith("Backbone.")}
        fused = state.pop("attention.layers.0.0.fn.to_qkv.weight", torch.empty(0))
        for part, weight in zip(("query", "key", "value"), fused.chunk(3), strict=False):
            state[f"attention.layers.0.0.fn.to_{part}.weight"] = weight
        renamed: dict[str, Tensor] = {}
        for ours, theirs in _PUBLISHED.items():
            renamed |= {ours + name.removeprefix(theirs): v for name, v in state.items() if name.startswith(theirs)}
        needed = (
            "visual.weight",
            "prompt.0.weight",
            "prompt.3.weight",
            "interaction.blocks.0.to_query.weight",
            "interaction.blocks.0.mlp.0.weight",
        )
        if len(renamed) != len(state) or any(name not in renamed for name in needed):
            known = tuple(_PUBLISHED.values())
            unknown = [name for name in state if not name.startswith(known)]
            raise CheckpointError(
                f"not a published CPRFL checkpoint: unknown weights {unknown[:5]}, expected fc.0, label_emb.0, "
                "label_emb.3, attention.layers.0.{0,1} and Backbone"
            )
        inner = len(renamed["interaction.blocks.0.to_query.weight"])
        if inner % num_heads:
            raise ShapeError(f"num_heads={num_heads} does not divide the checkpoint's attention width {inner}")
        dim, feature_dim = renamed["visual.weight"].shape
        hidden, text_dim = renamed["prompt.0.weight"].shape
        if text_embeddings.ndim != 2 or text_embeddings.shape[1] != text_dim:
            raise ShapeError(
                f"text_embeddings have shape {list(text_embeddings.shape)}, the checkpoint takes [classes, {text_dim}]"
            )
        mlp_dim = renamed["interaction.blocks.0.mlp.0.weight"].shape[0]
        config = cls.Config(
            dim=dim, num_heads=num_heads, head_dim=inner // num_heads, mlp_dim=mlp_dim, tau=hidden / dim
        )
        model = cls(config, Facts.of_text(text_embeddings, feature_dim)).to(renamed["visual.weight"].dtype)
        model.load_state_dict(renamed)
        return model

    def prompts(self) -> Tensor:
        """The class prompts P, [C, D]."""
        prompts_CD: Tensor = self.prompt(self.text_embeddings_CM)
        return prompts_CD

    def category_features(self, features_BVD: Tensor, prompts_CD: Tensor) -> Tensor:
        """The prompts refined by each image, P', [B, C, D]."""
        check_features(features_BVD, self.visual.in_features)
        category_features_BCD: Tensor = self.interaction(self.visual(self.standardize(features_BVD)), prompts_CD)
        return category_features_BCD

    def forward(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """Logits [B, C] of grid features [B, V, D0]; the summary is not used."""
        prompts_CD = self.prompts()
        entering_CD = prompts_CD.detach() if self.stop_gradient == "interaction" else prompts_CD
        classifier_CD = prompts_CD.detach() if self.stop_gradient == "classifier" else prompts_CD
        return torch.einsum("bcd,cd->bc", self.category_features(grid_BVD, entering_CD), classifier_CD)

    def attention(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """See `Method.attention`: of each class's prompt in the last block, among the cells alone."""
        check_features(grid_BVD, self.visual.in_features)
        return self.interaction.attention(self.visual(self.standardize(grid_BVD)), self.prompts())
