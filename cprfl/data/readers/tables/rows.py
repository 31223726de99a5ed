"""From what the tables say of images to the rows of each split."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.readers.annotations import Row, SplitName, split_name
from cprfl.data.readers.labelstudio_json import path_in
from cprfl.data.readers.locate import ImageFolder, is_file, is_folder
from cprfl.data.readers.tables.cells import meaning, number_in
from cprfl.data.readers.tables.classes import may_be_class
from cprfl.data.readers.tables.columns import is_binary, key_of, splits_in, stray
from cprfl.data.readers.tables.dialect import Table
from cprfl.data.readers.tables.labels import Said
from cprfl.errors import DatasetError

_SAMPLE = 20  # names that show which folder images are in
_MANY_ROWS = 4
# What Label Studio writes for images, and what it puts before an uploaded file's name.
_LABEL_STUDIO = re.compile(r"(https?://[^/]+)?/data/(local-files/\?d=|upload/)")
_UPLOADED = re.compile(r"(?<![^/])[0-9a-f]{8}-")


@dataclass(frozen=True)
class Sheet:
    """A table, and which of its columns is what.

    Attributes:
        table: the cells.
        image: the column that names the images.
        labels: the column of class names, if there is one.
        score: the column that says how sure a row's label is, if there is one.
        split: the column that tells the split of a row, if there is one.
        group: the column that tells what belongs together, if there is one.
    """

    table: Table
    image: str
    labels: str | None = None
    score: str | None = None
    split: str | None = None
    group: str | None = None

    @property
    def images(self) -> Sequence[str]:
        """The n cells that name images."""
        return self.table.columns[self.image]

    @property
    def names(self) -> Sequence[str]:
        """The n cells of the column of class names."""
        assert self.labels is not None
        return self.table.columns[self.labels]

    @property
    def scores(self) -> Sequence[str] | None:
        """The n cells that say how sure a label is, if any do."""
        return None if self.score is None else self.table.columns[self.score]

    @property
    def own(self) -> set[str | None]:
        """The columns that have a meaning of their own."""
        return {self.image, self.labels, self.score, self.split, self.group}

    @cached_property
    def splits(self) -> Sequence[SplitName] | None:
        """The split of each of the n rows, where a column tells it.

        Raises:
            DatasetError: for a cell that names none.
        """
        return None if self.split is None else splits_in(self.table, self.split)

    @cached_property
    def keys(self) -> Sequence[object]:
        """What tells the image of each of the n rows: its name, and its split where a column tells it."""
        return self.images if self.splits is None else list(zip(self.images, self.splits, strict=True))

    @cached_property
    def is_long(self) -> bool:
        """Whether there seems to be a row for each image and label.

        Images repeat, and the column's name speaks of one label; or they repeat so often that it is no mistake.
        """
        rows, images = len(self.table), len({*self.keys})
        key = key_of(self.labels or "").rstrip("0123456789")
        one = not key.endswith("s") or key.endswith(("class", "species"))
        return rows > images and (one or (rows >= _MANY_ROWS and 2 * (rows - images) >= images))

    def check(self) -> None:
        """Refuse cells that must not be blank, images that are none, and labels behind the column of labels.

        Raises:
            DatasetError: naming the first.
        """
        for column in (self.image, self.group):
            if column is not None and "" in self.table.columns[column]:
                raise DatasetError(f"{self.table.first(column, '')}: the column {column!r} is empty")
        found = stray(self.images)
        if found is not None:
            raise DatasetError(
                f"{self.table.first(self.image, found)}: column {self.image!r} holds {found[:80]!r}, others names of "
                "image files; remove the line, or write the file's name with its suffix"
            )
        self._check_the_column_without_a_name()

    def _check_the_column_without_a_name(self) -> None:
        """Refuse more names of classes behind the column of labels, as a list that was not quoted leaves them."""
        if self.labels is None or "" in self.own:
            return
        words = {cell for cell in self.table.columns.get("", ()) if number_in(cell) is None} - {""}
        more = words.intersection(self.names)
        if more:
            cell = next(cell for cell in self.table.columns[""] if cell in more)
            raise DatasetError(
                f"{self.table.first('', cell)}: {cell!r} is in a column without a name, and in {self.labels!r} "
                "elsewhere; write the labels in one column, with ; between the names"
            )

    def check_that_all_is_said(self) -> None:
        """Refuse rows for an image and a label each, with a yes and a no beside them that is not understood.

        Raises:
            DatasetError: naming a column that says yes to some labels of an image, and no to others.
        """
        if not self.is_long or self.score is not None:
            return
        for name, cells in self.table.columns.items():
            if name in self.own or not may_be_class(name) or not {"yes", "no"} <= {*map(meaning, {*cells})}:
                continue
            if is_binary({*cells}) and len({*zip(self.keys, cells, strict=True)}) > len({*self.keys}):
                raise DatasetError(
                    f"{self.table.path}, line 1: the column {name!r} holds 0 and 1 for labels of one image; call it "
                    "`present` if it says whether the image shows the label, or remove it"
                )


def rows_of(
    sheets: Mapping[SplitName, Sheet], said: Mapping[SplitName, Said], folders: Mapping[SplitName, str]
) -> tuple[dict[SplitName, list[Row]], list[str]]:
    """The rows of each split, and how their images were found.

    Args:
        sheets: the table of each split.
        said: what each says.
        folders: where the images of each are.
    """
    splits: dict[SplitName, list[Row]] = {}
    finders: dict[str, ImageFolder] = {}
    notes: list[str] = []
    for split, sheet in sheets.items():
        finder = finders.setdefault(folders[split], ImageFolder(folders[split]))
        rows = said[split].rows
        places = _places(finder, split, [sheet.images[row] for row in rows], notes)
        groups = None if sheet.group is None else sheet.table.columns[sheet.group]
        made = [
            Row(image_id, uri, labels, sheet.table.where(row), unknown, "" if groups is None else groups[row])
            for row, (image_id, uri), labels, unknown in zip(
                rows, places, said[split].labels, said[split].unknown, strict=True
            )
        ]
        if sheet.splits is None:
            splits[split] = made
            continue
        for number, row in zip(rows, made, strict=True):
            splits.setdefault(sheet.splits[number], []).append(row)
    return splits, [*notes, *(note for finder in finders.values() for note in finder.notes)]


def _places(finder: ImageFolder, split: SplitName, written: Sequence[str], notes: list[str]) -> list[tuple[str, str]]:
    """Id and URI of each image: in the folder; else in the folder of the split below it; else without a prefix."""
    names = [unquote(path_in(name)) if _LABEL_STUDIO.match(name) else name for name in written]
    ways = [names]
    below = _folder_of(finder.folder, split)
    if below is not None:
        ways.append([f"{below}/{name}" for name in names])
    if any(map(_UPLOADED.match, names)):
        ways.append([_UPLOADED.sub("", name) for name in names])
    there = (way for way in ways[1:] if _any_is_there(finder.folder, way))
    places = finder.find(names if len(ways) == 1 or _any_is_there(finder.folder, names) else next(there, names))
    if is_remote(finder.folder) or _some_are_files(places):
        return places
    for way in _without_first_folders(names):
        found = finder.find(way)
        if _some_are_files(found):
            notes.append(f"images are looked for below {finder.folder} by the ends of their paths: {way[0]}")
            return found
    return places


def _without_first_folders(names: Sequence[str]) -> Iterator[list[str]]:
    """The names without their first folder, without their first two, and so on: paths that begin elsewhere."""
    parts = [name.replace("\\", "/").split("/") for name in names]
    for depth in range(1, min(map(len, parts), default=0) - 1):
        yield ["/".join(own[depth:]) for own in parts]


def _folder_of(folder: str, split: SplitName) -> str | None:
    """The folder in a folder whose name means a split."""
    if is_remote(folder) or not is_folder(folder):
        return None
    with os.scandir(local_path(folder)) as entries:
        return next((entry.name for entry in entries if entry.is_dir() and split_name(entry.name) == split), None)


def _any_is_there(folder: str, names: Sequence[str]) -> bool:
    return _some_are_files(ImageFolder(folder).find(names[:: max(1, len(names) // _SAMPLE)]))


def _some_are_files(places: Sequence[tuple[str, str]]) -> bool:
    some = places[:: max(1, len(places) // _SAMPLE)]
    return any(is_remote(uri) or is_file(uri) for _, uri in some)
