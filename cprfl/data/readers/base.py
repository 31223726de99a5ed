"""What all readers share: their common settings, and the way from what a reader found to a manifest."""

from __future__ import annotations

import gc
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cprfl.config import Config
from cprfl.data.long_tail import ParetoConfig, class_counts, make_long_tailed
from cprfl.data.manifest import TRAIN, Groups, Manifest
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.classes import ClassTable, class_table
from cprfl.data.readers.identity import identified
from cprfl.data.readers.inside import check_inside
from cprfl.data.storage import DataPath
from cprfl.data.stratify import deal
from cprfl.errors import DatasetError
from cprfl.words import named, percent


class GroupsConfig(Config):
    """Head has at least ``head`` training images, tail fewer than ``tail``."""

    head: PositiveInt = Groups.head
    tail: PositiveInt = Groups.tail

    @model_validator(mode="after")
    def _the_tail_ends_where_the_head_begins(self) -> Self:
        if self.tail > self.head:
            raise ValueError(f"tail {self.tail} is above head {self.head}; a class would be in both")
        return self


class SplitConfig(Config):
    """Which shares of the training images become test and validation images, where the data set has no such split.

    Each class keeps its share (`cprfl.data.stratify`); an image added later moves none of those before it.
    ``groups_by``: what belongs together on one side: a column of the table, or a regular expression that finds it in
    the image's path (``patient\\d+``).
    """

    test: float = Field(default=0.0, ge=0, lt=1)
    val: float = Field(default=0.0, ge=0, lt=1)
    seed: NonNegativeInt = 0
    groups_by: str | None = None

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if not 0 < self.test + self.val < 1:
            raise ValueError(f"test {self.test:g} and val {self.val:g}: their sum must lie between 0 and 1")
        return self


class DatasetConfig(Config):
    """Settings of every data set; a subclass reads one format.

    Attributes:
        groups: thresholds of head and tail.
        on_bad_image: whether images that are missing or do not decode are an error or skipped.
        long_tail: makes the training split long-tailed.
        classes: names and order of the classes; else they are what the annotations name.
        other_classes: whether a label that is not among ``classes`` is an error or is passed over.
        ignore_case: whether names that differ only in case are one class, in its most frequent spelling.
        classes_without_images: what becomes of a class that no training image shows: it is kept (the text may know
            enough of it), left out, or an error. It is named in any case.
        repeated_images: whether several rows of one image in one split are an error, or joined.
        split: makes a test or validation split where the data set has none.
        stay_inside: a folder; an image that annotations say to be elsewhere is an error (``.`` for ``data_root``).
    """

    groups: GroupsConfig = GroupsConfig()
    on_bad_image: Literal["error", "skip"] = "error"
    long_tail: ParetoConfig | None = None
    classes: list[str] | None = None
    other_classes: Literal["error", "ignore"] = "error"
    ignore_case: bool = False
    classes_without_images: Literal["keep", "leave_out", "error"] = "keep"
    repeated_images: Literal["error", "merge"] = "error"
    split: SplitConfig | None = None
    stay_inside: DataPath | None = None

    @abstractmethod
    def read_annotations(self) -> Annotations:
        """What the annotations say.

        Raises:
            DatasetError: naming file and line or id of what is missing or malformed.
        """

    def read(self, earlier: Mapping[str, str] | None = None) -> Manifest:
        """Read the annotations, check them, split them and apply ``long_tail``, each where it is asked for.

        Args:
            earlier: the split of each image that ``split`` has dealt out before, by id; they stay there.

        Raises:
            DatasetError: naming file and line or id of what is missing, malformed or contradictory.
        """
        with _collecting_no_garbage():
            return self._read_and_check(earlier or {})

    def _read_and_check(self, earlier: Mapping[str, str]) -> Manifest:
        annotations = self.read_annotations()
        if not annotations.splits.get("train"):
            raise DatasetError("dataset.splits: no training image; give a non-empty split named train")
        table = class_table(
            annotations.class_names, [row for rows in annotations.splits.values() for row in rows],
            self.classes, self.other_classes, self.ignore_case,
        )  # fmt: skip
        splits, notes = identified(annotations.splits, self.repeated_images)
        if self.stay_inside is not None:
            check_inside(self.stay_inside, (row for rows in splits.values() for row in rows))
        notes = [*annotations.notes, *table.notes, *notes]
        manifest = self._manifest(splits, table)
        if self.split is not None:
            manifest = self._split(manifest, [row for rows in splits.values() for row in rows], earlier)
        if self.long_tail:
            manifest = make_long_tailed(manifest, self.long_tail)
        manifest, more = self._without_unseen_classes(manifest)
        return replace(manifest, notes=(*notes, *more, *_open(manifest), *_unmeasured(manifest)))

    def _manifest(self, splits: Mapping[SplitName, list[Row]], table: ClassTable) -> Manifest:
        rows = [row for listed in splits.values() for row in listed]
        labels = [table.indices(row.labels) for row in rows]
        return Manifest(
            class_names=table.names,
            image_ids=tuple(row.image_id for row in rows),
            uris=tuple(row.uri for row in rows),
            splits=tuple(split for split, listed in splits.items() for _ in listed),
            labels=tuple(labels),
            unknown=tuple(
                tuple(sorted({*table.indices(row.unknown)} - {*shown})) if row.unknown else ()
                for row, shown in zip(rows, labels, strict=True)
            ),
            groups=Groups(self.groups.head, self.groups.tail),
        )

    def _split(self, manifest: Manifest, rows: Sequence[Row], earlier: Mapping[str, str]) -> Manifest:
        assert self.split is not None
        shares = {"train": 1 - self.split.test - self.split.val, "test": self.split.test, "val": self.split.val}
        for name in ("test", "val"):
            if shares[name] and name in manifest.splits:
                raise DatasetError(f"dataset.split.{name}: there is a split {name} already; leave one of the two out")
        training = np.flatnonzero(np.array(manifest.splits, dtype=object) == TRAIN).tolist()
        together = _group_of(self.split.groups_by)
        dealt = deal(
            [manifest.image_ids[row] for row in training],
            [together(rows[row]) for row in training],
            [manifest.labels[row] for row in training],
            {name: share for name, share in shares.items() if share > 0},
            self.split.seed,
            earlier,
        )
        splits = np.array(manifest.splits, dtype=object)
        splits[training] = dealt
        return replace(manifest, splits=tuple(splits.tolist()))

    def _without_unseen_classes(self, manifest: Manifest) -> tuple[Manifest, list[str]]:
        """What ``classes_without_images`` says, done; and said."""
        unseen = [manifest.class_names[label] for label in np.flatnonzero(class_counts(manifest) == 0)]
        if not unseen:
            return manifest, []
        classes = _classes_named(unseen)
        if len(unseen) == len(manifest.class_names):
            raise DatasetError("split train: none of its images shows a class, so there is nothing to learn")
        if self.classes_without_images == "error":
            raise DatasetError(
                f"no training image shows {classes}; add images, or set dataset.classes_without_images: leave_out"
            )
        if self.classes_without_images == "keep":
            mend = "dataset.classes_without_images: leave_out trains without"
            return manifest, [f"no training image shows {classes} ({mend})"]
        seen = {*manifest.class_names} - {*unseen}
        return manifest.with_classes(seen), [f"no training image shows {classes}; left out"]


