"""Weights from a local file or a pretrained tag, never unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cprfl.data.storage import local_copy
from cprfl.errors import WeightsError

Loaded = TypeVar("Loaded")


def load_weights(path: str) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a torch file that holds tensors only.

    Keys of a checkpoint's ``state_dict`` entry are taken, and a ``module.`` prefix is dropped.

    Raises:
        WeightsError: where the file is missing, is damaged or would need unpickling.
    """
    try:
        with local_copy(path) as file:
            if file.suffix == ".safetensors":
                state = load_file(file)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: weights file not found; check the path and data_root") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path}: not a weights file that can be read without unpickling ({str(error).splitlines()[0]}); "
            "convert it to safetensors"
        ) from None
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): value for name, value in state.items()}


def from_hub(load: Callable[[], Loaded], model: str, tag: str, setting: str) -> Loaded:
    """Load published weights through a library that may download them.

    Raises:
        WeightsError: where they are neither cached nor to be downloaded; names the setting that takes a local file.
    """
    try:
        return load()
    except (OSError, RuntimeError) as error:  # huggingface_hub's and urllib's failures are OSErrors
        reason = str(error).strip().splitlines()
        raise WeightsError(
            f"{model}: weights {tag!r} are not in the local cache and could not be downloaded "
            f"({reason[0] if reason else type(error).__name__}).\n"
            f"Download them elsewhere, put the .safetensors (or weights-only .pt) file under data_root, and give its "
            f"path as {setting}"
        ) from None


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: str, model: str) -> None:
    """Load a state dict that must fit its model.

    Args:
        module: the model.
        state: all of its weights.
        path: where they came from.
        model: its name.

    Raises:
        WeightsError: naming weights that are missing, unknown, or of another shape, with both shapes.
    """
    try:
        problems = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path}: does not fit {model}: {str(error).splitlines()[-1].strip()}") from None
    missing, unexpected = problems.missing_keys, problems.unexpected_keys
    if missing or unexpected:
        raise WeightsError(
            f"{path}: does not fit {model}: {len(missing)} weights missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unknown ({', '.join(unexpected[:3])})"
        )
