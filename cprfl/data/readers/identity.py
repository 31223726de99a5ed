"""Which rows are one image: an image is its file."""

from __future__ import annotations

import os.path
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import Row, SplitName
from cprfl.errors import DatasetError
from cprfl.plain import printable, steering_character


def identified(
    splits: Mapping[SplitName, Sequence[Row]], repeated: Literal["error", "merge"]
) -> tuple[dict[SplitName, list[Row]], list[str]]:
    """Rows with ids that are unique: their own, behind the split's name where two splits have one id for two files.

    Args:
        splits: rows of each split.
        repeated: what becomes of several rows of one file in one split.

    Returns:
        The rows, one a file, and what was decided about them.

    Raises:
        DatasetError: for a file that is in two splits, which is a leak; for one that is listed twice, unless joined;
            for a name with a control character.
    """
    seen: dict[str, tuple[SplitName, int]] = {}  # where each file is among the rows kept
    kept: dict[SplitName, list[Row]] = {}
    joined = 0
    for split, rows in splits.items():
        listed = kept[split] = []
        for row in rows:
            _check_name(row)
            file = _file(row.uri)
            if file not in seen:
                seen[file] = split, len(listed)
                listed.append(row)
                continue
            other, place = seen[file]
            first = kept[other][place]
            if other != split:
                raise DatasetError(
                    f"{row.where}: a leak: image {row.image_id!r} is in the split {split} and, at {first.where}, in "
                    f"the split {other}; remove one (both are {row.uri})"
                )
            if repeated == "error":
                raise DatasetError(
                    f"{row.where}: image {row.image_id!r} is listed twice, first at {first.where}; remove one, or set "
                    "dataset.repeated_images: merge to join their labels",
                    repeated_images="merge",
                )
            listed[place] = _joined(first, row)
            joined += 1
    notes = [f"{joined} rows are of images that have a row already; their labels are joined"] if joined else []
    return _with_unique_ids(kept), notes


def _check_name(row: Row) -> None:
    """Refuse names that steer what shows them: a terminal, a log, a page."""
    steering = steering_character(row.image_id) or steering_character(row.uri)
    if steering is not None:
        raise DatasetError(
            f"{printable(row.where)}: the image's name {row.image_id!a} holds the control character {steering}; "
            "rename it"
        )


def _file(uri: str) -> str:
    """What tells one file from another: its path, or its URI."""
    if is_remote(uri):
        return uri
    path = uri.removeprefix("file://")
    plain = os.path.normpath(path) if "//" in path or "/." in path else path  # which takes a while, a million times
    return unicodedata.normalize("NFC", plain)


def _joined(first: Row, second: Row) -> Row:
    shown = dict.fromkeys((*first.labels, *second.labels))
    unknown = tuple(name for name in dict.fromkeys((*first.unknown, *second.unknown)) if name not in shown)
    return replace(first, labels=tuple(shown), unknown=unknown)


def _with_unique_ids(splits: dict[SplitName, list[Row]]) -> dict[SplitName, list[Row]]:
    ids = {split: {row.image_id for row in rows} for split, rows in splits.items()}
    if sum(map(len, ids.values())) > len(set().union(*ids.values())):  # the same ids in two splits
        splits = {
            split: [replace(row, image_id=f"{split}/{row.image_id}") for row in rows] for split, rows in splits.items()
        }
    if any(len(ids[split]) < len(rows) for split, rows in splits.items()):  # of files in several folders
        splits = {split: [replace(row, image_id=row.uri) for row in rows] for split, rows in splits.items()}
    return splits
