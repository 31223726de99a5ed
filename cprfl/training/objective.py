"""What a step minimises: method and, where it moves, image tower, with criterion, penalties and distillation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cprfl.encoders.adapters import Backbone, let_move, moved_state
from cprfl.encoders.base import Encoded, ImageEncoder
from cprfl.models.base import Criterion, Method
from cprfl.training.config import TrainConfig

Inputs = Encoded | Tensor
"""Cached features, or images uint8 [B, 3, H, W] for a tower that moves."""

_METHOD, _TOWER = "method.", "tower."


class Objective(nn.Module):
    """One module from inputs and targets to the parts of the loss, so that gradients are averaged over all of it.

    Args:
        method: the classifier.
        criterion: the loss of logits and targets.
        config: how the tower moves.
        tower: the image encoder, where it moves.
        teacher: a copy of it that stays as it is, for distillation; it is in no state and gets no gradient.
        penalty: of logits, beside the criterion.
    """

    teacher: ImageEncoder | None

    def __init__(
        self,
        method: Method,
        criterion: Criterion,
        config: TrainConfig,
        tower: ImageEncoder | None = None,
        teacher: ImageEncoder | None = None,
        penalty: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.method, self.criterion, self.penalty = method, criterion, penalty
        self.backbone: Backbone = config.backbone
        self.batch_norm: Literal["train", "frozen"] = config.finetune.batch_norm
        self.tower, self.distill = tower, config.distill
        self.__dict__["teacher"] = teacher  # not registered as a part of this module
        if tower is not None:
            let_move(tower, config.backbone, config.finetune.adapter_width)
            if config.finetune.gradient_checkpointing:
                tower.checkpoint_gradients()

    def forward(self, inputs: Inputs, targets_BC: Tensor) -> dict[str, Tensor]:
        """The parts whose sum is minimised, by name."""
        encoded = self.encode(inputs)
        seen: list[Tensor] = []  # logits of the method, or of each of its members

        def criterion(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
            seen.append(logits_BC)
            return self.criterion(logits_BC, targets_BC)

        parts = self.method.losses(criterion, targets_BC, *encoded)
        if self.penalty is not None:
            parts["correlation"] = torch.stack([self.penalty(logits_BC) for logits_BC in seen]).mean()
        if self.teacher is not None:
            with torch.no_grad():
                unmoved_BE = self.teacher(cast(Tensor, inputs)).global_BE
            parts["distill"] = self.distill * F.l1_loss(encoded.global_BE, unmoved_BE)
        return parts

    def encode(self, inputs: Inputs) -> Encoded:
        """Cells and summaries in float32, as they are cached or as the tower gives them now."""
        if self.tower is not None:
            encoded: Encoded = self.tower(cast(Tensor, inputs))
            return encoded
        grid_BVD, global_BE = cast(Encoded, inputs)
        return Encoded(grid_BVD.float(), global_BE.float())

    def to(self, device: torch.device) -> Self:  # type: ignore[override]
        """As `nn.Module.to`, the teacher too."""
        super().to(device)
        if self.teacher is not None:
            self.teacher.to(device)
        return self

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`, but statistics that are to be kept stay in evaluation mode."""
        super().train(mode)
        if self.tower is not None and self.backbone == "adapter":
            self.tower.eval()
        elif self.tower is not None and self.batch_norm == "frozen":
            for module in self.tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """What gradients change, by name; never a frozen tower's weights."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def kept_state(self) -> dict[str, Tensor]:
        """What checkpoint and resuming need: the method, and of the tower what moved."""
        state = {f"{_METHOD}{name}": value for name, value in self.method.state_dict().items()}
        if self.tower is not None:
            prefix = f"{_TOWER}adapters." if self.backbone == "adapter" else _TOWER
            state |= {f"{prefix}{name}": value for name, value in moved_state(self.tower, self.backbone).items()}
        return state

    def load_kept_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `kept_state` gave."""
        problems = self.load_state_dict(state, strict=False)
        assert not problems.unexpected_keys, problems.unexpected_keys

    @contextmanager
    def loaded(self, state: dict[str, Tensor]) -> Iterator[None]:
        """Have other weights, with the texts that belong to them, while the block lasts."""
        own = {name: value.clone() for name, value in self.kept_state().items()}
        self.load_kept_state(state)
        self.method.bake()
        try:
            yield
        finally:
            self.load_kept_state(own)

    def prediction_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What scoring needs of a kept state: texts are baked in place of what is learned through the text tower."""
        unneeded = {f"{_METHOD}{name}" for name in self.method.learned_through_text}
        if not unneeded:
            return state
        with self.loaded(state):
            return {name: value.clone() for name, value in self.kept_state().items() if name not in unneeded}


def join_kept_state(method: dict[str, Tensor], tower: dict[str, Tensor]) -> dict[str, Tensor]:
    """The kept state of a method and of a tower that moved as a whole."""
    own = {f"{_METHOD}{name}": value for name, value in method.items()}
    return own | {f"{_TOWER}{name}": value for name, value in tower.items()}


def split_kept_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The method's part of a kept state and the tower's, under their own names."""
    method = {name.removeprefix(_METHOD): value for name, value in state.items() if name.startswith(_METHOD)}
    tower = {name.removeprefix(_TOWER): value for name, value in state.items() if name.startswith(_TOWER)}
    return method, {name.removeprefix("adapters."): value for name, value in tower.items()}
