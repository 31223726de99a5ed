"""Label-free classification in closed form (PIAA, ICML 2026, arXiv 2605.25821): what labels have to beat.

Texts name the cells of unlabelled training images, the surest ones of each class make a Gaussian discriminant, and that
scores the cells. No label and no gradient takes part. Temperatures are those of the released code for object names; a
`softmax` at factor t is ``softmax(t x)``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models.base import ClosedFormConfig, Facts, Features, Method, check_joint_space
from cprfl.models.cells import top_weights
from cprfl.models.zero_shot import log_odds

_SMALLEST = 1e-12


def gaussian_discriminant(
    cells_NE: Tensor, probabilities_NC: Tensor, fallback_CE: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weights [E, C] and biases [C] of a Gaussian discriminant with one shared covariance.

    A cell belongs to its most probable class. A class's mean weighs its cells by their probability of it; S is the
    unbiased covariance of the cells about the means of their classes, and its inverse is taken as
    E pinv((n - 1) S + tr(S) I). W = S^-1 mu and b = -mu' S^-1 mu / 2 + log(1 / C).

    Args:
        cells_NE: n cells.
        probabilities_NC: of each cell over the classes.
        fallback_CE: means of classes without a cell; the mean of all cells unless given.
    """
    cells = cells_NE.double()
    num_cells, width = cells.shape
    num_classes = probabilities_NC.shape[1]
    own_NC = F.one_hot(probabilities_NC.argmax(dim=1), num_classes).double()
    weight_NC = own_NC * probabilities_NC.double()
    total_C = weight_NC.sum(dim=0)
    without = cells.mean(dim=0).expand(num_classes, -1) if fallback_CE is None else fallback_CE.double()
    mean_CE = torch.where(total_C[:, None] > 0, weight_NC.T @ cells / total_C.clamp(min=_SMALLEST)[:, None], without)
    centred_NE = cells - own_NC @ mean_CE
    centred_NE = centred_NE - centred_NE.mean(dim=0)
    scatter_EE = centred_NE.T @ centred_NE  # (n - 1) S
    ridge = scatter_EE.trace() / max(num_cells - 1, 1)
    identity = torch.eye(width, dtype=cells.dtype, device=cells.device)
    inverse_EE = width * torch.linalg.pinv(scatter_EE + ridge * identity, hermitian=True)
    weight_EC = inverse_EE @ mean_CE.T
    bias_C = -math.log(num_classes) - (mean_CE.T * weight_EC).sum(dim=0) / 2
    return weight_EC.to(cells_NE.dtype), bias_C.to(cells_NE.dtype)


