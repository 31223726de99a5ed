"""The manifest: one row an image, wherever its labels came from."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from cprfl.data.files import fingerprint
from cprfl.data.table_files import read_table, write_table
from cprfl.errors import DatasetError

TRAIN, VALIDATION, TEST = "train", "val", "test"

_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()), ("uri", pa.string()), ("split", pa.string()),
        ("labels", pa.list_(pa.int16())), ("unknown", pa.list_(pa.int16())),
    ]
)  # fmt: skip
_VERSION = 3


@dataclass(frozen=True)
class Groups:
    """Thresholds on training images per class: head >= ``head``, tail < ``tail``, medium between."""

    head: int = 100
    tail: int = 20


@dataclass(frozen=True)
class TrainingCounts:
    """A training split before anything was held out of it: its images, and how many of them show each class."""

    images: int
    per_class: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Images with their labels, as every reader makes them.

    Attributes:
        class_names: names of the c classes; ``labels`` index into them.
        image_ids: unique within the manifest.
        uris: where each image is (path or URI; ``synthetic:`` for rendered scenes).
        splits: ``train``, ``val`` or ``test``, for each image.
        labels: class indices, ascending, for each image; empty where no class is present.
        unknown: class indices, ascending, of which nobody knows whether the image shows them: they are left out of
            losses, counts and metrics. Nothing at all where every label of every image is known.
        groups: thresholds of head, medium and tail.
        whole_training: counts of the training split that the data set gives, where images were held out of it; the
            training rows are all of it otherwise.
        notes: what the reader decided that a person should know; they are not written.
    """

    class_names: tuple[str, ...]
    image_ids: tuple[str, ...]
    uris: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    unknown: tuple[tuple[int, ...], ...] = ()
    groups: Groups = field(default_factory=Groups)
    whole_training: TrainingCounts | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not any(self.unknown):
            object.__setattr__(self, "unknown", ())
            return
        # What nobody knows is not said either: a reader may list a class twice, and the doubt decides.
        known = (
            tuple(label for label in own if label not in doubts)
            for own, doubts in zip(self.labels, map(set, self.unknown), strict=True)
        )
        object.__setattr__(self, "labels", tuple(known))

    def __len__(self) -> int:
        return len(self.image_ids)

    def select(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """The manifest of these rows, in this order."""
        return replace(
            self,
            image_ids=tuple(self.image_ids[row] for row in rows),
            uris=tuple(self.uris[row] for row in rows),
            splits=tuple(self.splits[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
            unknown=tuple(self.unknown[row] for row in rows) if self.unknown else (),
        )

    def with_classes(self, names: Collection[str]) -> Manifest:
        """The same images with the labels of these classes alone, in this manifest's order."""
        chosen = {*names}
        kept = [label for label, name in enumerate(self.class_names) if name in chosen]
        index = {label: position for position, label in enumerate(kept)}
        labels, unknown = (
            tuple(tuple(index[label] for label in own if label in index) for own in rows)
            for rows in (self.labels, self.unknown)
        )
        return replace(
            self, class_names=tuple(self.class_names[label] for label in kept), labels=labels, unknown=unknown
        )

    def split(self, name: str) -> Manifest:
        """The rows of one split."""
        return self.select(np.flatnonzero(np.array(self.splits, dtype=str) == name))

    @cached_property
    def positives(self) -> np.ndarray:
        """How many images show each class, int64 [c]."""
        return np.bincount(np.fromiter(chain.from_iterable(self.labels), np.int64), minlength=len(self.class_names))

    @property
    def any_absent(self) -> bool:
        """Whether it is known of any image that it does not show some class."""
        unknown, count = self.unknown or ((),) * len(self), len(self.class_names)
        return any(len(own) + len(other) < count for own, other in zip(self.labels, unknown, strict=True))

    def targets(self, rows: Sequence[int] | None = None, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """Multi-hot targets of the images, or of those in these rows, [n, c]; NaN where nobody knows.

        Half precision has 0, 1 and NaN as any other.
        """
        rows = range(len(self)) if rows is None else rows
        targets = np.zeros((len(rows), len(self.class_names)), dtype=dtype)
        for place, row in enumerate(rows):
            targets[place, list(self.labels[row])] = 1
            if self.unknown:
                targets[place, list(self.unknown[row])] = np.nan
        return targets

    @cached_property
    def digest(self) -> str:
        """Fingerprint of the images' ids, splits, labels and of the class names: what the data set says."""
        said = [self.class_names, self.image_ids, self.splits, self.labels]
        return fingerprint([*said, self.unknown] if self.unknown else said)

    def write(self, path: Path) -> None:
        """Write as Parquet, whole or not at all."""
        metadata = {
            "version": _VERSION,
            "class_names": self.class_names,
            "groups": {"head": self.groups.head, "tail": self.groups.tail},
            "whole_training": self.whole_training and asdict(self.whole_training),
        }
        table = pa.table(
            [
                list(self.image_ids),
                list(self.uris),
                list(self.splits),
                list(map(list, self.labels)),
                list(map(list, self.unknown or ((),) * len(self))),
            ],
            schema=_SCHEMA.with_metadata({"cprfl.manifest": json.dumps(metadata, ensure_ascii=False)}),
        )
        write_table(path, table)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read what `write` wrote.

        Raises:
            DatasetError: where there is no manifest, a damaged one, or one of another version.
        """
        if not path.exists():
            raise DatasetError(f"{path}: no manifest here; `cprfl preprocess CONFIG` writes it")
        table = read_table(path, DatasetError, "`cprfl preprocess CONFIG` writes one")
        metadata = json.loads((table.schema.metadata or {}).get(b"cprfl.manifest", b"{}"))
        whole = metadata.get("whole_training")
        if metadata.get("version") != _VERSION:
            raise DatasetError(f"{path}: not a manifest of version {_VERSION}; `cprfl preprocess CONFIG` writes one")
        return cls(
            class_names=tuple(metadata["class_names"]),
            image_ids=tuple(table["image_id"].to_pylist()),
            uris=tuple(table["uri"].to_pylist()),
            splits=tuple(table["split"].to_pylist()),
            labels=tuple(map(tuple, table["labels"].to_pylist())),
            unknown=tuple(map(tuple, table["unknown"].to_pylist())),
            groups=Groups(**metadata["groups"]),
            whole_training=TrainingCounts(whole["images"], tuple(whole["per_class"])) if whole else None,
        )
