"""Weights from a local file or folder, or a pretrained tag, never unpickled."""

from __future__ import annotations

import pickle
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.storage import local_copy
from cprfl.errors import WeightsError

Loaded = TypeVar("Loaded")

_IN_FOLDERS = (
    "model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
_PROBE_SECONDS = 5


def weights_file(path: str) -> str:
    """The file of weights that a path or URI names.

    In a local folder, such as the snapshot of a Hugging Face repository, it is the one with the usual name, or the only
    file of safetensors.

    Raises:
        WeightsError: where the folder has none, or several.
    """
    if is_remote(path) or not local_path(path).is_dir():
        return path
    folder = local_path(path)
    named = [folder / name for name in _IN_FOLDERS if (folder / name).is_file()]
    found = named[:1] or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        inside = ", ".join(file.name for file in found[:3]) or "no file of weights"
        raise WeightsError(f"{path}: the folder has {inside}; one is expected, such as {_IN_FOLDERS[0]}; give its path")
    return str(found[0])


def load_weights(path: str) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a torch file that holds tensors only.

    Of a checkpoint the entry ``state_dict`` or ``model`` is taken, and a ``module.`` prefix is dropped.

    Args:
        path: of a file, or of a local folder with one (`weights_file`).

    Raises:
        WeightsError: where the file is missing, is damaged or would need unpickling, or holds no named tensors.
    """
    path = weights_file(path)
    try:
        with local_copy(path) as file:
            if file.suffix == ".safetensors":
                state = load_file(file)
            else:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"{path}: weights file not found; check the path and data_root") from None
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        said = f" ({error})" if isinstance(error, SafetensorError) else ""  # PyTorch's own advice is to unpickle
        raise WeightsError(
            f"{path}: not a weights file that can be read without unpickling{said}; convert it to safetensors"
        ) from None
    for entry in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(entry), dict):
            state = state[entry]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: holds no tensors by name; save a model's state_dict() in it")
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
            f"Download them elsewhere, put the .safetensors (or weights-only .pt) file, or the repository's folder, "
            f"under data_root, and give its path as {setting}"
        ) from None


def from_hugging_face(load: Callable[[], Loaded], model: str, tag: str, setting: str) -> Loaded:
    """As `from_hub`, but where Hugging Face cannot be reached its client looks into its cache alone, and at once.

    It would ask again for most of a minute for each file, even for one that it has.
    """
    import huggingface_hub.constants as hub

    found: Any = hub.HF_HUB_OFFLINE
    hub.HF_HUB_OFFLINE = found or not _answers(hub.ENDPOINT)
    try:
        return from_hub(load, model, tag, setting)
    finally:
        hub.HF_HUB_OFFLINE = found


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the client may know other certificates
    except OSError:
        return False
    return True


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
