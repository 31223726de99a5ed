"""Which column of a table is what, by its name and its cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import SplitName, split_name
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.locate import ImageFolder, is_file
from cprfl.data.readers.tables.cells import is_nothing, meaning, number_in
from cprfl.data.readers.tables.dialect import Table, is_image_name
from cprfl.errors import DatasetError

# In the order in which they are preferred; the vague ones must hold names of image files, or lead to files.
_IMAGE = (
    "image", "imagepath", "imagefile", "imagefilename", "filename", "filepath", "imagename", "img", "imgpath",
    "imgfile", "imgname", "fname", "imageuri", "imageurl", "imageid", "imgid", "imageindex",
)  # fmt: skip
_VAGUE_IMAGE = ("path", "file", "uri", "url", "photo", "picture", "id", "name", "key", "")
_LABELS = re.compile(
    r"(true|finding|class|category|image)?(label|tag|class|category|categorie|choice)(name)?e?s?\d*"
    r"|findings|targets?|objects?|species|keywords|annotations?|attribute(id)?s|concepts?|topics?|genres?|breeds?"
    r"|defects?|diseases?|diagnos[ei]s|pathology|pathologies"
)
_SPLIT = ("split", "subset", "set", "fold", "partition", "phase", "dataset", "datasplit", "usage")
_YES_SPLITS: dict[str, tuple[SplitName, SplitName]] = {  # of rows with yes, and with no
    **dict.fromkeys(("isvalid", "isval", "isvalidation"), ("val", "train")),
    "istest": ("test", "train"),
    **dict.fromkeys(("istrain", "istraining"), ("train", "test")),
}
_SCORE = ("confidence", "present", "presence", "ispresent", "exists", "groundtruth", "gt", "probability")
_VAGUE_SCORE = ("score", "value")
_SAMPLE = 50


def key_of(name: str) -> str:
    """A column's name without case, blanks and signs: what names that people write in many ways have in common."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def column_named(table: Table, wanted: str, setting: str) -> str:
    """The column of this name, or of one that differs in case.

    Raises:
        DatasetError: where there is none.
    """
    name = _like(table, wanted)
    if name is None:
        raise DatasetError(f"{table.path}, line 1: no column {wanted!r} ({_listed(table)}); mend dataset.{setting}")
    return name


def find_image_column(table: Table, folder: str) -> str:
    """The column that names the images.

    Args:
        folder: that the images are in.

    Raises:
        DatasetError: where none is found.
    """
    seen = {name: sample(cells) for name, cells in table.columns.items()}
    paths = {name: _share(is_image_name(cell) for cell in cells) for name, cells in seen.items()}
    candidates = [name for name in seen if key_of(name) in (*_IMAGE, *_VAGUE_IMAGE) or paths[name] > 0.9]
    candidates = [name for name in candidates if not is_binary(seen[name])]
    sure = [name for name in candidates if key_of(name) in _IMAGE or paths[name] > 0.9]
    if len(candidates) == 1 and sure:
        return sure[0]
    there = {name: _share_of_files(folder, seen[name]) for name in candidates}
    candidates = [name for name in candidates if name in sure or there[name]]
    if not candidates:
        raise DatasetError(
            f"{table.path}, line 1: no column 'image' ({_listed(table)}), and none whose cells are image files in "
            f"{folder}; name it with dataset.image_column"
        )
    rank = {name: (there[name], paths[name], preference(name)) for name in candidates}
    best = [name for name in candidates if rank[name] == max(rank.values())]
    if len(best) > 1:
        raise DatasetError(
            f"{table.path}, line 1: several columns name images: {', '.join(map(repr, best))}; name one with "
            "dataset.image_column"
        )
    return best[0]


def preference(name: str) -> int:
    """How much a column is called as those are that name images: the more, the larger."""
    order = [*_IMAGE, *_VAGUE_IMAGE]
    return -order.index(key_of(name)) if key_of(name) in order else -len(order)


def find_labels_column(tables: Sequence[Table]) -> str | None:
    """The column that names the classes of each image; none where no column's name speaks of it.

    Raises:
        DatasetError: where several could be it, or it holds only 0 and 1.
    """
    cells, spelled = dict[str, set[str]](), dict[str, str]()
    for table in tables:
        for name, column in table.columns.items():
            if _LABELS.fullmatch(key_of(name)):
                cells.setdefault(spelled.setdefault(name.casefold(), name), set()).update(column)
    texts = [name for name in cells if not is_binary(cells[name])]
    if len(cells) == 1 and not texts and not _others_are_binary(tables, *cells):
        (name,) = cells
        raise DatasetError(
            f"{tables[0].path}, line 1: the column {name!r} holds only 0 and 1; it may name a class by its number "
            f"(dataset.labels_column: {name}) or say who shows the class {name!r} (dataset.classes: [{name}])",
            labels_column=name,
        )
    words = [name for name in texts if not all(number_in(cell) is not None for cell in cells[name])]
    best = words if len(texts) > 1 else texts
    if len(best) > 1 and len({key_of(name).rstrip("0123456789") for name in best}) == 1:
        raise DatasetError(
            f"{tables[0].path}, line 1: several columns hold labels: {', '.join(map(repr, best))}; write them in one, "
            "with ; between the names, or a row for each image and label"
        )
    if len(best) > 1 or (texts and not best):
        names = ", ".join(map(repr, best or texts))
        raise DatasetError(
            f"{tables[0].path}, line 1: several columns could hold the labels: {names}; name one with "
            "dataset.labels_column",
            labels_column=(best or texts)[0],
        )
    return best[0] if best else None


