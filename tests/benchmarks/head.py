"""CPRFL's head, fast against plain: forward and backward, interleaved in one process, with error and peak memory."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cprfl.models import CPRFL, Facts
from tests.plain_cprfl import plain_logits


class Shape(NamedTuple):
    """B images, v cells, c classes, d width, heads x head width, width of the MLP; the least speed-up asked for."""

    batch: int
    cells: int
    classes: int
    dim: int
    heads: int
    head_dim: int
    mlp_dim: int
    target: float


SHAPES = [
    Shape(8, 196, 80, 2048, 8, 512, 2048, 3.4),
    Shape(8, 49, 80, 2048, 8, 512, 2048, 2.1),
    Shape(32, 196, 20, 768, 8, 96, 768, 4.6),
    Shape(16, 144, 120, 640, 8, 80, 640, 1.5),
    Shape(32, 49, 80, 512, 8, 64, 512, 1.0),
    Shape(64, 169, 200, 512, 8, 64, 512, 1.0),
    Shape(8, 49, 1000, 512, 8, 64, 512, 1.0),
]
ROUNDS = 7


def benchmark(device: torch.device) -> str:
    """A Markdown table of all shapes."""
    os.environ["KINETO_LOG_LEVEL"] = "99"  # the profiler that measures memory is talkative
    lines = [
        "| B | v | c | d | heads | plain, ms | ours, ms | speed-up | asked | peak memory, plain / ours, MB | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        lines.append(_row(shape, device))
    return "\n".join(lines)


def _row(shape: Shape, device: torch.device) -> str:
    torch.manual_seed(0)
    config = CPRFL.Config(
        dim=shape.dim, num_heads=shape.heads, head_dim=shape.head_dim, mlp_dim=shape.mlp_dim, dropout=0.0
    )
    model = CPRFL(config, Facts.of_text(torch.randn(shape.classes, 512), shape.dim)).to(device)
    features = torch.randn(shape.batch, shape.cells, shape.dim, device=device)

    def step(logits: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            model.zero_grad(set_to_none=True)
            values = logits()
            values.square().mean().backward()
            return values.detach()

        return run

    ours, plain = step(lambda: model(features)), step(lambda: plain_logits(model, features))
    reference = plain()
    error = float((ours() - reference).abs().max() / reference.abs().max())
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(ROUNDS):
        for name, run in (("plain", plain), ("ours", ours)):
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    ratio = statistics.median(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
    memory = {}
    for name, run in (("plain", plain), ("ours", ours)):
        model.zero_grad(set_to_none=True)  # or their release would count as negative
        memory[name] = _peak_memory(run, device)
    milliseconds = {name: 1000 * statistics.median(values) for name, values in times.items()}
    return (
        f"| {shape.batch} | {shape.cells} | {shape.classes} | {shape.dim} | {shape.heads} x {shape.head_dim} "
        f"| {milliseconds['plain']:.0f} | {milliseconds['ours']:.0f} | {ratio:.1f}x | {shape.target}x "
        f"| {memory['plain']:.0f} / {memory['ours']:.0f} | {error:.0e} |"
    )


def _peak_memory(run: Callable[[], Tensor], device: torch.device) -> float:
    """Most memory that tensors of one step hold at once, beyond what is there before, in MB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 1e6
