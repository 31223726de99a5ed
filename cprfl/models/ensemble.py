"""Several methods on the same features, scored as one."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression
from torch import Tensor, nn

from cprfl.encoders.clip.text_tower import TextTower
from cprfl.evaluation.metrics import mean_precision
from cprfl.models.base import Criterion, Facts, Features, Method, MethodConfig
from cprfl.models.members import SingleMethod

AnyMember = Annotated[SingleMethod, Field(discriminator="name")]
_ROUNDS = 20  # of choosing a member: weights are multiples of 1 / 20


class Ensemble(Method):
    """The weighted sum of the members' logits.

    Members that start from different weights make different mistakes where images are few (deep ensembles,
    Lakshminarayanan et al., NeurIPS 2017). Those that gradients train have a loss each, of which the mean is minimised.
    """

    weight_M: Tensor
    offset: Tensor

    class Config(MethodConfig):
        """Any methods as members.

        ``weights``: ``equal`` is the mean of the logits. ``fitted`` chooses them on out-of-fold scores of the training
        images (``num_folds`` further trainings), so that the whole is not much worse than its best member.
        """

        name: Literal["ensemble"] = "ensemble"
        members: list[AnyMember] = Field(min_length=1)
        weights: Literal["equal", "fitted"] = "equal"
        num_folds: int = Field(default=5, ge=2)

        @property
        def by_gradients(self) -> bool:
            """See `MethodConfig.by_gradients`."""
            return any(member.by_gradients for member in self.members)

        @property
        def in_closed_form(self) -> bool:
            """See `MethodConfig.in_closed_form`."""
            return self.weights == "fitted" or any(member.in_closed_form for member in self.members)

        @property
        def needs_statistics(self) -> bool:
            """See `MethodConfig.needs_statistics`."""
            return any(member.needs_statistics for member in self.members)

        @property
        def needs_text_tower(self) -> bool:
            """See `MethodConfig.needs_text_tower`."""
            return any(member.needs_text_tower for member in self.members)

        @property
        def needs_joint_space(self) -> bool:
            """See `MethodConfig.needs_joint_space`."""
            return any(member.needs_joint_space for member in self.members)

        @property
        def needs_joint_cells(self) -> bool:
            """See `MethodConfig.needs_joint_cells`."""
            return any(member.needs_joint_cells for member in self.members)

        @property
        def folds(self) -> int:
            """See `MethodConfig.folds`."""
            return self.num_folds if self.weights == "fitted" else 0

        def build(self, facts: Facts, text_tower: TextTower | None = None) -> Ensemble:
            """The ensemble with all of its members."""
            return Ensemble(self, facts, text_tower)

    def __init__(self, config: Config, facts: Facts, text_tower: TextTower | None = None) -> None:
        super().__init__()
        self.names = _told_apart([member.name for member in config.members])
        self.trained = [number for number, member in enumerate(config.members) if member.by_gradients]
        self.members = nn.ModuleList(member.build(facts, text_tower) for member in config.members)
        self.lr = min((self._methods()[number].lr for number in self.trained), default=self.lr)
        self.register_buffer("weight_M", torch.full((len(config.members),), 1 / len(config.members)))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.mix(self.member_logits(grid_BVD, global_BE))

    def mix(self, logits_MNC: Tensor) -> Tensor:
        """See `Method.mix`: their weighted sum."""
        return torch.einsum("mnc,m->nc", logits_MNC, self.weight_M) + self.offset

    def attention(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor | None:
        """See `Method.attention`: the members' weighted mean, of those that have one and weigh something."""
        found = [
            (weight, weights_BCV)
            for member, weight in zip(self._methods(), self.weight_M.tolist(), strict=True)
            if weight and (weights_BCV := member.attention(grid_BVD, global_BE)) is not None
        ]
        if not found:
            return None
        total_BCV = torch.stack([weight * weights_BCV for weight, weights_BCV in found]).sum(dim=0)
        return total_BCV / sum(weight for weight, _ in found)

    def member_logits(self, grid_BVD: Tensor, global_BE: Tensor) -> Tensor:
        """See `Method.member_logits`."""
        return torch.stack([member(grid_BVD, global_BE) for member in self.members])

    def weigh_members(self, logits_MNC: Tensor, targets_NC: Tensor) -> dict[str, float]:
        """See `Method.weigh_members`: mAP of each member and of the sum on the folds, and each member's share."""
        logits, targets = logits_MNC.double().numpy(), targets_NC.numpy()
        weights, offset = fit_weights(logits, targets)
        self.weight_M.copy_(torch.from_numpy(weights))
        self.offset.fill_(offset)
        share_M = weights * logits.std(axis=(1, 2))
        found = {"folds/mAP": mean_precision(np.tensordot(weights, logits, 1), targets)}
        for name, member_NC, share in zip(self.names, logits, share_M / share_M.sum(), strict=True):
            found |= {f"folds/mAP/{name}": mean_precision(member_NC, targets), f"folds/share/{name}": float(share)}
        return found

    @property
    def learned_through_text(self) -> list[str]:
        """See `Method.learned_through_text`."""
        return [
            f"members.{n}.{name}" for n, member in enumerate(self._methods()) for name in member.learned_through_text
        ]

    def bake(self) -> None:
        """See `Method.bake`."""
        for member in self._methods():
            member.bake()

    def fit(self, features: Features) -> None:
        """See `Method.fit`."""
        for member in self._methods():
            member.fit(features)

    def losses(
        self, criterion: Criterion, targets_BC: Tensor, grid_BVD: Tensor, global_BE: Tensor
    ) -> dict[str, Tensor]:
        """The mean over the members that gradients train, name by name."""
        methods = self._methods()
        parts = [methods[number].losses(criterion, targets_BC, grid_BVD, global_BE) for number in self.trained]
        names = dict.fromkeys(name for part in parts for name in part)
        return {name: sum(part[name] for part in parts if name in part) / len(parts) for name in names}  # type: ignore[misc]

    def _methods(self) -> list[Method]:
        return list(self.members)  # type: ignore[arg-type]