def is_binary(cells: Iterable[str]) -> bool:
    """Whether cells say yes or no, or nothing; and do say something."""
    meanings = {meaning(cell) for cell in cells}
    return meanings <= {"yes", "no", "minus", "unsure", "blank"} and not meanings <= {"blank"}


def _others_are_binary(tables: Sequence[Table], but: str) -> bool:
    return any(
        is_binary({*cells}) for table in tables for name, cells in table.columns.items() if name not in ("", but)
    )


def find_split_column(table: Table) -> str | None:
    """The column that tells which split a row is of, found by its name and its words; none where there is none.

    Raises:
        DatasetError: where several could be it, or one tells the splits of most rows and not of all.
    """
    found = [name for name, cells in table.columns.items() if _tells_splits(name, {*cells})]
    for name in found:
        splits_in(table, name)
    if len(found) > 1:
        raise DatasetError(
            f"{table.path}, line 1: several columns tell splits: {', '.join(map(repr, found))}; name one with "
            "dataset.split_column",
            split_column=found[0],
        )
    return found[0] if found else None


def is_split_name(name: str) -> bool:
    """Whether a column is called as those are that tell splits."""
    return key_of(name) in _SPLIT


def splits_in(table: Table, column: str) -> list[SplitName]:
    """The split of each row.

    Raises:
        DatasetError: for a cell that names none.
    """
    yes_no = _YES_SPLITS.get(key_of(column))
    of_cell: dict[str, SplitName] = {}
    for cell in dict.fromkeys(table.columns[column]):
        split = split_name(cell)
        if split is None and yes_no is not None and meaning(cell) in ("yes", "no"):
            split = yes_no[meaning(cell) == "no"]
        if split is None:
            raise DatasetError(
                f"{table.first(column, cell)}: column {column!r} holds {cell!r}, which names no split; write train, "
                "val or test"
            )
        of_cell[cell] = split
    return [of_cell[cell] for cell in table.columns[column]]


def find_score_column(table: Table) -> str | None:
    """The column that tells how sure it is that the image shows the label of its row; none where there is none.

    Raises:
        DatasetError: where it holds something else than numbers from 0 to 1.
    """
    for name, cells in table.columns.items():
        if not is_score_name(name):
            continue
        strange = next((cell for cell in dict.fromkeys(cells) if meaning(cell) in ("other", "blank")), None)
        if strange is None:
            return name
        if key_of(name) in _SCORE:
            raise DatasetError(
                f"{table.first(name, strange)}: column {name!r} holds {strange!r}, not a number from 0 to 1; write "
                "how sure it is that the image shows the label, or remove the column"
            )
    return None


def is_score_name(name: str) -> bool:
    """Whether a column is called as those are that tell how sure a label is."""
    return key_of(name) in (*_SCORE, *_VAGUE_SCORE)


def group_column(table: Table, groups_by: str | None) -> str | None:
    """The column that ``split.groups_by`` names; none where it is no column's name."""
    return None if groups_by is None else _like(table, groups_by)


def stray(names: Sequence[str]) -> str | None:
    """The first name without any suffix among names of image files: a comment, a sum, a header; none where all are."""
    seen = {*names}
    without = {name for name in seen if "." not in name}
    if not without or sum(map(is_image_name, seen)) <= len(seen) / 2:
        return None
    return next(name for name in names if name in without)


def sample(cells: Sequence[str]) -> list[str]:
    """Some of the cells that say something, from everywhere in a column."""
    step = max(1, len(cells) // _SAMPLE)
    return [cell for cell in cells[::step] if not is_nothing(cell)]


def _tells_splits(name: str, cells: set[str]) -> bool:
    """Whether a column is called as those are that tell splits, and does so, at least for some rows."""
    if key_of(name) in _YES_SPLITS:
        return is_binary(cells) or any(split_name(cell) is not None for cell in cells)
    return is_split_name(name) and any(split_name(cell) is not None for cell in cells)


def _like(table: Table, wanted: str) -> str | None:
    """The column of a name, whatever its blanks and, where only one is like it, its case."""
    name = clean_name(wanted)
    if name in table.columns:
        return name
    alike = [column for column in table.columns if column.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else None


def _share_of_files(folder: str, names: list[str]) -> float:
    """The share of the names that lead to files in a folder; 0 where that cannot be told at once."""
    if is_remote(folder):
        return 0.0
    found = ImageFolder(folder).find(names[:_SAMPLE])
    return _share(not is_remote(uri) and is_file(uri) for _, uri in found)


def _share(flags: Iterable[bool]) -> float:
    listed = list(flags)
    return sum(listed) / len(listed) if listed else 0.0


def _listed(table: Table) -> str:
    return f"columns: {', '.join(name or '(without a name)' for name in table.columns)}"
