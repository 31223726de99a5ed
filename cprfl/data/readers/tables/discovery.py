"""Which CSV files of a folder are tables of images and labels, and what their columns are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from cprfl.data.readers.annotations import SplitName, split_name
from cprfl.data.readers.discovery import Proposal, Tree, common_folder
from cprfl.data.readers.layout import folder_of_images, in_order, split_choices, stem_of
from cprfl.data.readers.locate import ImageFolder, is_file
from cprfl.data.readers.openimages import is_open_images
from cprfl.data.readers.tables.cells import is_nothing, meaning
from cprfl.data.readers.tables.classes import class_columns
from cprfl.data.readers.tables.columns import find_labels_column, find_split_column, preference, sample, splits_in
from cprfl.data.readers.tables.dialect import DELIMITERS, Table, is_image_name, read_table
from cprfl.errors import DatasetError

_HEAD = 1 << 18  # bytes of a file that are looked at
_MANY = 0.5  # share of the cells that must lead to images


@dataclass(frozen=True)
class _Look:
    """What the head of a file shows."""

    table: Table
    image: str
    labels: str | None
    split: str | None
    rivals: tuple[str, ...]


def discover(tree: Tree) -> list[Proposal]:
    """Ways to read the tables of a folder; a file that was pointed at is one, whatever is wrong with it."""
    known = {stem_of(image) for image in tree.images}
    suffixes = (".csv", ".tsv", ".tab", *([".txt"] if tree.only is not None else []))
    files = sorted(tree.annotations(*suffixes), key=lambda file: (len(file), file))  # labels.csv, labels (1).csv
    looks = {file: look for file in files if (look := _look(tree, file, known)) is not None}
    if tree.only is None:
        looks = {file: look for file, look in looks.items() if _says_something(file, look)}
    if not looks and tree.only is not None and tree.annotations(".csv", ".tsv", ".tab"):
        if not _is_of_open_images(tree, tree.only):
            return [Proposal({"name": "csv", "splits": {"train": tree.only}}, f"CSV table; {tree.only}")]
        return []
    return [_proposal(tree, in_order(splits), looks) for splits in split_choices(looks)]


def _look(tree: Tree, file: str, known: set[str]) -> _Look | None:
    try:
        table = _head(tree, file)
        images = _image_columns(table, known)
        if not images or is_open_images(table):
            return None
        image, *rivals = images
        split = find_split_column(table)
    except DatasetError:
        return None
    try:
        labels = find_labels_column([table])
        if labels is None:
            class_columns([table], [{image, split}], None, ignore_case=False)
    except DatasetError as error:
        if not error.settings:
            return None
        labels = None  # the reader refuses, and says what would mend it
    return _Look(table, image, labels, split, tuple(rivals))


def _says_something(file: str, look: _Look) -> bool:
    """Whether a table says of some image what it shows, as lists of test images and samples of submissions do not."""
    if "submission" in PurePosixPath(file).stem.casefold():
        return False
    columns = look.table.columns
    if look.labels is not None:
        return not all(map(is_nothing, columns[look.labels]))
    cells = {cell for name, column in columns.items() if name not in (look.image, look.split) for cell in {*column}}
    return any(meaning(cell) != "no" for cell in cells)


def _head(tree: Tree, file: str) -> Table:
    head = tree.head(file, _HEAD)
    if len(head) == _HEAD:
        try:
            return read_table(tree.path(file), content=head[: head.rfind(b"\n") + 1])
        except DatasetError:  # the head may end within a quoted cell
            pass
    return read_table(tree.path(file))


def _is_of_open_images(tree: Tree, file: str) -> bool:
    try:
        return is_open_images(_head(tree, file))
    except DatasetError:
        return False


def _image_columns(table: Table, known: set[str]) -> list[str]:
    """The columns most of whose cells are images in the tree, or lie elsewhere and end as images do; the best first.

    Those behind the first are as good as it.
    """
    shares = {}
    for name, cells in table.columns.items():
        some = sample(cells)
        hits = sum(stem_of(cell) in known or ("://" in cell and is_image_name(cell)) for cell in some)
        shares[name] = hits / max(1, len(some)), preference(name)
    best = max(shares.values())
    return [name for name in shares if shares[name] == best] if best[0] >= _MANY else []


def _proposal(tree: Tree, splits: Mapping[SplitName, str], looks: Mapping[str, _Look]) -> Proposal:
    first = looks[splits["train"] if "train" in splits else next(iter(splits.values()))]
    settings: dict[str, Any] = {"name": "csv", "splits": dict(splits)}
    folder = _images(tree, splits, looks)
    if folder is not None:
        settings["images"] = folder
    if first.image and len({looks[file].image for file in splits.values()}) == 1:
        settings["image_column"] = first.image
    if first.labels is not None:
        settings["labels_column"] = first.labels
    if first.split is not None and [*splits] == ["train"] and "test" in splits_in(first.table, first.split):
        settings["split_column"] = first.split
    kind = "one column of 0 and 1 a class" if first.labels is None else f"labels in the column {first.labels!r}"
    delimiter = DELIMITERS.get(first.table.delimiter, repr(first.table.delimiter))
    unsure = {"image_column": f"{', '.join(map(repr, first.rivals))} would do as well"} if first.rivals else {}
    return Proposal(settings, f"CSV table ({delimiter}), {kind}; {', '.join(splits.values())}", unsure)


def _images(tree: Tree, splits: Mapping[SplitName, str], looks: Mapping[str, _Look]) -> str | None:
    """The folder of the images, as the reader takes it; none where the files' own are right."""
    found = {split: _folder(tree, file, looks[file]) for split, file in splits.items()}
    folders = {split: folder for split, folder in found.items() if folder is not None}
    if not folders or all(folder == str(PurePosixPath(splits[split]).parent) for split, folder in folders.items()):
        return None
    above = {str(PurePosixPath(folder).parent) for folder in folders.values()}
    of_splits = all(split_name(PurePosixPath(folder).name) == split for split, folder in folders.items())
    if len(folders) > 1 and of_splits and len(above) == 1:
        return above.pop()
    return next(iter(folders.values()))


def _folder(tree: Tree, file: str, look: _Look) -> str | None:
    """The folder of a table's images: the file's own, where the names lead to images from there."""
    own = PurePosixPath(file).parent
    names = sample(look.table.columns[look.image])
    images = {*tree.images}
    if any(str(own / name) in images for name in names):
        return str(own)
    folder = folder_of_images(tree, names, file)
    if folder is None or _lead_to_files(tree, folder, names):
        return folder
    stems = set(map(stem_of, names))
    return common_folder(image for image in tree.images if stem_of(image) in stems)


def _lead_to_files(tree: Tree, folder: str, names: Sequence[str]) -> bool:
    """Whether the files that are in the tree under these names are found from a folder."""
    places = ImageFolder(tree.path(folder)).find(names)
    there = {stem_of(name) for name, (_, uri) in zip(names, places, strict=True) if is_file(uri)}
    return there >= set(map(stem_of, names)) & set(map(stem_of, tree.images))
