"""Every method with settings that make it small. A new one adds a line to `METHODS` and is tested like the others."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cprfl.encoders.base import Encoded
from cprfl.encoders.clip import create_clip
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models import (
    CAPNET,
    CPRFL,
    CSRA,
    HPDVAL,
    LMPT,
    MLGCN,
    AutoConfig,
    CoOp,
    Ensemble,
    Facts,
    GaussianDiscriminant,
    LabelFree,
    LinearProbe,
    LogisticRegression,
    MethodConfig,
    Query2Label,
    ZeroShot,
)
from tests.helpers import facts_of

SMALL = CPRFL.Config(dim=16, num_heads=2, head_dim=4, mlp_dim=16, dropout=0.0)
REGRESSION = LogisticRegression.Config(strengths=[0.1], num_folds=2)
METHODS: dict[str, MethodConfig] = {
    "cprfl": SMALL,
    "cprfl, standardized": SMALL.model_copy(update={"standardize": True}),
    "coop": CoOp.Config(),
    "coop, a context for each class": CoOp.Config(class_specific=True, logits="clip"),
    "linear probe": LinearProbe.Config(),
    "logistic regression": REGRESSION,
    "zero shot": ZeroShot.Config(),
    "zero shot by softmax": ZeroShot.Config(scores="softmax"),
    "ensemble": Ensemble.Config(members=[SMALL, LinearProbe.Config(), REGRESSION], weights="fitted", num_folds=2),
    "cprfl, of a width that fits": CPRFL.Config(center_text=True),
    "hp-dval, alignment": HPDVAL.Config(stage="alignment", top_k=2),
    "hp-dval, prompts": HPDVAL.Config(top_k=2),
    "hp-dval, as released": HPDVAL.Config(variant="released"),
    "capnet": CAPNET.Config(hidden=16, top_k=3),
    "capnet without a graph": CAPNET.Config(graph=False, logits="learned"),
    "lmpt": LMPT.Config(num_context=4),
    "ml-gcn": MLGCN.Config(),
    "query2label": Query2Label.Config(dim=16, num_heads=2, mlp_dim=16, dropout=0.0),
    "csra": CSRA.Config(),
    "gaussian discriminant": GaussianDiscriminant.Config(num_folds=2),
    "label free": LabelFree.Config(cells_per_class=16),
    "auto": AutoConfig(num_cprfl=2, num_folds=2),
}  # fmt: skip
CLASSES, DIM, SUMMARY = 5, 64, 64


def facts() -> Facts:
    found = facts_of(CLASSES, SUMMARY, DIM)
    counts = torch.tensor([12, 30, 9, 20, 17])
    together = torch.full((CLASSES, CLASSES), 4).fill_diagonal_(0) + torch.diag(counts)
    return replace(
        found, global_dim=SUMMARY, grid_mean_D=torch.arange(DIM) / 80.0, grid_std_D=torch.ones(DIM) * 2,
        class_counts_C=counts, co_occurrence_CC=together, num_images=60,
    )  # fmt: skip


class Images:
    """Random features whose labels follow from them."""

    def __init__(self, num_images: int = 60) -> None:
        generator = torch.Generator().manual_seed(1)
        self.grid = torch.randn(num_images, 4, DIM, generator=generator).half()
        self.summary = torch.randn(num_images, SUMMARY, generator=generator).half()
        self.targets = (self.grid.float().mean(dim=1)[:, :CLASSES] > 0.2).float()

    def __call__(self) -> Iterator[tuple[Encoded, Tensor]]:
        for rows in torch.arange(len(self.grid)).split(16):
            yield Encoded(self.grid[rows], self.summary[rows]), self.targets[rows]

    def scores_of(self, method: torch.nn.Module) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = method.eval()(self.grid.float(), self.summary.float())
        return logits


@functools.cache
def text_tower() -> TextTower:
    return TextTower(create_clip("cprfl-embedded", "random", None, Path()), "cprfl-embedded")
