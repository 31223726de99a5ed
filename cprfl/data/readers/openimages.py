"""Open Images: a row for each image and label, with a confidence, and the classes' names in a file of their own."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Literal

from cprfl.data.readers.annotations import Annotations, SplitName, split_name
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.layout import folder_of_images, in_order, split_choices
from cprfl.data.readers.tables.columns import column_named, find_score_column, group_column, key_of
from cprfl.data.readers.tables.dialect import Table, decode, read_table
from cprfl.data.readers.tables.labels import Said, Uncertain, Unmentioned, of_pairs
from cprfl.data.readers.tables.rows import Sheet, rows_of
from cprfl.data.storage import DataPath, parent
from cprfl.errors import DatasetError

_CODE = re.compile(r"^\"?(/[mtg]/[^\",;\t\n]+)\"?([,;\t])", re.MULTILINE)  # at the beginning of a line


class OpenImagesDataset(DatasetConfig):
    """Labels of Open Images: ``ImageID,Source,LabelName,Confidence``.

    Confidence 1 says that the image shows the class, 0 that it was looked for and is not there.

    Attributes:
        splits: the CSV file of each split.
        descriptions: CSV file with the name of each class's code; the codes are the names unless given.
        images: folder of the images, or of one folder for each split; the CSV file's own unless given.
        encoding: of the files, as Python names it; found out unless given.
        uncertain: what becomes of labels whose confidence is between 0 and 1.
        unmentioned: what becomes of the classes that no row of an image names.
    """

    name: Literal["openimages"] = "openimages"
    splits: dict[SplitName, DataPath]
    descriptions: DataPath | None = None
    images: DataPath | None = None
    encoding: str | None = None
    uncertain: Uncertain = "unknown"
    unmentioned: Unmentioned = "unknown"

    def read_annotations(self) -> Annotations:
        """Names of the classes that occur, and the rows of each split."""
        sheets = {split: self._sheet(read_table(path, encoding=self.encoding)) for split, path in self.splits.items()}
        codes = {code for sheet in sheets.values() for code in sheet.names if code}
        described = {} if self.descriptions is None else read_descriptions(self.descriptions, self.encoding)
        names, notes = _names_of(codes, described)
        every = list(map(clean_name, self.classes or ())) or sorted(names.values())
        unmentioned = every if self.unmentioned == "unknown" else []
        said: dict[SplitName, Said] = {}
        for split, sheet in sheets.items():
            labels = [(names[code],) if code else () for code in sheet.names]
            said[split], more = of_pairs(sheet.keys, labels, sheet.scores, self.uncertain, unmentioned)
            notes += more
        folders = {split: self.images or parent(path) for split, path in self.splits.items()}
        rows, found = rows_of(sheets, said, folders)
        dialects = [note for sheet in sheets.values() for note in sheet.table.notes]
        return Annotations(sorted(names.values()), rows, [*dialects, *notes, *found])

    def _sheet(self, table: Table) -> Sheet:
        sheet = Sheet(
            table,
            image=column_named(table, "ImageID", "splits"),
            labels=column_named(table, "LabelName", "splits"),
            score=find_score_column(table),
            group=None if self.split is None else group_column(table, self.split.groups_by),
        )
        sheet.check()
        return sheet


def read_descriptions(path: str, encoding: str | None = None) -> dict[str, str]:
    """The name of each class, by its code: of a CSV file (comma, semicolon, tab) with or without a header.

    Raises:
        DatasetError: naming the line that is no code and name, or that names a code anew.
    """
    text, _ = decode(path, "file of class descriptions", encoding)
    names: dict[str, str] = {}
    found = _CODE.search(text)
    delimiter = found[2] if found else ","
    for line, record in enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1):
        cells = [clean_name(cell) for cell in record]
        if not any(cells) or (line == 1 and found and not cells[0].startswith("/")):
            continue
        if len(cells) != 2 or not all(cells):
            raise DatasetError(f"{path}, line {line}: expected `code,name`, got {','.join(record)[:80]!r}")
        if names.setdefault(cells[0], cells[1]) != cells[1]:
            raise DatasetError(f"{path}, line {line}: {cells[0]} is {names[cells[0]]!r} already, and {cells[1]!r} here")
    return names


def is_open_images(table: Table) -> bool:
    """Whether a table has the columns of Open Images' labels."""
    return {"imageid", "labelname"} <= {key_of(name) for name in table.columns}


def _names_of(codes: Iterable[str], described: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The name of each code, with the code behind it where two have one name; and notes."""
    names = {code: described.get(code, code) for code in sorted(codes)}
    counts = Counter(names.values())
    nameless = [code for code in names if described and code not in described]
    shared = {name for name, count in counts.items() if count > 1}
    notes = []
    coded = next((code for code in names if not described and code.startswith("/m/")), None)
    if coded is not None:
        notes.append(f"classes are called by their codes, such as {coded!r}; dataset.descriptions has their names")
    if nameless:
        notes.append(f"{len(nameless)} classes are not described, such as {nameless[0]!r}; their codes are their names")
    if shared:
        notes.append(f"several classes are called {', '.join(map(repr, sorted(shared)))}; their codes are added")
    return {code: f"{name} ({code})" if name in shared else name for code, name in names.items()}, notes


def discover(tree: Tree) -> list[Proposal]:
    """Labels of Open Images; those of whole images before those of boxes, those of people before a machine's."""
    found = {file: table for file in tree.annotations(".csv") if (table := _head(tree, file)) is not None}
    for words in (("human", "imagelabels"), ("imagelabels",), ("",)):
        files = [file for file in found if all(word in PurePosixPath(file).name.lower() for word in words)]
        if files:
            break
    return [_proposal(tree, in_order(splits), found) for splits in split_choices(files)]


def _head(tree: Tree, file: str) -> Table | None:
    head = tree.head(file)
    try:
        table = read_table(tree.path(file), content=head[: head.rfind(b"\n") + 1])
    except DatasetError:
        return None
    return table if is_open_images(table) else None


def _proposal(tree: Tree, splits: Mapping[SplitName, str], found: Mapping[str, Table]) -> Proposal:
    settings: dict[str, object] = {"name": "openimages", "splits": dict(splits)}
    described = next(
        (file for file in tree.files if file.endswith((".csv", ".tsv", ".txt")) and _describes(tree.head(file, 200))),
        None,
    )
    if described is not None:
        settings["descriptions"] = described
    first = next(iter(splits.values()))
    folder = folder_of_images(tree, found[first].columns[column_named(found[first], "ImageID", "splits")], first)
    if folder is not None:
        above, _, last = folder.rpartition("/")
        settings["images"] = (above or ".") if len(splits) > 1 and split_name(last) in splits else folder
    unsure = {"unmentioned": "negative, where every class was looked for in every image"}
    return Proposal(settings, f"Open Images' labels with confidences; {', '.join(splits.values())}", unsure)


def _describes(head: bytes) -> bool:
    """Whether a file begins as class descriptions do: a code and a name in a line, at most a header above."""
    lines = head.decode("utf-8", "ignore").removeprefix("\ufeff").splitlines()[:2]
    return any(map(_CODE.match, lines))
