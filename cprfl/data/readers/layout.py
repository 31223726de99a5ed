"""How annotations and images lie in a folder: what several readers propose by."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import TypeVar, get_args

from cprfl.data.readers.annotations import SplitName
from cprfl.data.readers.discovery import Tree, common_folder, split_of_path, splits_of
from cprfl.data.readers.locate import SUFFIXES

_SAMPLE = 25
T = TypeVar("T")


def folder_of_images(tree: Tree, names: Sequence[str], near: str) -> str | None:
    """The folder below which names lead to images, relative to the tree's root; none where they lead nowhere.

    Args:
        names: of images, as annotations write them: with or without suffix, with a path that may begin elsewhere.
        near: the annotations; of several folders the one that their path has most in common with is taken.
    """
    called = _Called(tree.images)
    votes = Counter[str]()
    matched = 0
    for name in names[:: max(1, len(names) // _SAMPLE)]:
        found = {_folder_by(image, name.replace("\\", "/")) for image in called(name)}
        votes.update(found)
        matched += bool(found)
    if not votes:
        return None
    split = split_of_path(near)
    best = max(
        sorted(votes),
        key=lambda folder: (
            votes[folder], split_of_path(f"{folder}/x") == split, not _is_of_masks(folder), _shared(folder, near),
        ),
    )  # fmt: skip
    images = [called(name) for name in names] if votes[best] < matched else [[]]
    if all(len(alike) < 2 for alike in images) and any(images):  # names without the folders that the images are in
        return common_folder(image for alike in images for image in alike)
    return best


def split_choices(files: Iterable[str]) -> list[dict[SplitName, str]]:
    """Ways to take files as splits: all of them where their paths tell them apart, else those of one name, or each.

    One file more than tell splits apart may be that of all images (``trainval``), and is a way by itself.
    """
    listed = list(files)
    whole = _split_files(listed)
    if whole is not None or len(listed) < 2:
        return [whole] if whole else []
    for file in sorted(listed, key=lambda file: (split_of_path(file) is not None, -len(file))):
        others = splits_of(other for other in listed if other != file)
        if others is not None and len(others) > 1:
            return [others, {"train": file}]
    alike: dict[str, list[str]] = {}
    for file in listed:
        alike.setdefault(PurePosixPath(file).name, []).append(file)
    choices: list[dict[SplitName, str]] = []
    for group in sorted(alike.values(), key=len, reverse=True):
        splits = _split_files(group)
        choices += [splits] if splits else [{"train": file} for file in group]
    return choices


def _split_files(files: Sequence[str]) -> dict[SplitName, str] | None:
    """As `splits_of`; one file that says no split, beside others that say test or validation, is the training split."""
    silent = [file for file in files if split_of_path(file) is None]
    if len(files) < 2 or len(silent) != 1:
        return splits_of(files)
    splits: dict[SplitName, str] = {}
    for file in files:
        split = split_of_path(file) or "train"
        if splits.setdefault(split, file) != file:
            return None
    return splits


def in_order(splits: Mapping[SplitName, T]) -> dict[SplitName, T]:
    """Training, validation, test."""
    return {split: splits[split] for split in get_args(SplitName) if split in splits}


class _Called:
    """The images that a name may mean: those of its suffix, if there are any, for masks have the images' names too."""

    def __init__(self, images: Iterable[str]) -> None:
        self._by_base: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for image in images:
            self._by_base.setdefault(_base(image), []).append(image)
            self._by_stem.setdefault(stem_of(image), []).append(image)

    def __call__(self, name: str) -> Sequence[str]:
        return self._by_base.get(_base(name.replace("\\", "/"))) or self._by_stem.get(stem_of(name), [])


def _is_of_masks(folder: str) -> bool:
    """Whether a folder is called as one of what is made of the images (VOC's ``SegmentationClass``)."""
    return re.search(r"mask|segment|thumb|depth", PurePosixPath(folder).name, re.IGNORECASE) is not None


def _base(name: str) -> str:
    """A file's name, to compare."""
    return unicodedata.normalize("NFC", name.rpartition("/")[2]).casefold()


def stem_of(name: str) -> str:
    """A file's name without folders and an image's suffix, to compare."""
    base = _base(name.replace("\\", "/"))
    return PurePosixPath(base).stem if PurePosixPath(base).suffix in SUFFIXES else base


def _folder_by(image: str, name: str) -> str:
    """The folder below which an image has as much of a name as the two have in common."""
    parts, written = PurePosixPath(image).parts[:-1], PurePosixPath(name).parts[:-1]
    same = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(parts), reversed(written), strict=False))
    return str(PurePosixPath(*parts[: len(parts) - len(list(same))]))


def _shared(folder: str, file: str) -> int:
    """How many folders two paths have in common."""
    pairs = zip(PurePosixPath(folder).parts, PurePosixPath(file).parts, strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
