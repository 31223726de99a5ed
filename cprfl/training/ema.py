"""Exponential moving average of what a training changes."""

from __future__ import annotations

import torch
from torch import Tensor

from cprfl.training.objective import Objective


class Ema:
    """Keeps ``average <- decay * average + (1 - decay) * weights`` for all trained parameters.

    Args:
        objective: whose parameters are averaged; the average starts from them.
        decay: share of the average that stays at each step; during the first steps it is (1 + t) / (10 + t) where
            that is smaller, so that a short training does not remember its random start.
    """

    def __init__(self, objective: Objective, decay: float) -> None:
        self.objective, self.decay = objective, decay
        self.steps = 0
        self._parameters = objective.trained_parameters()
        self._average = [parameter.detach().clone() for parameter in self._parameters.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._average, [p.detach() for p in self._parameters.values()], 1 - decay)
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        """The objective's kept state, with averages in place of the parameters."""
        return self.objective.kept_state() | dict(zip(self._parameters, self._average, strict=True))

    @torch.no_grad()
    def load(self, state: dict[str, Tensor], steps: int) -> None:
        """Go on from averaged weights saved after ``steps`` updates."""
        saved = [state[name].to(average.device) for name, average in zip(self._parameters, self._average, strict=True)]
        torch._foreach_copy_(self._average, saved)
        self.steps = steps
