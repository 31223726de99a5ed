"""ML-GCN: classifiers made from the class names by a graph network (Chen et al., CVPR 2019, arXiv 1904.03582)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import Facts, Method, StandardizingConfig, check_features
from cprfl.models.graph import GraphNetwork, conditional_graph, label_graph


class MLGCN(Method):
    """logits = x W', x the maximum over the cells, W = GCN(text embeddings, graph) one classifier per class.

    The network has two layers, E -> hidden -> D, as in the paper. What is not in the paper is that the image tower may
    stay frozen and that the embeddings may be CLIP's instead of GloVe's.
    """

    text_CE: Tensor
    adjacency_CC: Tensor

    class Config(StandardizingConfig):
        """Settings of `MLGCN`; the paper's by default, but for the hidden width.

        Cells are standardised unless told otherwise: a frozen tower's channels differ much in scale, and the maximum
        of the largest ones would be most of every logit.

        Attributes:
            graph: ``co_occurrence`` of the training labels (`conditional_graph`, the paper's), or ``text``: the
                similarity of the names (`label_graph`), which the rare classes' few images cannot mislead.
            hidden_dim: width between the layers; 1024 in the paper, which had 80,000 images to train it.
            threshold: tau of the ``co_occurrence`` graph.
            reweight: weight that a class gives to its neighbours, p of ``co_occurrence`` and s of ``text``.
            top_k: classes that a class hears from in the ``text`` graph, itself included.
            temperature: T of the ``text`` graph.
        """

        name: Literal["ml_gcn"] = "ml_gcn"
        standardize: bool = True
        graph: Literal["co_occurrence", "text"] = "co_occurrence"
        hidden_dim: PositiveInt = 512
        threshold: float = Field(default=0.4, gt=0, le=1)
        reweight: float = Field(default=0.2, ge=0, lt=1)
        top_k: PositiveInt = 20
        temperature: PositiveFloat = 0.3

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> MLGCN:
            """The model of these class names, their co-occurrence and features."""
            return MLGCN(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        text_CE = facts.text_embeddings_CM
        if config.graph == "text":
            adjacency_CC = label_graph(text_CE, config.top_k, config.reweight, config.temperature)
        else:
            adjacency_CC = conditional_graph(facts.co_occurrence_CC, config.threshold, config.reweight)
        self.register_buffer("text_CE", text_CE.clone(), persistent=False)
        self.register_buffer("adjacency_CC", adjacency_CC, persistent=False)
        self.grid_dim = facts.grid_dim
        self.standardize = config.standardization(facts)
        self.network = GraphNetwork([text_CE.shape[1], config.hidden_dim, facts.grid_dim])

    def classifiers(self) -> Tensor:
        """One weight vector per class, [C, D]."""
        classifiers_CD: Tensor = self.network(self.text_CE, self.adjacency_CC)
        return classifiers_CD

    def forward(self, grid_BVD: Tensor, global_BE: Tensor | None = None) -> Tensor:
        """Logits [B, C] of grid features [B, V, D]; the summary is not used.

        Raises:
            ShapeError: where the cells have other channels than the model was built for.
        """
        check_features(grid_BVD, self.grid_dim)
        return self.standardize(grid_BVD).amax(dim=1) @ self.classifiers().T
