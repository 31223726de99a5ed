"""What separates the names in the cells of a table, by evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

NONE = "none"
"""The separator of cells that are one name each."""

_STRONG = (";", "|", "\n", "\t", "\uff1b", "\u3001", "\uff0c", "\u060c", ",")  # hardly in names, but for the last
_WEAK = ("/", "+", "&", "~", "^", ":", "\\", " - ", " and ")
_OF_WORDS = ("_", "-", ".")  # which make one name of several words as well
_MANY = 0.5  # share of what may be names that must occur in other cells too
_FEW = 0.25


class UnclearSeparatorError(ValueError):
    """Cells may be read in two ways.

    Attributes:
        cell: one that may.
        separators: the two ways, the likelier first.
    """

    def __init__(self, cell: str, separators: Sequence[str]) -> None:
        super().__init__(cell)
        self.cell, self.separators = cell, separators


def split(cell: str, separator: str) -> list[str]:
    """The names in a cell, without blanks around them."""
    if separator == NONE:
        return [cell] if cell else []
    if separator == " ":
        return cell.split()
    if separator not in cell:
        return [cell.strip()] if cell.strip() else []
    return [name for part in cell.split(separator) if (name := part.strip())]


def separator_for(cells: Mapping[str, int], classes: Iterable[str]) -> str | None:
    """The separator with which most of the names in the cells are classes that are known; none where none is.

    Args:
        cells: how often each occurs.
        classes: names of the classes.
    """
    known = {name.casefold() for name in classes}
    scores: dict[str, int] = {}
    occurring = [separator for separator in (*_STRONG, " ", *_WEAK) if any(separator in cell for cell in cells)]
    for separator in (NONE, *occurring) if known else ():
        parts = [(split(cell.casefold(), separator), count) for cell, count in cells.items()]
        scores[separator] = sum(count * (1 if part in known else -1) for names, count in parts for part in names)
        if not any(part in known for names, _ in parts for part in names):
            del scores[separator]
    return max(scores, key=lambda separator: scores[separator], default=None)


def found_separator(cells: Mapping[str, int], one_name: bool) -> str:
    """The separator that the cells themselves show.

    Args:
        cells: how often each occurs.
        one_name: whether they hold one name each, unless a separator says otherwise.

    Raises:
        UnclearSeparatorError: where two readings are possible.
    """
    present = [separator for separator in _STRONG if any(separator in cell for cell in cells)]
    strong = [separator for separator in present if separator != "," or _lists(cells, ",")]
    if strong:
        suited = [separator for separator in strong if not _contradicted(cells, separator, strong)]
        if len(suited) != 1:
            first, second = (suited or strong)[:2]
            raise UnclearSeparatorError(_first_with(cells, second), (first, second))
        return suited[0]
    if one_name:
        return NONE
    if present:
        raise UnclearSeparatorError(_first_with(cells, ","), (NONE, ","))
    for separator in _WEAK:
        several = [cell for cell in cells if len(split(cell, separator)) > 1]
        if several and all(part in cells for cell in several for part in split(cell, separator)):
            return separator
        holders = Counter(part for cell in cells for part in {*split(cell, separator)})
        if any(all(holders[part] > 1 for part in split(cell, separator)) for cell in several):
            single = len(several) < sum(map(bool, cells))
            raise UnclearSeparatorError(several[0], (separator, NONE) if single else (NONE, separator))
    for separator in _OF_WORDS:
        several = [cell for cell in cells if len(split(cell, separator)) > 1]
        if several and all(part in cells for cell in several for part in split(cell, separator)):
            raise UnclearSeparatorError(several[0], (NONE, separator))
    return _blank_or_none(cells)


def _lists(cells: Mapping[str, int], separator: str) -> bool:
    """Whether the separator makes lists, and is no part of names: no blank behind it, or what it parts recurs."""
    several = [cell for cell in cells if separator in cell]
    if any(separator in cell.replace(f"{separator} ", "") for cell in several):
        return True
    parts = Counter(part for cell in cells for part in {*split(cell, separator)})
    recurring = sum(any(parts[part] > 1 for part in split(cell, separator)) for cell in several)
    return recurring >= _MANY * len(several)


def _contradicted(cells: Iterable[str], separator: str, others: Iterable[str]) -> bool:
    """Whether a name would hold another separator, and a part of it be a name elsewhere."""
    names = {name for cell in cells for name in split(cell, separator)}
    return any(
        part in names
        for other in others
        if other != separator
        for name in names
        if other in name
        for part in split(name, other)
    )


def _blank_or_none(cells: Mapping[str, int]) -> str:
    """Whether ``clear primary`` is two names, or one as ``traffic light`` is.

    Words that make lists recur, in lists of other lengths too. Words that make names stay together.
    """
    several = [cell for cell in cells if len(cell.split()) > 1]
    if not several:
        return NONE
    words = [word for cell in several for word in cell.split()]
    if all(word.isdecimal() for word in words) or all(word in cells for word in words):
        return " "
    cells_of = Counter(word for cell in cells for word in {*cell.split()})
    recurring = sum(cells_of[word] > 1 for word in words) / len(words)
    if recurring >= _MANY and len({len(cell.split()) for cell in cells if cell}) > 2:
        return " "
    if recurring <= _FEW and sum(cells[cell] for cell in several) >= 2 * len(several):
        return NONE
    raise UnclearSeparatorError(several[0], (" ", NONE) if recurring >= _MANY else (NONE, " "))


def _first_with(cells: Iterable[str], separator: str) -> str:
    return next(cell for cell in cells if separator in cell)
