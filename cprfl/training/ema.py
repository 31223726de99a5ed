"""Exponential moving average of a model's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Ema:
    """Keeps ``average <- decay * average + (1 - decay) * weights`` for parameters and copies buffers.

    Args:
        model: whose weights are averaged; the average starts from them.
        decay: share of the average that stays at each step; during the first steps it is (1 + t) / (10 + t) where
            that is smaller, so that a short training does not remember its random start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._parameters = list(model.parameters())
        saved = model.state_dict().keys()  # which leaves out buffers that are no part of the weights
        self._buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
        self._names = [name for name, _ in model.named_parameters()]
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters], 1 - decay)
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights under the model's own names, and its buffers."""
        return dict(zip(self._names, self._average, strict=True)) | self._buffers

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from averaged weights saved after ``steps`` updates."""
        torch._foreach_copy_(self._average, [state[name].to(a.device) for name, a in zip(self._names, self._average,
                                                                                         strict=True)])  # fmt: skip
        self.steps = steps
