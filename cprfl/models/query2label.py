"""Query2Label: class queries that attend to an image's cells (Liu et al. 2021, arXiv 2107.10834)."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, Method, StandardizingConfig, check_features


class Query2Label(Method):
    """Transformer decoder layers refine a query per class; logit_c = w_c . q_c + b_c, each class on its own query.

    Each layer is the paper's: self-attention among the queries, attention to the projected cells, an MLP, and a layer
    norm after each of them. The paper adds sinusoidal position encodings to the cells; here are none, since methods
    know neither the number of cells nor their layout, and cells of a ViT carry their place already.
    """

    class Config(StandardizingConfig):
        """Settings of `Query2Label`; smaller than the paper's (2048 wide, MLP 8192), which tunes the image tower too.

        Cells are standardised unless told otherwise: a frozen tower's channels differ much in scale, and the largest
        would decide alone where a query looks.

        Attributes:
            queries: where the queries start, which are trained in either case. ``text``: a random linear map of the
                class names' embeddings, so that similar classes begin alike; ``learned``: N(0, 1), as in the paper.
            dim: width of queries and projected cells.
            num_heads: attention heads; must divide ``dim``.
            mlp_dim: hidden width of the layers' MLPs.
            depth: number of layers.
            dropout: in attention weights, in the MLPs and after each part of a layer.
        """

        name: Literal["query2label"] = "query2label"
        standardize: bool = True
        queries: Literal["text", "learned"] = "text"
        dim: PositiveInt = 256
        num_heads: PositiveInt = 4
        mlp_dim: PositiveInt = 512
        depth: PositiveInt = 2
        dropout: float = Field(default=0.1, ge=0, lt=1)

        @model_validator(mode="after")
        def _heads_share_the_width(self) -> Self:
            if self.dim % self.num_heads:
                raise ValueError(f"num_heads {self.num_heads} does not divide dim {self.dim}")
            return self

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> Query2Label:
            """The model of these class names and features."""
            return Query2Label(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        dim, num_classes = config.dim, facts.num_classes
        self.standardize = config.standardization(facts)
        self.project = nn.Linear(facts.grid_dim, dim)
        from_text = config.queries == "text"
        start_CD = text_queries(facts.text_embeddings_CM, dim) if from_text else torch.randn(num_classes, dim)
        self.queries_CD = nn.Parameter(start_CD)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(dim, config.num_heads, config.mlp_dim, config.dropout, batch_first=True)
            for _ in range(config.depth)
        )
        bound = 1 / math.sqrt(dim)  # as nn.Linear starts, of which this is the diagonal
        self.weight_CD = nn.Parameter(torch.empty(num_classes, dim).uniform_(-bound, bound))
        self.bias_C = nn.Parameter(torch.empty(num_classes).uniform_(-bound, bound))

    def category_features(self, grid_BVD: Tensor) -> Tensor:
        """The queries refined by each image [B, C, dim], of grid features [B, V, D].

        Raises:
            ShapeError: where the cells have other channels than the model was built for.
        """
        cells_BVD = self._cells(grid_BVD)
        queries_BCD = self.queries_CD.expand(len(grid_BVD), -1, -1)
        for layer in self.layers:
            queries_BCD = layer(queries_BCD, cells_BVD)
        return queries_BCD

    def attention(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """See `Method.attention`: of each class's query in the last layer."""
        cells_BVD = self._cells(grid_BVD)
        queries_BCD = self.queries_CD.expand(len(grid_BVD), -1, -1)
        for layer in self.layers[:-1]:
            queries_BCD = layer(queries_BCD, cells_BVD)
        last: Any = self.layers[-1]
        among_queries_BCD, _ = last.self_attn(queries_BCD, queries_BCD, queries_BCD, need_weights=False)
        asking_BCD = last.norm1(queries_BCD + among_queries_BCD)
        weights_BCV: Tensor = last.multihead_attn(asking_BCD, cells_BVD, cells_BVD)[1]
        return weights_BCV

    def _cells(self, grid_BVD: Tensor) -> Tensor:
        check_features(grid_BVD, self.project.in_features)
        cells_BVD: Tensor = self.project(self.standardize(grid_BVD))
        return cells_BVD

    def forward(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """Logits [B, C] of grid features [B, V, D]; the summary is not used."""
        return torch.einsum("bcd,cd->bc", self.category_features(grid_BVD), self.weight_CD) + self.bias_C


def text_queries(text_CE: Tensor, dim: int) -> Tensor:
    """A random linear map of text embeddings [C, E] to queries [C, dim] of deviation 1, as free ones have.

    What all names have in common goes first: of CLIP's texts it is most of their length, and would make the queries
    nearly one. Of a single class nothing is left, and its query starts at zero.
    """
    centred_CE = text_CE - text_CE.mean(dim=0)
    queries_CD = centred_CE @ torch.randn(text_CE.shape[1], dim)
    return queries_CD / queries_CD.std(correction=0).clamp(min=1e-6)
