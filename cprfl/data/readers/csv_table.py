"""A user's own table: ``image, labels`` with a separator, or ``image`` and one 0/1 column per class."""

from __future__ import annotations

import csv
import io
from typing import Literal

from pydantic import Field

from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.text import read_text
from cprfl.data.storage import DataPath, join, parent
from cprfl.errors import DatasetError


class CsvDataset(DatasetConfig):
    """One CSV file per split, with a header.

    With a column ``labels_column`` its cells hold class names joined by ``separator`` (an empty cell: no class);
    without one, every column but ``image_column`` is a class and holds 0 or 1. ``classes`` fixes names and order;
    else they are the 0/1 columns, or the names found in all splits, sorted. Image paths are relative to ``images``
    (the file's own folder unless given).
    """

    name: Literal["csv"] = "csv"
    splits: dict[SplitName, DataPath]
    images: DataPath | None = None
    image_column: str = "image"
    labels_column: str = "labels"
    separator: str = Field(default=";", min_length=1)

    def read_annotations(self) -> Annotations:
        """Class names, and the rows of each file."""
        tables = {split: self._read_table(path) for split, path in self.splits.items()}
        named = [name for table in tables.values() for _, _, names in table for name in names]
        classes = self.classes or self._one_hot_classes() or sorted(set(named))
        rows: dict[SplitName, list[Row]] = {}
        for split, table in tables.items():
            folder = self.images if self.images is not None else parent(self.splits[split])
            rows[split] = [Row(image, join(folder, image), names, where) for where, image, names in table]
        return Annotations(classes, rows)

    def _header(self, path: str) -> list[str]:
        return next(csv.reader(io.StringIO(read_text(path, "CSV file"))), [])

    def _one_hot_classes(self) -> list[str]:
        """The class columns, which must be the same in every file; none where there is a column of labels."""
        headers = {path: self._header(path) for path in self.splits.values()}
        if any(self.labels_column in header for header in headers.values()):
            return []
        columns = {path: [name for name in header if name != self.image_column] for path, header in headers.items()}
        first, *others = columns
        for path in others:
            if columns[path] != columns[first]:
                differing = sorted(set(columns[path]) ^ set(columns[first])) or "their order"
                raise DatasetError(f"{path}: class columns differ from {first}: {differing}")
        return columns[first]

    def _read_table(self, path: str) -> list[tuple[str, str, list[str]]]:
        """(where, image, class names) of each row."""
        header = self._header(path)
        if self.image_column not in header:
            raise DatasetError(
                f"{path}, line 1: no column {self.image_column!r} (columns: {', '.join(header) or 'none'}); "
                "name it with dataset.image_column"
            )
        if len(set(header)) < len(header):
            raise DatasetError(f"{path}, line 1: a column name is repeated")
        reader = csv.DictReader(io.StringIO(read_text(path, "CSV file")))
        table = []
        for record in reader:
            where = f"{path}, line {reader.line_num}"
            if None in record or None in record.values():
                raise DatasetError(f"{where}: {len(header)} columns in the header, another number here")
            image = record.pop(self.image_column).strip()
            if not image:
                raise DatasetError(f"{where}: the column {self.image_column!r} is empty")
            table.append((where, image, self._names(record, where)))
        if not table:
            raise DatasetError(f"{path}: CSV file has a header but no rows")
        return table

    def _names(self, record: dict[str, str], where: str) -> list[str]:
        if self.labels_column in record:
            return [name.strip() for name in record[self.labels_column].split(self.separator) if name.strip()]
        strange = {column: cell for column, cell in record.items() if cell.strip() not in ("0", "1")}
        if strange:
            column, cell = next(iter(strange.items()))
            raise DatasetError(
                f"{where}: column {column!r} holds {cell!r}, not 0 or 1; a column of class names is named with "
                "dataset.labels_column"
            )
        return [column for column, cell in record.items() if cell.strip() == "1"]
