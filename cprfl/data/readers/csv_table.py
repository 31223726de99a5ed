"""Users' own tables: names of classes in a column, or one 0/1 column a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from cprfl.data.readers.annotations import Annotations, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.tables.classes import (
    check_that_all_have,
    class_columns,
    may_be_class,
    of_columns,
    what_became_of_doubts,
)
from cprfl.data.readers.tables.columns import (
    column_named,
    find_image_column,
    find_labels_column,
    find_score_column,
    find_split_column,
    group_column,
    is_binary,
    is_score_name,
    is_split_name,
)
from cprfl.data.readers.tables.dialect import Table, read_table
from cprfl.data.readers.tables.discovery import discover as discover
from cprfl.data.readers.tables.labels import Said, Uncertain, Unmentioned, of_lists, of_pairs, read_cells
from cprfl.data.readers.tables.rows import Sheet, rows_of
from cprfl.data.storage import DataPath, parent


class CsvDataset(DatasetConfig):
    """One CSV file per split, or one for all with a column that tells the split.

    A column of class names (``image,labels``) holds the names of an image's classes in one cell, or one name, in a
    row for each image and label. Without one, every column whose cells are 0 and 1 is a class; ``classes`` chooses
    among them. What is not given is found out, and noted where it is not plain.

    Attributes:
        splits: the file of each split.
        images: folder of the images; the file's own unless given.
        image_column: names the images.
        labels_column: holds class names.
        separator: of several names in one cell; ``none`` where a cell is one name.
        split_column: says train, val or test of each row of a single file.
        delimiter: of the cells.
        encoding: of the files, as Python names it.
        uncertain: what becomes of -1 and ``?``, and of labels whose confidence is between 0 and 1.
        unmentioned: what becomes of a class's blank cells, and of the classes that no name mentions.
    """

    name: Literal["csv"] = "csv"
    splits: dict[SplitName, DataPath]
    images: DataPath | None = None
    image_column: str | None = None
    labels_column: str | None = None
    separator: str | None = Field(default=None, min_length=1)
    split_column: str | None = None
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    encoding: str | None = None
    uncertain: Uncertain = "unknown"
    unmentioned: Unmentioned = "negative"

    @model_validator(mode="after")
    def _a_split_column_is_of_one_file(self) -> Self:
        if self.split_column is not None and {*self.splits} != {"train"}:
            raise ValueError("split_column tells the splits of one file; give that file alone, as splits.train")
        return self

    def read_annotations(self) -> Annotations:
        """Class names, and the rows of each split."""
        tables = {split: read_table(path, self.delimiter, self.encoding) for split, path in self.splits.items()}
        folders = {split: self.images or parent(path) for split, path in self.splits.items()}
        sheets = self._sheets(tables, folders)
        from_names = any(sheet.labels is not None for sheet in sheets.values())
        names, said, notes = (self._from_names if from_names else self._from_columns)(sheets)
        rows, found = rows_of(sheets, said, folders)
        return Annotations(names, rows, [*(note for table in tables.values() for note in table.notes), *notes, *found])

    def _sheets(self, tables: Mapping[SplitName, Table], folders: Mapping[SplitName, str]) -> dict[SplitName, Sheet]:
        """Which column is what."""
        labels = self._labels_column(list(tables.values()))
        sheets: dict[SplitName, Sheet] = {}
        for split, table in tables.items():
            sheet = sheets[split] = Sheet(
                table,
                image=column_named(table, self.image_column, "image_column")
                if self.image_column is not None
                else find_image_column(table, folders[split]),
                labels=None if labels is None else column_named(table, labels, "labels_column"),
                score=None if labels is None else find_score_column(table),
                split=self._split_column(table),
                group=None if self.split is None else group_column(table, self.split.groups_by),
            )
            sheet.check()
        return sheets

    def _labels_column(self, tables: Sequence[Table]) -> str | None:
        if self.labels_column is not None:
            return self.labels_column
        if self.classes is not None:
            wanted = {clean_name(name) for name in self.classes}
            cells = {name: table.columns[name] for table in tables for name in table.columns if name in wanted}
            if wanted == {*cells} and all(map(is_binary, cells.values())):
                return None
        return find_labels_column(tables)

    def _split_column(self, table: Table) -> str | None:
        if self.split_column is not None:
            return column_named(table, self.split_column, "split_column")
        return find_split_column(table) if {*self.splits} == {"train"} else None

    def _from_columns(self, sheets: Mapping[SplitName, Sheet]) -> tuple[list[str], dict[SplitName, Said], list[str]]:
        """What 0/1 columns say."""
        tables = [sheet.table for sheet in sheets.values()]
        taken = [{sheet.image, sheet.split, sheet.group} for sheet in sheets.values()]
        classes = class_columns(tables, taken, self.classes, self.ignore_case)
        if self.unmentioned == "negative":
            check_that_all_have(tables, classes.names)
        said = {
            split: of_columns(sheet.table, classes, self.uncertain, self.unmentioned) for split, sheet in sheets.items()
        }
        doubts = what_became_of_doubts(tables, classes, self.uncertain, self.unmentioned)
        return [*classes.names], said, [*classes.notes, *doubts]

    def _from_names(self, sheets: Mapping[SplitName, Sheet]) -> tuple[list[str], dict[SplitName, Said], list[str]]:
        """What names of classes say."""
        for sheet in sheets.values():
            sheet.check_that_all_is_said()
        one_name = any(sheet.score is not None or sheet.is_long for sheet in sheets.values())
        cells = Counter[str]()
        for sheet in sheets.values():
            cells.update(sheet.names)

        def where(cell: str) -> str:
            sheet = next(sheet for sheet in sheets.values() if cell in sheet.names)
            return f"{sheet.table.first(str(sheet.labels), cell)}, column {sheet.labels!r}"

        reading = read_cells(cells, where, self.separator, self.classes or (), one_name)
        names = sorted({name for found in reading.names.values() for name in found})
        every = list(map(clean_name, self.classes or ())) or names
        unmentioned = every if self.unmentioned == "unknown" else []
        notes = [*reading.notes, *_left_out(sheets.values(), reading.several)]
        said: dict[SplitName, Said] = {}
        for split, sheet in sheets.items():
            if not one_name or reading.several:
                said[split] = of_lists(sheet.names, reading.names, unmentioned)
                continue
            labels = [reading.names[cell] for cell in sheet.names]
            said[split], more = of_pairs(sheet.keys, labels, sheet.scores, self.uncertain, unmentioned)
            notes += more
        joined = sum(len(sheet.table) for sheet in sheets.values()) - sum(len(own.rows) for own in said.values())
        if joined:
            notes.append(f"{joined} rows name another label of an image that has a row already; they are joined")
        return names, said, notes


def _left_out(sheets: Collection[Sheet], several: bool) -> list[str]:
    """A note on columns that could have been classes, scores of labels or splits, and are passed over."""
    left = dict.fromkeys(
        name
        for sheet in sheets
        for name, cells in sheet.table.columns.items()
        if (several and name == sheet.score)
        or (name not in sheet.own and may_be_class(name) and is_binary({*cells}))
        or (name not in sheet.own and (is_score_name(name) or (len(sheets) == 1 and is_split_name(name))))
    )
    return [f"columns beside that of the labels, passed over: {', '.join(map(repr, left))}"] if left else []
