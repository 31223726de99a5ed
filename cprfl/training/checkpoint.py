"""Checkpoints: weights and facts as safetensors, JSON beside them, and what resuming needs. Nothing is unpickled.

Each file is compared with its checksum when it is read: those of tensors hold their own, that of what resuming needs
stands in ``checkpoint.json``.
"""

from __future__ import annotations

import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cprfl.data.files import fast_digest, read_record, write_record
from cprfl.data.tensor_files import read_tensors, write_tensors
from cprfl.errors import CheckpointError
from cprfl.models.base import Facts
from cprfl.training.objective import split_kept_state

VERSION = 3
_METHOD, _TOWER, _FACTS = "model.safetensors", "tower.safetensors", "facts.safetensors"
_DESCRIPTION, _RESUME = "checkpoint.json", "resume.pt"
_AGAIN = "remove its folder and train again"


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
    """Write a checkpoint into ``folder``; the JSON comes last, so that a folder with it is complete.

    Args:
        folder: to write into.
        weights: an objective's kept state.
        facts: from which the method is rebuilt.
        info: what the checkpoint says of itself.
        state: what resuming needs, if anybody may resume.
        inherited_tower: what an earlier experiment made of the tower, where this one leaves it alone.

    Raises:
        OSError: where the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    method, tower = split_kept_state(weights)
    tower = tower or inherited_tower or {}
    assert bool(tower) == info.holds_tower
    write_tensors(folder / _METHOD, method)
    if tower:
        write_tensors(folder / _TOWER, tower)
    facts.save(folder / _FACTS)
    resume = None if state is None else _save_state(state, folder / _RESUME)
    write_record(folder / _DESCRIPTION, {"version": VERSION, _RESUME: resume, **asdict(info)})


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is that of a checkpoint, sound or not."""
    return (folder / _DESCRIPTION).exists()


def load_info(folder: Path) -> CheckpointInfo:
    """The description of the checkpoint in ``folder``.

    Raises:
        CheckpointError: where there is none, a damaged one, or one of another version.
    """
    values = _description(folder)
    del values[_RESUME]
    return CheckpointInfo(**values)


def load_facts(folder: Path) -> Facts:
    """The facts from which the checkpoint's method is rebuilt.

    Raises:
        CheckpointError: where they are missing or damaged.
    """
    return Facts.load(folder / _FACTS)


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The method's averaged weights, those a prediction uses.

    Raises:
        CheckpointError: where they are missing or damaged.
    """
    return read_tensors(folder / _METHOD, CheckpointError, _AGAIN)[0]


def load_tower(folder: Path) -> dict[str, Tensor]:
    """What training made of the image tower: its adapters, or all of its weights.

    Raises:
        CheckpointError: where they are missing or damaged.
    """
    return read_tensors(folder / _TOWER, CheckpointError, _AGAIN)[0]


def load_state(folder: Path) -> TrainingState:
    """What resuming needs.

    Raises:
        CheckpointError: where it is missing or damaged.
    """
    path, mend = folder / _RESUME, f"remove {folder.parent} to start the training anew"
    try:
        if fast_digest(path) != _description(folder)[_RESUME]:
            raise CheckpointError(f"{path}: damaged (its content has changed); {mend}")
        return TrainingState(**torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise CheckpointError(f"{path}: missing or cannot be read ({error.strerror}); {mend}") from None
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: not what this version reads ({error}); {mend}") from None


def check_parts(folder: Path) -> None:
    """Read all of a checkpoint that a prediction needs, before it takes the place of another.

    Raises:
        CheckpointError: naming the part that is missing or damaged.
    """
    info = load_info(folder)
    load_facts(folder)
    load_weights(folder)
    if info.holds_tower:
        load_tower(folder)


def _description(folder: Path) -> dict[str, Any]:
    path = folder / _DESCRIPTION
    if not path.exists():
        raise CheckpointError(f"{folder}: no checkpoint here; `cprfl train CONFIG` writes one")
    values = read_record(path, CheckpointError, _AGAIN)
    if values.pop("version", None) != VERSION:
        raise CheckpointError(f"{folder}: checkpoint of another version than {VERSION}; train again")
    return values


def _save_state(state: TrainingState, path: Path) -> str:
    """Write what resuming needs; the digest of the file."""
    try:
        with path.open("wb", buffering=0) as file:
            torch.save(dict(vars(state)), file)
    except RuntimeError as error:  # torch's word for what the file said: the disk is full
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    return fast_digest(path)
