"""The published list files of COCO-LT and VOC-LT: ``path idx idx ...``, and a label file ``name idx``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import PurePosixPath
from typing import Literal

from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.layout import folder_of_images, in_order, split_choices
from cprfl.data.readers.locate import LONGEST_NAME, SUFFIXES, ImageFolder, is_file
from cprfl.data.readers.tables.columns import stray
from cprfl.data.readers.tables.dialect import decode
from cprfl.data.storage import DataPath
from cprfl.errors import DatasetError

_TEXTS = (".txt", ".lst", ".list")
_LABEL_FILE = re.compile(r"label|class|name|categor", re.IGNORECASE)
_HEAD = 4096  # bytes that show what a file is
_INDEX = re.compile(r"-?\d{1,18}")
_QUOTED = re.compile(r'"([^"]+)"(?:\s+(.*))?')
_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})(?=\s|$)", re.IGNORECASE)
_JOINED = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})\s*[,;:|]", re.IGNORECASE)


class ListFilesDataset(DatasetConfig):
    """``path index index ...``: a path and the indices of the classes that the image shows.

    A path ends with an image's suffix, or before a tab, or before the numbers at the end of its line. Lines that
    begin with ``# `` are comments.

    Attributes:
        labels: file of ``name index`` lines, which name the classes.
        images: folder that the paths are relative to.
        splits: the list file of each split.
        encoding: of the files, as Python names it; found out unless given.
    """

    name: Literal["list_files"] = "list_files"
    labels: DataPath
    images: DataPath = ""
    splits: dict[SplitName, DataPath]
    encoding: str | None = None

    def read_annotations(self) -> Annotations:
        """Class names in the label file's order, and the rows of each list file."""
        class_names, notes = read_label_file(self.labels, self.encoding)
        self._check_classes(class_names)
        folder = ImageFolder(self.images)
        rows: dict[SplitName, list[Row]] = {}
        for split, path in self.splits.items():
            lines, more = self._read_list(path, class_names)
            notes += more
            places = folder.find(line.image for line in lines)
            rows[split] = [
                Row(image_id, uri, [class_names[label] for label in line.labels], line.where)
                for line, (image_id, uri) in zip(lines, places, strict=True)
            ]
        return Annotations(class_names, rows, [*notes, *folder.notes])

    def _read_list(self, path: str, class_names: Sequence[str]) -> tuple[list[_Line], list[str]]:
        """The lines of a list file, and notes."""
        numbered, notes = _lines(path, "list of images", self.encoding)
        probe = ImageFolder(self.images)
        lines = [_with_files(_parsed(f"{path}, line {number}", line), probe) for number, line in numbered]
        for line in lines:
            outside = [label for label in line.labels if not 0 <= label < len(class_names)]
            if outside:
                raise DatasetError(
                    f"{line.where}: class index {outside[0]} is out of range; {self.labels} has 0 to "
                    f"{len(class_names) - 1}"
                )
        found = stray([line.image for line in lines])
        if found is not None:
            where = next(line.where for line in lines if line.image == found)
            raise DatasetError(f"{where}: {found!r} is no image file as the others are; remove the line")
        _check_that_they_are_indices(lines, len(class_names))
        repeated = sum(len({*line.labels}) < len(line.labels) for line in lines)
        if repeated:
            notes.append(f"{path}: {repeated} lines name an index twice; once is enough")
        return lines, notes

    def _check_classes(self, listed: Sequence[str]) -> None:
        """Refuse ``classes`` that the label file does not name; others and another order are theirs to choose."""
        given = [clean_name(name) for name in self.classes or ()]
        known = {clean_name(name) for name in listed}
        if not known.issuperset(given):
            both = zip([*listed, "nothing"], [*given, "nothing"], strict=False)
            one, other = next(pair for pair in both if pair[0] != pair[1])
            raise DatasetError(
                f"{self.labels}: disagrees with dataset.classes ({len(listed)} and {len(given)} classes; the first "
                f"difference is {one!r} and {other!r}); mend one, or leave dataset.classes out"
            )


@dataclass(frozen=True)
class _Line:
    """A line of a list: where it is, its path, the indices, and whether the path surely ends where it is cut."""

    where: str
    image: str
    labels: tuple[int, ...]
    certain: bool


def read_label_file(path: str, encoding: str | None = None) -> tuple[list[str], list[str]]:
    """Class names of a file of ``name index`` lines, ordered by index; and notes.

    Raises:
        DatasetError: where a line has no index, or the indices are not 0, 1, 2, ... each once.
    """
    numbered, notes = _lines(path, "label file", encoding)
    names: dict[int, str] = {}
    for number, line in numbered:
        name, index = (*line.rsplit(maxsplit=1), "")[:2]
        if not re.fullmatch(r"[0-9]{1,18}", index) or name.endswith((",", ";", ":", "|", "=")):
            raise DatasetError(f"{path}, line {number}: expected `name index`, got {line!r}")
        if int(index) in names:
            raise DatasetError(f"{path}, line {number}: index {index} is taken by {names[int(index)]!r} already")
        names[int(index)] = name.strip()
    missing = [index for index in range(len(names)) if index not in names]
    if missing:
        raise DatasetError(f"{path}: no class has index {missing[0]}; indices must run from 0 without a gap")
    return [names[index] for index in range(len(names))], notes


def _lines(path: str, what: str, encoding: str | None) -> tuple[list[tuple[int, str]], list[str]]:
    """Numbered lines that are neither blank nor comments, without blanks around them; and notes.

    A tab at a line's end stays, for a path ends there.
    """
    text, notes = decode(path, what, encoding)
    numbered = [(number, line.strip(" ")) for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)]
    lines = [(number, line) for number, line in numbered if line.strip() and not line.startswith("# ")]
    if not lines:
        raise DatasetError(f"{path}: {what} is empty; it needs one entry a line")
    comments = sum(line.startswith("# ") for _, line in numbered)
    return lines, [*notes, *([f"{path}: {comments} lines are comments"] if comments else [])]


