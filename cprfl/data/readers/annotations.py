"""What a reader hands on: the rows of each split, with the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

SplitName = Literal["train", "val", "test"]
_SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train", "training": "train", "trainval": "train", "train2017": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "val2017": "val",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test", "holdout": "test",
}  # fmt: skip


def split_name(word: str) -> SplitName | None:
    """The split that people mean by a word (``Training``, ``valid``); none where it is no such word."""
    return _SPLIT_WORDS.get(word.strip().casefold())


@dataclass(frozen=True, slots=True)
class Row:
    """One image as a reader found it.

    Attributes:
        image_id: its name within the annotations: the path below the folder of images, wherever there is one.
        uri: where the file is.
        labels: names of the classes that it shows.
        where: file and line, or id; for messages only.
        unknown: names of the classes of which nobody knows whether it shows them.
        group: what it belongs together with, where ``split.groups_by`` names a column.
    """

    image_id: str
    uri: str
    labels: Sequence[str]
    where: str
    unknown: Sequence[str] = ()
    group: str = ""


@dataclass(frozen=True)
class Annotations:
    """What a reader found.

    Attributes:
        class_names: in the format's own order; names that only rows have come behind them, sorted.
        splits: the rows of each split.
        notes: what was found out or decided that a person should know, one line each.
    """

    class_names: Sequence[str]
    splits: Mapping[SplitName, Sequence[Row]]
    notes: Sequence[str] = field(default_factory=list)
