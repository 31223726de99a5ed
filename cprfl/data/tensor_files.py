"""Tensors by name in a file of safetensors that says whether it is still what was written.

The checksum is of the content (names, types, shapes, values, metadata), which is at hand when a file has been read: no
byte is read twice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cprfl.data.files import CHECKSUM, reading, write_aside
from cprfl.errors import UserError

_ENTRY = "cprfl"  # of the file's metadata: one alone, for several come in any order, and equal files are equal bytes


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors from any device, with ``metadata`` beside them, whole or not at all.

    Raises:
        OSError: where the file cannot be written.
    """
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    said = dict(metadata or {})
    entry = json.dumps({**said, CHECKSUM: _checksum(kept, said)}, sort_keys=True)
    with write_aside(path) as aside:
        try:
            save_file(kept, aside, metadata={_ENTRY: entry})
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def read_tensors(path: Path, error: type[UserError], mend: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote: the tensors, on the CPU, and the metadata.

    Args:
        path: of the file.
        error: to raise where it is not what was written.
        mend: what the user can do then.

    Raises:
        UserError: ``error``, where the file is missing, cannot be read, is damaged or was written by somebody else.
    """
    with reading(path, error, mend):
        try:
            with safe_open(path, framework="pt") as file:
                said = dict(json.loads((file.metadata() or {}).get(_ENTRY, "{}")))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, ValueError, TypeError) as problem:  # no safetensors, or no JSON object in its metadata
            raise error(f"{path}: damaged ({problem}); {mend}") from None
    if said.pop(CHECKSUM, None) != _checksum(tensors, said):
        raise error(f"{path}: damaged (its content has changed), or of another version; {mend}")
    return tensors, said


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    names = sorted(tensors)
    described = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = xxhash.xxh3_64(json.dumps([metadata, described], sort_keys=True).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
