"""Cells that are no names of classes, though they could be read as such: refused, with what would mend them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from cprfl.data.readers.tables.separator import NONE
from cprfl.errors import DatasetError

_ZERO_OR_ONE = re.compile(r"[01](\.0*)?")
_DIGITS = re.compile(r"[01]{3,}")
_SCORED = re.compile(r".*\S\s*[:=(]\s*[01]?\.\d+\s*\)?")
_MARK = re.compile(r"[\"(){}\[\]]")
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"))
_JOINTS = (",", ";", "|")
_MANY = 0.5


def refuse_what_is_no_name(
    plain: Mapping[str, Sequence[str]], lists: Mapping[str, Sequence[str]], where: Callable[[str], str]
) -> None:
    """Refuse a 0 or 1 for each class, names with scores, and names that hold other names.

    Args:
        plain: the names in each cell that is one text.
        lists: the names in each cell that is a list of Python or JSON.
        where: file and line of a cell.

    Raises:
        DatasetError: naming the first such cell.
    """
    _refuse_zeros_and_ones({**plain, **lists}, where)
    scored = [cell for cell, names in plain.items() if "." in cell and any(map(_SCORED.fullmatch, names))]
    if scored and len(scored) >= _MANY * len(plain):
        raise DatasetError(
            f"{where(scored[0])}: {scored[0][:80]!r} seems to be names with scores; write the names of what the image "
            "shows alone, or a row for each image and label with a column `confidence`"
        )
    known = {name for names in lists.values() for name in names}
    for cell, names in lists.items():
        for name in names:
            for joint in _JOINTS:
                if joint in name and all(part.strip() in known for part in name.split(joint)):
                    raise DatasetError(
                        f"{where(cell)}: {name!r} in a list is names with {joint!r} between, which are elements of "
                        "their own elsewhere; write each in quotation marks of its own"
                    )


def refuse_cut_pairs(plain: Mapping[str, Sequence[str]], separator: str, where: Callable[[str], str]) -> None:
    """Refuse to cut within brackets or quotation marks.

    Raises:
        DatasetError: naming the first cell that would be.
    """
    for cell, names in plain.items():
        if len(names) > 1 and _MARK.search(cell) and _is_whole(cell) and not all(map(_is_whole, names)):
            raise DatasetError(
                f"{where(cell)}: {separator!r} seems to separate names, and is within brackets or quotation marks in "
                f"{cell[:80]!r}; separate the names by ; or set dataset.separator: {NONE} where a cell is one name"
            )


def _is_whole(text: str) -> bool:
    return text.count('"') % 2 == 0 and all(text.count(left) == text.count(right) for left, right in _PAIRS)


def _refuse_zeros_and_ones(cells: Mapping[str, Sequence[str]], where: Callable[[str], str]) -> None:
    lengths = {len(names) for names in cells.values()}
    vectors = len(lengths) == 1 and lengths != {1}
    digits = len(cells) > 1 and len({*map(len, cells)}) == 1 and all(map(_DIGITS.fullmatch, cells))
    if digits or (vectors and all(_ZERO_OR_ONE.fullmatch(name) for names in cells.values() for name in names)):
        cell = next(iter(cells))
        raise DatasetError(
            f"{where(cell)}: {cell[:80]!r} looks like a 0 or 1 for each class; write a column for each class, called "
            "by its name (or list the names in dataset.classes, if these are names)"
        )
