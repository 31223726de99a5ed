"""AdamW with decay groups, and the one-cycle schedule."""

from __future__ import annotations

import torch
from torch import nn

from cprfl.training.config import TrainConfig
from cprfl.training.objective import Objective

SETTINGS = ("initial_lr", "max_lr", "min_lr", "weight_decay")  # of a group, that follow from the configuration


def adamw(objective: Objective, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only: biases and norms (one-dimensional) are left alone, as in the released code.

    A tower that moves has its own learning rate and decay.
    """
    decay, finetune, lr = config.weight_decay, config.finetune, config.lr or objective.method.lr
    tower_decay = decay if finetune.weight_decay is None else finetune.weight_decay
    parts: list[tuple[nn.Module | None, float, float]] = [
        (objective.method, lr, decay),
        (objective.tower, lr * finetune.lr_factor, tower_decay),
    ]
    groups = []
    for module, lr, weight_decay in parts:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad] if module else []
        groups.append({"params": [p for p in trained if p.ndim >= 2], "lr": lr, "weight_decay": weight_decay})
        groups.append({"params": [p for p in trained if p.ndim < 2], "lr": lr, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in groups if group["params"]])


def one_cycle(
    optimizer: torch.optim.Optimizer, total_steps: int, warmup: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Rise to each group's learning rate during the first ``warmup`` of the steps, then fall to nearly zero."""
    peaks, steps = [group["lr"] for group in optimizer.param_groups], max(total_steps, 2)
    if warmup * steps == 1:  # torch's rise would end where it begins, and divides by its length
        warmup = 0.5 / steps
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=warmup)
