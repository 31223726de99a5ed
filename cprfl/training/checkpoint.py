"""Checkpoints: safetensors weights, JSON beside them, and what resuming needs. Nothing is unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cprfl.data.files import write_json
from cprfl.errors import CheckpointError

VERSION = 1
ENCODER = "encoder.safetensors"
_WEIGHTS, _DESCRIPTION, _RESUME = "model.safetensors", "checkpoint.json", "resume.pt"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        experiment: the whole configuration, as JSON-like values.
        class_names: names of the scores' columns.
        feature_dim: channels of the grid features.
        encoder_fingerprint: of the image encoder whose features the model was trained on, before any fine-tuning.
        text_encoder: where the class-name embeddings came from.
        epoch: epochs trained, counted from 1.
        metrics: metrics of that epoch.
    """

    experiment: dict[str, Any]
    class_names: list[str]
    feature_dim: int
    encoder_fingerprint: str
    text_encoder: str
    epoch: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainingState:
    """What resuming needs beside the averaged weights; random numbers follow from seed, epoch and rank."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    ema: dict[str, Tensor]
    ema_steps: int


def save_checkpoint(
    folder: Path,
    weights: dict[str, Tensor],
    info: CheckpointInfo,
    state: TrainingState | None,
    encoder_weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint into ``folder``; the JSON comes last, so that a folder with it is whole.

    ``encoder_weights`` are those of an image encoder that was trained with the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file, values in ((_WEIGHTS, weights), (ENCODER, encoder_weights or {})):
        if values:
            save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, folder / file)
    if state is not None:
        torch.save(dict(vars(state)), folder / _RESUME)
    write_json(folder / _DESCRIPTION, {"version": VERSION, **asdict(info)})


def load_info(folder: Path) -> CheckpointInfo:
    """The description of the checkpoint in ``folder``.

    Raises:
        CheckpointError: where there is none, or one of another version.
    """
    try:
        values = json.loads((folder / _DESCRIPTION).read_text())
    except (OSError, json.JSONDecodeError):
        raise CheckpointError(f"{folder}: no checkpoint here; `cprfl train CONFIG` writes one") from None
    if values.pop("version", None) != VERSION:
        raise CheckpointError(f"{folder}: checkpoint of another version than {VERSION}; train again")
    return CheckpointInfo(**values)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights, those a prediction uses."""
    try:
        return load_file(folder / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / _WEIGHTS}: missing or damaged ({error}); train again") from None


def load_state(folder: Path) -> TrainingState:
    """What resuming needs."""
    try:
        return TrainingState(**torch.load(folder / _RESUME, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder / _RESUME}: missing or damaged ({error}); start the training anew") from None
