"""Gradient checkpointing: activations of blocks that are computed again in the backward pass, for less memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_activations(stages: Sequence[nn.Module]) -> None:
    """Have each block keep its inputs only, from now on; of a stage, each block that is in it.

    What hangs on a block or stage by a hook, as adapters do, stays outside: the libraries' own checkpointing goes past
    the hooks of stages.
    """
    for stage in stages:
        inside = getattr(stage, "blocks", stage)
        is_stage = isinstance(inside, nn.Sequential | nn.ModuleList)
        # Single layers are cheap, and in-place ones would overwrite what a checkpoint keeps.
        for block in [part for part in inside.children() if list(part.children())] if is_stage else [stage]:
            block.forward = _recomputed(block.forward)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, **options)

    return run
