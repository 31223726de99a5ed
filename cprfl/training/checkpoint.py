"""Checkpoints: weights and facts as safetensors, JSON beside them, and what resuming needs. Nothing is unpickled."""

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
from cprfl.models.base import Facts
from cprfl.training.objective import split_kept_state

VERSION = 2
_METHOD, _TOWER, _FACTS = "model.safetensors", "tower.safetensors", "facts.safetensors"
_DESCRIPTION, _RESUME = "checkpoint.json", "resume.pt"


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says of itself.

    Attributes:
        experiment: the whole configuration, as JSON-like values.
        training_key: names the training: its settings and its data.
        class_names: names of the scores' columns.
        encoder_fingerprint: of the image encoder when the training began.
        text_encoder: where the class-name embeddings came from.
        epoch: epochs trained, counted from 1; 0 where nothing is trained by gradients.
        metrics: metrics of that epoch.
        holds_tower: whether the weights of an image tower that moved, here or in the experiment before, are in it.
    """

    experiment: dict[str, Any]
    training_key: str
    class_names: list[str]
    encoder_fingerprint: str
    text_encoder: str
    epoch: int
    metrics: dict[str, float]
    holds_tower: bool


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
    facts: Facts,
    info: CheckpointInfo,
    state: TrainingState | None,
    inherited_tower: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint into ``folder``; the JSON comes last, so that a folder with it is whole.

    Args:
        folder: to write into.
        weights: an objective's kept state.
        facts: from which the method is rebuilt.
        info: what the checkpoint says of itself.
        state: what resuming needs, if anybody may resume.
        inherited_tower: what an earlier experiment made of the tower, where this one leaves it alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    method, tower = split_kept_state(weights)
    tower = tower or inherited_tower or {}
    assert bool(tower) == info.holds_tower
    _save_tensors(method, folder / _METHOD)
    if tower:
        _save_tensors(tower, folder / _TOWER)
    facts.save(folder / _FACTS)
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


def load_facts(folder: Path) -> Facts:
    """The facts from which the checkpoint's method is rebuilt."""
    try:
        return Facts.load(folder / _FACTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder / _FACTS, error) from None


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The method's averaged weights, those a prediction uses."""
    return _load_tensors(folder / _METHOD)


def load_tower(folder: Path) -> dict[str, Tensor]:
    """What training made of the image tower: its adapters, or all of its weights."""
    return _load_tensors(folder / _TOWER)


def load_state(folder: Path) -> TrainingState:
    """What resuming needs."""
    try:
        return TrainingState(**torch.load(folder / _RESUME, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{folder / _RESUME}: missing or damaged ({error}); start the training anew") from None


def _save_tensors(values: dict[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in values.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: missing or damaged ({error}); train again")
