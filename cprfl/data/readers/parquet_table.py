"""Tables in Parquet files, with images in them (Hugging Face's `datasets`) or with paths of images.

pyarrow, which is here already, reads them: `datasets` would bring a dozen packages, pandas and a client of the hub
among them, for one JSON text in the schema (`cprfl.data.readers.huggingface`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PureWindowsPath
from typing import Any, Literal

import pyarrow.parquet as pq
from pydantic import Field

from cprfl.data.packed import parquet_uri
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.label_values import Cell, named_labels, refuse_joined_names
from cprfl.data.readers.layout import folder_of_images
from cprfl.data.readers.locate import ImageFolder
from cprfl.data.readers.parquet_columns import (
    Columns,
    class_names_of,
    columns_of,
    opened_table,
    which_have_bytes,
    written_labels,
)
from cprfl.data.readers.parquet_values import values_of
from cprfl.data.readers.shards import Paths, alike_but_for_numbers, expanded, patterns_of_splits
from cprfl.data.storage import DataPath, parent
from cprfl.errors import DatasetError


class ParquetDataset(DatasetConfig):
    """A table with a row for each image, in one or more Parquet files a split.

    The images are in the table (a struct of ``bytes`` and ``path``, or a binary column), or a column holds their paths.
    Labels are indices (the ``ClassLabel`` of `datasets`, whose names are in the schema, or ``label_names``) or names;
    one, or a list. Only the columns that are needed are read, and no image's bytes before it is decoded.

    The id of an image in a table is its path where that is there and unique, otherwise ``<file>.parquet/<row>``.

    Attributes:
        splits: a path, a pattern (``data/train-*.parquet``) or a list for each split.
        images: the folder that paths are relative to; each file's own folder unless given.
        image_column: found out unless given.
        labels_column: found out unless given; dotted for a field (``objects.category``).
        label_names: names of the classes in the order of their indices, where the schema does not say them.
        separator: what joins names that are one text.
        multi_hot: whether lists of numbers are a 0 or 1 for each class, rather than indices.
    """

    name: Literal["parquet"] = "parquet"
    splits: dict[SplitName, Paths]
    images: DataPath | None = None
    image_column: str | None = None
    labels_column: str | None = None
    label_names: list[str] | None = None
    separator: str | None = Field(default=None, min_length=1)
    multi_hot: bool | None = None

    def read_annotations(self) -> Annotations:
        """Names of the classes in the order of their indices, and the rows of each split in the files' order."""
        tables = {split: [self._read(path) for path in expanded(source)] for split, source in self.splits.items()}
        everything = [table for own in tables.values() for table in own]
        if self.separator is None:
            texts = [text for table in everything for text in table.texts]
            refuse_joined_names(texts, "set dataset.separator: {separator!r}, or store lists", separator="{separator}")
        folders: dict[str, ImageFolder] = {}
        notes: list[str] = []
        rows = {
            split: _with_ids([row for table in own for row in self._rows(table, folders)], notes)
            for split, own in tables.items()
        }
        notes += [note for folder in folders.values() for note in folder.notes]
        classes = [name for table in everything for name in table.class_names or ()]
        return Annotations(list(dict.fromkeys(classes)), rows, notes)

    def _read(self, path: str) -> _Table:
        with opened_table(path) as file:
            columns = columns_of(path, file, self.image_column, self.labels_column)
            written = written_labels(path, file, columns.labels)
            return _Table(
                path=path,
                columns=columns,
                class_names=class_names_of(path, file, columns.labels, self.label_names),
                cells=[(where, self._as_list(labels)) for where, labels in written],
                texts=[(where, labels) for where, labels in written if isinstance(labels, str)],
                names=_names_of(file, columns, len(written)),
                filled=which_have_bytes(path, file, columns.bytes) if columns.bytes else [False] * len(written),
            )

    def _as_list(self, labels: Any) -> Sequence[object]:
        if not isinstance(labels, str):
            return labels if isinstance(labels, list) else [labels]
        parts = [labels] if self.separator is None else [part.strip() for part in labels.split(self.separator)]
        return [part for part in parts if part]

    def _rows(self, table: _Table, folders: dict[str, ImageFolder]) -> list[_Found]:
        """The rows of a table; those of images that are files of their own have their final ids."""
        labels = named_labels(table.cells, table.class_names, self.multi_hot)
        apart = [row for row, filled in enumerate(table.filled) if not filled]
        path = self.images if self.images is not None else parent(table.path)
        folder = folders.setdefault(path, ImageFolder(path))
        for row in apart:
            if not table.names[row]:
                raise DatasetError(f"{table.cells[row][0]}: neither an image nor a path of one")
        places = dict(zip(apart, folder.find(table.names[row] or "" for row in apart), strict=True))
        file = table.path.rpartition("/")[2]
        found = []
        for row, (where, _) in enumerate(table.cells):
            name = _plain_name(table.names[row])
            uri = parquet_uri(table.path, row, str(table.columns.bytes), name or str(row))
            image_id, uri = places.get(row, (name, uri))
            found.append(_Found(Row(image_id, uri, labels[row], where), f"{file}/{row}", row in places))
        return found


