"""What all readers share: their common settings, and the checks on what they read."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import PositiveInt, model_validator

from cprfl.config import Config
from cprfl.data import storage
from cprfl.data.long_tail import ParetoConfig, make_long_tailed
from cprfl.data.manifest import Groups, Manifest
from cprfl.errors import DatasetError

SplitName = Literal["train", "val", "test"]


class GroupsConfig(Config):
    """Head has at least ``head`` training images, tail fewer than ``tail``."""

    head: PositiveInt = Groups.head
    tail: PositiveInt = Groups.tail

    @model_validator(mode="after")
    def _the_tail_ends_where_the_head_begins(self) -> Self:
        if self.tail > self.head:
            raise ValueError(f"tail {self.tail} is above head {self.head}; a class would be in both")
        return self


@dataclass(frozen=True)
class Row:
    """One image as a reader found it; ``where`` (file and line, or id) is for messages only."""

    image_id: str
    uri: str
    labels: Sequence[int]
    where: str


class DatasetConfig(Config):
    """Settings of every data set; a subclass reads one format."""

    groups: GroupsConfig = GroupsConfig()
    on_bad_image: Literal["error", "skip"] = "error"
    long_tail: ParetoConfig | None = None

    @abstractmethod
    def read_rows(self) -> tuple[Sequence[str], dict[SplitName, list[Row]]]:
        """Class names, and the rows of each split."""

    def read(self) -> Manifest:
        """Read the annotations, check them, and apply ``long_tail`` to the training split if it is set.

        Raises:
            DatasetError: naming file and line or id of what is missing, malformed or contradictory.
        """
        class_names, splits = self.read_rows()
        check_class_names(class_names)
        if not splits.get("train"):
            raise DatasetError("dataset.splits: no training image; give a non-empty split named train")
        rows = [(split, row) for split, listed in splits.items() for row in listed]
        seen: dict[str, str] = {}
        for _, row in rows:
            if row.image_id in seen:
                raise DatasetError(
                    f"{row.where}: image {row.image_id!r} is listed twice, first at {seen[row.image_id]}; remove one"
                )
            seen[row.image_id] = row.where
        manifest = Manifest(
            class_names=tuple(class_names),
            image_ids=tuple(row.image_id for _, row in rows),
            uris=tuple(row.uri for _, row in rows),
            splits=tuple(split for split, _ in rows),
            labels=tuple(tuple(sorted(set(row.labels))) for _, row in rows),
            groups=Groups(self.groups.head, self.groups.tail),
        )
        return make_long_tailed(manifest, self.long_tail) if self.long_tail else manifest


def check_class_names(names: Sequence[str]) -> None:
    """Refuse an empty or repeated class name, or no class at all."""
    if not names:
        raise DatasetError("dataset: no classes; every label list is empty, so there is nothing to learn")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or "" in names:
        raise DatasetError(f"dataset: class names must be unique and not empty; repeated: {repeated}")


def read_lines(path: str, what: str) -> list[tuple[int, str]]:
    """Numbered, stripped, non-empty lines of a text file.

    Raises:
        DatasetError: where the file is missing, is not UTF-8 text or is empty.
    """
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path, what).splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise DatasetError(f"{path}: {what} is empty; it needs one entry a line")
    return lines


def read_text(path: str, what: str) -> str:
    """A UTF-8 text file (a byte-order mark is dropped)."""
    try:
        return storage.read_bytes(path).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise DatasetError(f"{path}: {what} not found; check the path and data_root") from None
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: {what} is not UTF-8 text (byte {error.start})") from None


def class_index(name: str, index: dict[str, int], where: str) -> int:
    """Index of a class by its name, or an error that names the nearest one."""
    if name not in index:
        close = difflib.get_close_matches(name, index, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"classes: {', '.join(list(index)[:10])}..."
        raise DatasetError(f"{where}: unknown class {name!r}; {hint}")
    return index[name]