def _parsed(where: str, line: str) -> _Line:
    image, fields, certain = _cut(line)
    if not image or not all(map(_INDEX.fullmatch, fields)) or _JOINED.search(image):
        raise DatasetError(
            f"{where}: expected `path index index ...`, got {line[:80]!r}; a tab ends a path that holds blanks"
        )
    return _Line(where, image, tuple(map(int, fields)), certain)


def _cut(line: str) -> tuple[str, list[str], bool]:
    """Path and fields of a line, and whether it is certain where the path ends."""
    quoted = _QUOTED.fullmatch(line)
    if quoted:
        return quoted[1], (quoted[2] or "").split(), True
    ends = [match.end() for match in _SUFFIX.finditer(line)]
    if not ends and "\t" in line:
        ends = [line.index("\t")]
    if ends:
        return line[: ends[-1]].strip(), line[ends[-1] :].split(), True
    words = line.split()
    end = len(words)
    while end > 1 and _INDEX.fullmatch(words[end - 1]):
        end -= 1
    path, fields = " ".join(words[:end]), words[end:]
    # Words without any number behind them may be a path, or a path and what is no index.
    return path, fields if fields or end == 1 else words[1:], end == len(words) == 1


def _with_files(line: _Line, folder: ImageFolder) -> _Line:
    """A line whose path may go on into its numbers, with the path that is a file."""
    if line.certain or not line.labels:
        return line
    ways = accumulate([line.image, *map(str, line.labels[:-1])], "{} {}".format)
    names = list(takewhile(lambda way: len(way.rpartition("/")[2]) <= LONGEST_NAME, ways))
    there = [end for end, (_, uri) in enumerate(folder.find(names)) if not is_remote(uri) and is_file(uri)]
    if len(there) != 1:
        return line
    return _Line(line.where, names[there[0]], line.labels[there[0] :], True)


def _check_that_they_are_indices(lines: Sequence[_Line], num_classes: int) -> None:
    """Refuse what may be one 0 or 1 for each class, how many there are, or numbers that belong to the path.

    Raises:
        DatasetError: naming the line.
    """
    shaped = [line for line in lines if len(line.labels) == num_classes > 1 and {*line.labels} <= {0, 1}]
    # Two classes have both forms; all lines of either say nothing as indices, for every image would show both.
    doubtful = [line for line in shaped if num_classes > 2 or len({*line.labels}) == 1 or len(shaped) == len(lines) > 1]
    if doubtful:
        raise DatasetError(
            f"{doubtful[0].where}: {' '.join(map(str, doubtful[0].labels))} looks like a 0 or 1 for each of the "
            f"{num_classes} classes; a list names the indices of those that an image shows. Write it as a table "
            "`image,class,class,...` and read it with dataset.name: csv"
            + ("" if doubtful[0].certain else "; or put a tab behind the path, if its name ends in a number")
        )
    counted = all(line.labels and line.labels[0] == len(line.labels) - 1 for line in lines)
    mixed = next((line for line in lines if list(line.labels) != sorted({*line.labels})), None)
    if counted and mixed is not None:
        raise DatasetError(
            f"{mixed.where}: the first number of each line is how many follow; a list names the indices alone"
        )
    seen: dict[str, _Line] = {}
    for line in lines:
        first = seen.setdefault(line.image, line)
        if not line.certain and (first is not line or len({*line.labels}) < len(line.labels)):
            again = f"listed at {first.where} too" if first is not line else "given an index twice"
            raise DatasetError(
                f"{line.where}: image {line.image!r} is {again}; does its name end in a number? Put a tab between the "
                "path and the indices"
            )


def discover(tree: Tree) -> list[Proposal]:
    """Lists of paths and indices, beside one label file."""
    texts = [file for file in tree.files if PurePosixPath(file).suffix.lower() in _TEXTS]
    named = {file: names for file in texts if (names := _class_names(tree, file))}
    if len(named) > 1:
        named = {file: names for file, names in named.items() if _LABEL_FILE.search(PurePosixPath(file).name)}
    if len(named) != 1:
        return []
    (labels,) = named
    candidates = [file for file in tree.annotations(*_TEXTS) if file != labels]
    images = {file: folder_of_images(tree, _images(tree, file), file) for file in candidates}
    folders = {file: folder for file, folder in images.items() if folder is not None}
    return [
        Proposal(
            {
                "name": "list_files", "labels": labels, "images": folders[next(iter(splits.values()))],
                "splits": in_order(splits),
            },
            f"list files of paths and class indices; {', '.join([*splits.values(), labels])}",
        )
        for splits in split_choices(folders)
    ]  # fmt: skip


def _class_names(tree: Tree, file: str) -> list[str]:
    """The classes that a file names, if it is a label file."""
    if _SUFFIX.search(tree.head(file, _HEAD).decode("utf-8", "ignore")):  # it lists images
        return []
    try:
        return read_label_file(tree.path(file))[0]
    except DatasetError:
        return []


def _images(tree: Tree, file: str) -> list[str]:
    """The paths in the head of a list of images, if a file is one."""
    lines = tree.head(file, _HEAD).decode("utf-8", "ignore").splitlines()
    try:
        parsed = [_parsed(file, line.strip(" ")) for line in lines[: max(1, len(lines) - 1)] if line.strip()]
    except DatasetError:
        return []
    return [line.image for line in parsed] if any(line.labels for line in parsed) else []