@dataclass(frozen=True)
class _Table:
    """What a file holds: labels, those that are one text, names of images, and whether their bytes are there."""

    path: str
    columns: Columns
    class_names: Sequence[str] | None
    cells: Sequence[Cell]
    texts: Sequence[tuple[str, str]]
    names: Sequence[str | None]
    filled: Sequence[bool]


@dataclass(frozen=True)
class _Found:
    """A row, its place in the table, and whether its image is a file of its own, which tells it from others."""

    row: Row
    place: str
    is_file: bool


def _names_of(file: pq.ParquetFile, columns: Columns, rows: int) -> list[str | None]:
    for column in (columns.path, columns.names):
        names = values_of(file, column) if column else []
        if any(names):
            return names
    return [None] * rows


def _plain_name(name: str | None) -> str:
    """A name as an id: of an absolute path, which was somebody else's, the file's name alone."""
    if not name:
        return ""
    windows = PureWindowsPath(name)
    if "://" in name or windows.drive or windows.root:
        return windows.name
    return windows.as_posix()


def _with_ids(found: Sequence[_Found], notes: list[str]) -> list[Row]:
    """Rows with ids that are unique among the images in tables: their names, or else their places."""
    counts = Counter(item.row.image_id for item in found if not item.is_file)
    rows = [
        item.row
        if item.is_file or (item.row.image_id and counts[item.row.image_id] == 1)
        else replace(item.row, image_id=item.place)
        for item in found
    ]
    nameless = sum(row is not item.row for row, item in zip(rows, found, strict=True))
    if nameless:
        notes.append(f"{nameless} images have no name of their own in the table; their ids are file and row")
    return rows


def discover(tree: Tree) -> list[Proposal]:
    """Tables with images and labels; one proposal for each folder of them, where not all are one data set."""
    groups = alike_but_for_numbers(tree.annotations(".parquet"))
    known = [(files, found) for files in groups if (found := _describe(tree, files[0])) is not None]
    together = _proposal(tree, known)
    if together is not None:
        return [together]
    folders: dict[str, list[tuple[list[str], _Described]]] = {}
    for files, found in known:
        folders.setdefault(parent(files[0]), []).append((files, found))
    alone = [_proposal(tree, groups) for groups in folders.values()]
    return [proposal for proposal in alone if proposal is not None]


@dataclass(frozen=True)
class _Described:
    """The columns of a table, and the first names of images where these are files of their own."""

    columns: Columns
    names: Sequence[str]


def _describe(tree: Tree, file: str) -> _Described | None:
    """What a file of a data set holds; none for another table."""
    try:
        with opened_table(tree.path(file)) as opened:
            if b"cprfl.manifest" in (opened.schema_arrow.metadata or {}):
                return None
            columns = columns_of(file, opened, None, None)
            names = [] if columns.bytes else _names_of(opened, columns, 0)
    except DatasetError:
        return None
    return _Described(columns, [name for name in names if name])


def _proposal(tree: Tree, groups: Sequence[tuple[list[str], _Described]]) -> Proposal | None:
    """How files that are described alike are read; none where one split would be two groups."""
    splits = patterns_of_splits([files for files, _ in groups], tree.files)
    if splits is None:
        return None
    described = groups[0][1]
    settings: dict[str, object] = {"name": "parquet", "splits": splits}
    inside = "images inside"
    if described.columns.bytes is None:
        folder = folder_of_images(tree, described.names, groups[0][0][0])
        inside = f"paths of images in {described.columns.path}"
        if folder is not None:
            settings["images"] = folder
    number = sum(len(files) for files, _ in groups)
    noun = "file" if number == 1 else "files"
    return Proposal(settings, f"Parquet, {number} {noun}, {inside}, labels in {described.columns.labels}")
