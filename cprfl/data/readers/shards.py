"""Data sets in many files: patterns for their paths, and what lies below a folder."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs

from cprfl.data.filesystems import filesystem, is_remote, local_path, on
from cprfl.data.readers.annotations import SplitName
from cprfl.data.readers.discovery import OF_TOOLS, splits_of
from cprfl.data.storage import DataPath, Folder, parent
from cprfl.data.walking import walk
from cprfl.errors import DatasetError

Paths = DataPath | list[DataPath]
"""A path or URI, a pattern of them, or a list of both."""

_BRACES = re.compile(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}")
_MOST = 100_000


def expanded(written: str | Sequence[str]) -> list[str]:
    """The files that a path, a pattern or a list of them means.

    ``{000000..000009}`` and ``{a,b}`` are spelled out, whether there are such files or not; ``*``, ``?`` and ``[0-9]``
    in a file's name stand for the files that there are, by name. A path that exists is itself.

    Raises:
        DatasetError: for a pattern that no file matches, and one that finds only some of ``...-of-00010``.
    """
    paths = [written] if isinstance(written, str) else written
    files = [file for path in paths for file in ([path] if _exists(path) else _matches(path))]
    if not files:
        raise DatasetError("dataset.splits: an empty list of files")
    return list(dict.fromkeys(files))


def _exists(path: str) -> bool:
    return bool(on(path, lambda opened, place: opened.get_file_info(place).type) == fs.FileType.File)


def _matches(pattern: str) -> list[str]:
    return [file for path in _spelled_out(pattern) for file in (_listed(path) if _has_wildcard(path) else [path])]


def _has_wildcard(path: str) -> bool:
    return any(mark in path.rpartition("/")[2] for mark in "*?[")


def _spelled_out(pattern: str) -> list[str]:
    """The pattern with each of the braces' choices."""
    paths = [pattern]
    while any(_BRACES.search(path) for path in paths):
        paths = [choice for path in paths for choice in _choices(path)]
        if len(paths) > _MOST:
            raise DatasetError(f"dataset.splits: {pattern} stands for more than {_MOST} files")
    return paths


def _choices(path: str) -> list[str]:
    found = _BRACES.search(path)
    if found is None:
        return [path]
    first, dots, last = found.group(1).partition("..")
    if not dots:
        choices = found.group(1).split(",")
    elif not (_is_number(first) and _is_number(last) and int(first) <= int(last) < int(first) + _MOST):
        raise DatasetError(f"dataset.splits: {path}: expected {{first..last}} in braces, such as {{000000..000009}}")
    else:
        choices = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return [f"{path[: found.start()]}{choice}{path[found.end() :]}" for choice in choices]


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 19


def _listed(pattern: str) -> list[str]:
    """The files whose names match the pattern's last part."""
    folder, base = parent(pattern), pattern.rpartition("/")[2]
    names = sorted(name for name in Folder(folder).files() if fnmatch.fnmatchcase(name, base))
    if not names:
        raise DatasetError(f"dataset.splits: no file matches {pattern}; check the pattern and data_root")
    shards = [found for name in names if (found := re.search(r"-(\d+)-of-(\d+)", name))]
    numbers = {int(shard.group(1)) for shard in shards}
    if len(shards) == len(names) and len({shard.group(2) for shard in shards}) == 1:
        missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
        if 0 < missing < int(shards[0].group(2)):
            raise DatasetError(f"dataset.splits: {pattern}: file {missing} of {shards[0].group(2)} is not there")
    return [name if folder == "." and not pattern.startswith("./") else f"{folder}/{name}" for name in names]


def pattern_of(files: Sequence[str], among: Sequence[str]) -> str | list[str]:
    """A pattern that means these files and no others, where their names differ in numbers only; else they themselves.

    Args:
        files: sorted paths.
        among: all files that there are.
    """
    if len(files) == 1:
        return files[0]
    pattern = f"{parent(files[0])}/{re.sub(r'[0-9]+', '*', files[0].rpartition('/')[2])}".removeprefix("./")
    meant = [file for file in among if file.count("/") == pattern.count("/") and fnmatch.fnmatchcase(file, pattern)]
    return pattern if meant == list(files) and not _has_wildcard(parent(pattern)) else list(files)


def alike_but_for_numbers(files: Sequence[str]) -> list[list[str]]:
    """Files in groups of which one's path is another's with other numbers in it."""
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(re.sub(r"[0-9]+", "0", file), []).append(file)
    return list(groups.values())


def patterns_of_splits(
    groups: Sequence[Sequence[str]], among: Sequence[str]
) -> dict[SplitName, str | list[str]] | None:
    """The split that each group of files is, by their paths; a single group is the training split.

    None where a group says none beside others, where two are one split, or where there is no training split.
    """
    by_first = {files[0]: files for files in groups}
    splits = splits_of(by_first)
    if splits is None:
        return None
    return {split: pattern_of(by_first[first], among) for split, first in splits.items()}


def files_below(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the files below a folder, and those of the folders; sorted.

    Hidden ones and those of tools are left out. Links are followed, but not in circles.

    Raises:
        DatasetError: where there is no such folder.
    """
    files, folders = _walked(local_path(folder)) if not is_remote(folder) else _remote(folder)
    if not files and not folders:
        raise DatasetError(f"{folder}: no such folder, or an empty one; check the path and data_root")
    return sorted(files), sorted(folders)


def _walked(root: Path) -> tuple[list[str], list[str]]:
    files: list[str] = []
    folders: list[str] = []
    for start, inner, names in walk(root, _is_shown):
        files += [f"{start}{name}" for name in names if _is_shown(name)]
        folders += [f"{start}{name}" for name in inner]
    return files, folders


def _remote(folder: str) -> tuple[list[str], list[str]]:
    place = filesystem(folder)[1]
    infos = on(
        folder, lambda opened, at: opened.get_file_info(fs.FileSelector(at, allow_not_found=True, recursive=True))
    )  # fmt: skip
    below = [(info, info.path.removeprefix(place).strip("/")) for info in infos]
    shown = [(info, path) for info, path in below if all(map(_is_shown, path.split("/")))]
    files = [path for info, path in shown if info.type == fs.FileType.File]
    return files, [path for info, path in shown if info.type == fs.FileType.Directory]


def _is_shown(name: str) -> bool:
    return not name.startswith(".") and name not in OF_TOOLS
