"""Prompts encoded once per step, against once per image: forward and backward of CoOp's texts.

python -m tests.benchmarks.prompts
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from cprfl.encoders.clip import create_clip
from cprfl.encoders.clip.text_tower import TextTower
from cprfl.models import CoOp
from tests.helpers import facts_of

ROUNDS, WIDTH = 5, 64


def seconds(prompts: torch.nn.Module, times: int) -> float:
    """Of encoding all prompts so many times and propagating back."""
    started = time.perf_counter()
    sum(prompts().sum() for _ in range(times)).backward()
    return time.perf_counter() - started


def main() -> None:
    """Print a line per batch size."""
    tower = TextTower(create_clip("cprfl-embedded", "random", None, Path()), "cprfl-embedded")
    facts = replace(facts_of(24, WIDTH, WIDTH), global_dim=WIDTH)
    prompts = CoOp.Config().build(facts, tower).prompts.train()
    seconds(prompts, 1)
    for batch in (8, 32):
        ratios = [seconds(prompts, batch) / seconds(prompts, 1) for _ in range(ROUNDS)]
        print(f"24 classes, {batch} images: once per image takes {statistics.median(ratios):.1f} times as long")


if __name__ == "__main__":
    main()