def _told_apart(names: list[str]) -> list[str]:
    """The names, with a number after those that were there before."""
    before = [names[:position].count(name) for position, name in enumerate(names)]
    return [name if not times else f"{name} {times + 1}" for name, times in zip(names, before, strict=True)]


def fit_weights(logits_MNC: np.ndarray, targets_NC: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights [M] and an offset for the sum of members' logits, from scores of images that the members had not seen.

    Members are brought to one scale and chosen one after the other, with replacement, each time the one that raises
    mean average precision most (ensemble selection, Caruana et al., ICML 2004); the best prefix counts. A logistic
    regression of one variable then makes the sum a logit again, which leaves every ranking as it is.

    Args:
        logits_MNC: scores of the members.
        targets_NC: multi-hot, NaN where nobody knows.
    """
    scale_M = np.maximum(logits_MNC.std(axis=(1, 2)), 1e-12)
    scaled_MNC = logits_MNC / scale_M[:, None, None]
    chosen_M, best_M, best = np.zeros(len(scaled_MNC)), np.zeros(len(scaled_MNC)), -1.0
    for _ in range(_ROUNDS if len(scaled_MNC) > 1 else 1):
        tried = [chosen_M + one for one in np.eye(len(scaled_MNC))]
        found = [mean_precision(np.tensordot(c, scaled_MNC, 1), targets_NC) for c in tried]
        chosen_M = tried[int(np.argmax(found))]
        if max(found) > best:
            best, best_M = max(found), chosen_M / chosen_M.sum()
    mixed_NC = np.tensordot(best_M, scaled_MNC, 1)
    known_NC = ~np.isnan(targets_NC)
    platt = ScikitLogisticRegression(C=np.inf).fit(mixed_NC[known_NC][:, None], targets_NC[known_NC])
    slope = max(float(platt.coef_[0, 0]), 1e-6)  # never turned round
    return slope * best_M / scale_M, float(platt.intercept_[0])