def _open(manifest: Manifest) -> list[str]:
    """How many labels nobody knows, whichever way the annotations say so."""
    if not manifest.unknown:
        return []
    count, every = sum(map(len, manifest.unknown)), len(manifest) * len(manifest.class_names)
    return [f"{count:,} of {every:,} labels ({percent(count / every)}) are unknown: left out of losses and metrics"]


def _unmeasured(manifest: Manifest) -> list[str]:
    """Which classes no image of a further split shows: nothing can be measured of them there."""
    notes = []
    for split in sorted({*manifest.splits} - {TRAIN}):
        shown = {
            label for name, own in zip(manifest.splits, manifest.labels, strict=True) if name == split for label in own
        }
        absent = [name for label, name in enumerate(manifest.class_names) if label not in shown]
        if absent:
            notes.append(f"no {split} image shows {_classes_named(absent)}")
    return notes


def _classes_named(names: Sequence[str]) -> str:
    listed = named(list(map(repr, names)))
    return f"the class {listed}" if len(names) == 1 else f"{len(names)} classes: {listed}"


@contextmanager
def _collecting_no_garbage() -> Iterator[None]:
    """A million rows make no cycles, and Python's collector would walk through all of them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _group_of(groups_by: str | None) -> Callable[[Row], str]:
    """What belongs together with a row."""
    if groups_by is None:
        return lambda row: row.image_id

    def group(row: Row) -> str:
        if row.group:
            return row.group
        try:
            found = re.search(groups_by, row.image_id)
        except re.error as error:
            raise DatasetError(f"dataset.split.groups_by: {groups_by!r} is no regular expression: {error}") from None
        if found is None:
            raise DatasetError(
                f"{row.where}: dataset.split.groups_by {groups_by!r} is no column of the table, and finds nothing in "
                f"{row.image_id!r}"
            )
        return found.group()

    return group