class LabelFree(Method):
    """Cells scored by a discriminant that unlabelled images made, and the summary scored by texts."""

    text_CE: Tensor
    weight_EC: Tensor
    bias_C: Tensor

    class Config(ClosedFormConfig):
        """Settings of `LabelFree`.

        Attributes:
            cells_per_class: of lowest entropy that are kept.
            text_factor: of the softmax over classes by which texts name cells.
            refine_factor: of the softmax of the first discriminant, for the second.
            cell_factor: of the softmax over classes of a cell's discriminants.
            image_factor: of the softmax over classes of the maxima over cells.
            global_factor: of the softmax over classes of the summary's cosines.
            global_weight: share of the summary's view.
        """

        brings: ClassVar[dict[str, Any]] = {"encoder": {"project": True, "layer": -1}}

        name: Literal["label_free"] = "label_free"
        cells_per_class: PositiveInt = 512
        text_factor: PositiveFloat = 60.0
        refine_factor: PositiveFloat = 100.0
        cell_factor: PositiveFloat = 1 / 500
        image_factor: PositiveFloat = 200.0
        global_factor: PositiveFloat = 80.0
        global_weight: float = Field(default=0.1, ge=0, le=1)

        @property
        def needs_joint_cells(self) -> bool:
            """See `MethodConfig.needs_joint_cells`."""
            return True

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> LabelFree:
            """The classifier before it is fitted.

            Raises:
                ShapeError: where texts, summaries and cells are not of one space.
            """
            return LabelFree(self, facts)

    def __init__(self, config: Config, facts: Facts) -> None:
        super().__init__()
        self.config = config
        check_joint_space(facts, config.name, cells=True)
        self.register_buffer("text_CE", F.normalize(facts.text_embeddings_CM, dim=1), persistent=False)
        self.register_buffer("weight_EC", self.text_CE.T.clone())
        self.register_buffer("bias_C", torch.zeros(facts.num_classes))

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C] of cells [B, V, E] and summaries [B, E], both in the joint space."""
        c = self.config
        strongest_BC = self._cell_probabilities(grid_BVD).amax(dim=1)
        by_cells_BC = (c.image_factor * strongest_BC).log_softmax(dim=-1)
        cosine_BC = F.normalize(global_BE, dim=1) @ self.text_CE.T
        by_summary_BC = (c.global_factor * cosine_BC).log_softmax(dim=-1)
        shares = torch.tensor([c.global_weight, 1 - c.global_weight], device=grid_BVD.device).log()
        return log_odds(torch.logaddexp(shares[0] + by_summary_BC, shares[1] + by_cells_BC))

    def attention(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor | None:
        """See `Method.attention`: the one cell of each class that counts; none where only the summary does."""
        if self.config.global_weight == 1:
            return None
        return top_weights(self._cell_probabilities(grid_BVD), 1).transpose(1, 2)

    def _cell_probabilities(self, grid_BVD: Tensor) -> Tensor:
        """Of each cell over the classes, [B, V, C]."""
        scores_BVC = F.normalize(grid_BVD, dim=-1) @ self.weight_EC + self.bias_C
        return (self.config.cell_factor * scores_BVC).softmax(dim=-1)

    def fit(self, features: Features) -> None:
        """See `Method.fit`; the targets are not looked at."""
        cells_NE, probabilities_NC = self._surest_cells(features)
        weight_EC, bias_C = gaussian_discriminant(cells_NE, probabilities_NC, self.text_CE.cpu())
        refined_NC = (self.config.refine_factor * (cells_NE @ weight_EC + bias_C)).softmax(dim=1)
        kept = _above_a_deviation(refined_NC)
        weight_EC, bias_C = gaussian_discriminant(cells_NE[kept], refined_NC[kept], self.text_CE.cpu())
        self.weight_EC.copy_(weight_EC)
        self.bias_C.copy_(bias_C)

    def _surest_cells(self, features: Features) -> tuple[Tensor, Tensor]:
        """Of each class the cells of lowest entropy [n, E] among those that texts name so, and their probabilities."""
        text_CE, limit = self.text_CE.cpu(), self.config.cells_per_class
        num_classes, width = text_CE.shape
        cells, probabilities = torch.zeros(0, width), torch.zeros(0, num_classes)
        for encoded, _ in features():
            cells_NE = F.normalize(encoded.grid_BVD.float().flatten(0, 1), dim=1)
            found_NC = (self.config.text_factor * cells_NE @ text_CE.T).softmax(dim=1)
            cells, probabilities = torch.cat([cells, cells_NE]), torch.cat([probabilities, found_NC])
            entropy_N = -torch.special.xlogy(probabilities, probabilities).sum(dim=1)
            named_N = probabilities.argmax(dim=1)
            kept = []
            for label in range(num_classes):
                rows = (named_N == label).nonzero().flatten()
                kept.append(rows[entropy_N[rows].argsort(stable=True)[:limit]])
            chosen = torch.cat(kept)
            cells, probabilities = cells[chosen], probabilities[chosen]
        return cells, probabilities


def _above_a_deviation(probabilities_NC: Tensor) -> Tensor:
    """Whether a cell is surer of its class than the mean of that class's cells by a deviation, [n]."""
    surest_N, named_N = probabilities_NC.max(dim=1)
    kept_N = torch.zeros_like(named_N, dtype=torch.bool)
    for label in named_N.unique():
        rows = named_N == label
        sure = surest_N[rows]
        kept_N[rows] = sure >= (sure.mean() + sure.std(correction=0)).clamp(max=sure.max())
    return kept_N
