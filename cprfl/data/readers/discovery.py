"""What `cprfl init` looks at, and what a reader says of it: how a folder could be read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from cprfl.data.opened import regular_file
from cprfl.data.readers.annotations import SplitName, split_name
from cprfl.data.readers.locate import SUFFIXES
from cprfl.data.walking import walk
from cprfl.errors import DatasetError

OF_TOOLS = {"__MACOSX", "__pycache__", "@eaDir"}
"""Folders that programs put beside the images: what is in them is no data."""

_IGNORED = OF_TOOLS | {"node_modules", "outputs", "mlruns", "venv"}


@dataclass(frozen=True)
class Proposal:
    """A way to read what is there.

    Attributes:
        dataset: settings of the section ``dataset``, paths relative to the tree's root.
        found: what was found, one line: format, dialect, files.
        unsure: what else a setting could be, by its name; a comment behind it in the YAML.
    """

    dataset: Mapping[str, Any]
    found: str
    unsure: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tree:
    """The files below a folder.

    Attributes:
        root: the folder.
        files: paths below it, sorted; hidden ones and folders of tools are left out.
        only: the one file of annotations that was pointed at, where it was a file and not a folder.
    """

    root: Path
    files: Sequence[str]
    only: str | None = None

    @classmethod
    def of(cls, path: Path) -> Tree:
        """What lies below a folder, or beside and below a file.

        Raises:
            DatasetError: where there is nothing.
        """
        if not path.exists():
            raise DatasetError(f"{path}: no such file or folder on this machine{_mend(path)}")
        root = path if path.is_dir() else path.parent
        files: list[str] = []
        for start, _, names in walk(root, lambda name: name not in _IGNORED and not name.startswith(".")):
            files += [f"{start}{name}" for name in names if not name.startswith(".")]
        if not files:
            raise DatasetError(f"{path}: an empty folder")
        return cls(root, files, None if path.is_dir() else path.name)

    @cached_property
    def images(self) -> list[str]:
        """Files with an image's suffix."""
        return [file for file in self.files if PurePosixPath(file).suffix.lower() in SUFFIXES]

    def annotations(self, *suffixes: str) -> list[str]:
        """Files with one of these suffixes (``.json``): the one that was pointed at alone, if one was."""
        candidates = self.files if self.only is None else [self.only]
        return [file for file in candidates if PurePosixPath(file).suffix.lower() in suffixes]

    def path(self, file: str) -> str:
        """The path that a reader opens."""
        return str(self.root / file)

    def head(self, file: str, size: int = 65536) -> bytes:
        """The first bytes of a file.

        Raises:
            StorageError: where it is none that ends, such as a pipe.
            DatasetError: where it is a link to nothing.
        """
        try:
            with regular_file(self.path(file)).open("rb") as opened:
                return opened.read(size)
        except FileNotFoundError:
            raise DatasetError(f"{self.path(file)}: a link to a file that is not there; remove it") from None


def _mend(path: Path) -> str:
    """What to do where an address was given in place of a path."""
    is_address = re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) is not None
    return "; point at a copy, and set data_root in what is written to the address" if is_address else ""


def split_of_path(file: str) -> SplitName | None:
    """The split that a path speaks of (``valid/x.json``, ``instances_train2017.json``), the innermost word first."""
    for part in reversed([*PurePosixPath(file).parent.parts, PurePosixPath(file).stem]):
        words = [part, *reversed(re.split(r"[^A-Za-z0-9]+", part))]
        found = next((split for word in words if (split := split_name(word)) is not None), None)
        if found is not None:
            return found
    return None


def splits_of(files: Iterable[str]) -> dict[SplitName, str] | None:
    """One file a split, by what the files' paths say; a single file is the training split.

    None where two files would be one split, or one file's path says nothing beside others'.
    """
    listed = list(files)
    if len(listed) == 1:
        return {"train": listed[0]}
    splits: dict[SplitName, str] = {}
    for file in listed:
        split = split_of_path(file)
        if split is None or split in splits:
            return None
        splits[split] = file
    return splits if "train" in splits else None


def common_folder(files: Iterable[str]) -> str:
    """The folder below which all of these files are, ``.`` for the root."""
    parents = [str(PurePosixPath(file).parent) for file in files]
    return (os.path.commonpath(parents) if parents else "") or "."
