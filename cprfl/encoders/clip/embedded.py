"""Trains the embedded CLIP: a small open_clip model that learns coloured shapes from freshly rendered pictures.

It takes the place of downloaded weights where there is no network, and goes through the same code as they do.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cprfl.data.files import fingerprint
from cprfl.data.synthetic import CLASS_NAMES, RENDERER_VERSION, render_picture
from cprfl.data.tensor_files import read_tensors, write_tensors
from cprfl.encoders.base import STATISTICS
from cprfl.encoders.clip.library import ARCHITECTURE, EMBEDDED, open_clip_module, quietly
from cprfl.errors import WeightsError
from cprfl.progress import progress

STEPS, BATCH, SIZE, LEARNING_RATE, SEED = 300, 96, 48, 4e-3, 0
TEMPLATES = ("a photo of a {}.", "a {}.", "a picture of a {}.", "there is a {} in the scene.")


def embedded_fingerprint() -> str:
    """Changes with all that determines the embedded model's weights."""
    settings = [STEPS, BATCH, SIZE, LEARNING_RATE, SEED, TEMPLATES, RENDERER_VERSION]
    return fingerprint([settings, ARCHITECTURE.read_text()])


def embedded_weights(cache_dir: Path) -> Path:
    """The embedded model's weights file in ``cache_dir``; trains it first where there is none (about a minute).

    A damaged file is made anew, and that is said.
    """
    path = cache_dir / "encoders" / f"{EMBEDDED}-{embedded_fingerprint()}.safetensors"
    if path.exists():
        try:
            read_tensors(path, WeightsError, "it is made anew")
            return path
        except WeightsError as error:
            print(error, file=sys.stderr, flush=True)
    write_tensors(path, _train())
    return path


def _train() -> dict[str, Tensor]:
    """Contrastive training on balanced batches: every class BATCH / c times, each time with a random template.

    Captions of one class are interchangeable, so all of them count as matches of a picture (with the usual one match
    a row, most negatives of a batch with 24 different captions would be false).
    """
    open_clip = open_clip_module()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model: Any = quietly(open_clip.create_model, EMBEDDED, pretrained_image=False)
        tokens_TCL = torch.stack(
            [open_clip.get_tokenizer(EMBEDDED)([template.format(name) for name in CLASS_NAMES])
             for template in TEMPLATES]
        )  # fmt: skip
        decayed = [p for p in model.parameters() if p.ndim >= 2]
        plain = [p for p in model.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
            lr=LEARNING_RATE,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
        labels_B = torch.arange(BATCH) % len(CLASS_NAMES)
        matches_BB = (labels_B[:, None] == labels_B).float()
        matches_BB /= matches_BB.sum(dim=1, keepdim=True)
        model.train()
        for images in progress(_batches(), total=STEPS, what="training the embedded encoder"):
            template_B = torch.randint(len(TEMPLATES), (BATCH,))
            image_BE, text_BE, scale = model(images, tokens_TCL[template_B, labels_B])
            logits_BB = scale * image_BE @ text_BE.T
            loss = (F.cross_entropy(logits_BB, matches_BB) + F.cross_entropy(logits_BB.T, matches_BB)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(0, math.log(100))
    return dict(model.state_dict())


def _batches() -> Iterator[Tensor]:
    """Normalised batches [B, 3, SIZE, SIZE], rendered one step ahead of the training in a thread."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in STATISTICS["clip"])

    def render(step: int) -> Tensor:
        numbers = range(step * BATCH, (step + 1) * BATCH)
        pictures = [
            np.asarray(render_picture(i % len(CLASS_NAMES), SEED, number, SIZE)) for i, number in enumerate(numbers)
        ]
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return (pixels - mean) / std

    with ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) // 2)) as pool:
        upcoming = pool.submit(render, 0)
        for step in range(STEPS):
            images = upcoming.result()
            if step + 1 < STEPS:
                upcoming = pool.submit(render, step + 1)
            yield images
