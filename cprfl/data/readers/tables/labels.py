"""Tables with a column of class names: the names of one image in one cell, or one row for each image and label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.tables.cells import is_literal, is_nothing, meaning, names_in_literal
from cprfl.data.readers.tables.doubts import refuse_cut_pairs, refuse_what_is_no_name
from cprfl.data.readers.tables.separator import NONE, UnclearSeparatorError, found_separator, separator_for, split
from cprfl.errors import DatasetError

Uncertain = Literal["unknown", "negative", "positive"]
Unmentioned = Literal["negative", "unknown"]
_WHOLE = re.compile(r"-?\d+(\.0+)?")  # as pandas writes whole numbers beside blank cells
_NAME_OF = {" ": "blanks", "\n": "line breaks", "\t": "tabs"}


@dataclass(frozen=True)
class CellNames:
    """How the cells of a column of labels are read.

    Attributes:
        names: the class names in each cell.
        several: whether a cell may hold several names.
        notes: what was decided, one line each.
    """

    names: Mapping[str, tuple[str, ...]]
    several: bool
    notes: Sequence[str]


@dataclass(frozen=True)
class Said:
    """What a table says of its images.

    Attributes:
        rows: the row that each of the n images is first in.
        labels: names of the classes that each shows.
        unknown: names of those of which nobody knows.
    """

    rows: Sequence[int]
    labels: Sequence[tuple[str, ...]]
    unknown: Sequence[tuple[str, ...]]


def read_cells(
    cells: Counter[str], where: Callable[[str], str], separator: str | None, classes: Sequence[str], one_name: bool
) -> CellNames:
    """The names in each of the cells of a column.

    Args:
        cells: how often each occurs.
        where: file and line of a cell.
        separator: of names, where it is known.
        classes: names of the classes, where they are known.
        one_name: whether a cell holds one name, unless a separator says otherwise.

    Raises:
        DatasetError: for a broken list, and where two readings are possible.
    """
    known = {clean_name(name) for name in classes}
    full = {cell: count for cell, count in cells.items() if cell and not (is_nothing(cell) and cell not in known)}
    lists = {cell: _literal(cell, where) for cell in full if is_literal(cell) and cell not in known}
    plain = {cell: count for cell, count in full.items() if cell not in lists}
    chosen = _separator(plain, where, separator, known, one_name or bool(lists))
    separated = {cell: split(cell, chosen) for cell in plain}
    if separator is None and not known:
        refuse_cut_pairs(separated, chosen, where)
    if not known:
        refuse_what_is_no_name(separated, lists, where)
    quoted = {cell: list(map(_unquoted, separated[cell])) for cell in plain if cell[0] in "'\""}
    parts = separated | quoted | lists
    whole = all(_WHOLE.fullmatch(name) for found in parts.values() for name in found)
    if whole and not known:
        parts = {cell: [name.partition(".")[0] for name in found] for cell, found in parts.items()}
    dropped = Counter[str]()
    names: dict[str, tuple[str, ...]] = {}
    for cell, count in cells.items():
        found = [clean_name(name) for name in parts.get(cell, [cell] if cell else [])]
        kept = dict.fromkeys(name for name in found if name in known or not is_nothing(name))
        dropped.update({name: count for name in found if name not in kept})
        names[cell] = tuple(kept)
    notes = []
    floats = [cell for cell in full if whole and not known and "." in cell]
    if floats:
        notes.append(f"classes are whole numbers, though some are written as {floats[0]!r} is")
    if lists:
        notes.append(f"{sum(cells[cell] for cell in lists)} cells are lists as Python or JSON writes them")
    several = [cell for cell in plain if len(parts[cell]) > 1]
    if several and chosen != ";" and separator is None:
        notes.append(f"labels are separated by {_NAME_OF.get(chosen, repr(chosen))}, such as {several[0]!r}")
    if chosen == NONE and separator is None and not (known or one_name or lists):
        notes += [f"a cell is one name, though some hold blanks: {cell!r}" for cell in plain if " " in cell][:1]
    if dropped:
        listed = ", ".join(f"{name!r} ({count})" for name, count in dropped.most_common(5))
        notes.append(f"taken for no label: {listed}; dataset.classes with it makes it a class")
    return CellNames(names, bool(several or lists), notes)


def _unquoted(name: str) -> str:
    """A name without the quotation marks that are around it."""
    quoted = len(name) > 2 and name[0] == name[-1] and name[0] in "'\"" and name.count(name[0]) == 2
    return name[1:-1] if quoted else name


def of_lists(cells: Sequence[str], names: Mapping[str, tuple[str, ...]], unmentioned: Sequence[str]) -> Said:
    """What cells say that hold all names of an image.

    Args:
        cells: one an image.
        names: in each of them.
        unmentioned: the classes that are unknown where a cell does not name them.
    """
    shown = ((cell, {*found}) for cell, found in names.items())
    unknown = {cell: tuple(name for name in unmentioned if name not in found) for cell, found in shown}
    return Said(range(len(cells)), [names[cell] for cell in cells], [unknown[cell] for cell in cells])


def of_pairs(
    keys: Sequence[object],
    labels: Sequence[tuple[str, ...]],
    scores: Sequence[str] | None,
    uncertain: Uncertain,
    unmentioned: Sequence[str],
) -> tuple[Said, list[str]]:
    """What rows say that are of one image and one label each, joined by image; and notes.

    Rows that disagree on an image's class leave it uncertain.

    Args:
        keys: what tells the image of each of the n rows.
        labels: none or one name, of each row.
        scores: cells that say how sure each row is: 1 present, 0 absent, between them or -1 uncertain.
        uncertain: what becomes of an uncertain label.
        unmentioned: the classes that are unknown where no row of the image names them.
    """
    place: dict[object, int] = {}
    rows: list[int] = []
    found: list[dict[str, str]] = []
    for row, (key, names) in enumerate(zip(keys, labels, strict=True)):
        image = place.setdefault(key, len(rows))
        if image == len(rows):
            rows.append(row)
            found.append({})
        said = "yes" if scores is None else _SAYS[meaning(scores[row])]
        for name in names:
            found[image][name] = _combined(found[image].get(name, said), said)
    if scores is None and not unmentioned:
        return Said(rows, [tuple(names) for names in found], [()] * len(rows)), []
    shown = {"yes", *(_UNCLEAR if uncertain == "positive" else ())}
    unclear = _UNCLEAR if uncertain == "unknown" else ()
    said_all = Said(
        rows,
        [tuple([name for name, said in names.items() if said in shown]) for names in found],
        [
            (
                *(name for name, said in names.items() if said in unclear),
                *(name for name in unmentioned if name not in names),
            )
            for names in found
        ],
    )
    return said_all, _pair_notes(Counter(said for names in found for said in names.values()), uncertain)


_SAYS = {"yes": "yes", "no": "no", "share": "unsure", "minus": "unsure", "unsure": "unsure"}
_UNCLEAR = ("unsure", "contradicted")


def _combined(before: str, said: str) -> str:
    """What two rows of one image and label say together."""
    if before in (said, "unsure"):
        return said
    return before if said == "unsure" else "contradicted"


def _pair_notes(said: Counter[str], uncertain: Uncertain) -> list[str]:
    meant = {"unsure": "neither surely present nor surely absent", "contradicted": "said to be present and absent"}
    return [of_uncertain(said[what], words, uncertain) for what, words in meant.items() if said[what]]


def of_uncertain(count: int, what: str, uncertain: Uncertain) -> str:
    """A note on labels that are uncertain: why, and what becomes of them."""
    return f"{count} labels are {what}; taken for {uncertain} (dataset.uncertain)"


def _literal(cell: str, where: Callable[[str], str]) -> list[str]:
    try:
        return names_in_literal(cell)
    except ValueError as error:
        raise DatasetError(
            f"{where(cell)}: {cell[:80]!r}: {error}; mend it, or write the names with ; between"
        ) from None


def _separator(
    cells: Mapping[str, int], where: Callable[[str], str], wanted: str | None, known: Iterable[str], one_name: bool
) -> str:
    found = separator_for(cells, known)
    if wanted is None and found is not None:
        return found
    if wanted is not None and (found is not None or wanted == NONE or any(wanted in cell for cell in cells)):
        return wanted
    try:
        found = found_separator(cells, one_name)
    except UnclearSeparatorError as unclear:
        if wanted is not None:
            return wanted
        raise _unclear(unclear, where) from None
    if wanted is not None and found != NONE:
        cell = next(cell for cell in cells if len(split(cell, found)) > 1)
        raise DatasetError(
            f"{where(cell)}: no cell holds dataset.separator {wanted!r}, and names seem to be separated by {found!r} "
            f"({cell!r}); set dataset.separator to {found!r}, or to {NONE} where a cell is one name",
            separator=found,
        )
    return found if wanted is None else wanted


def _unclear(unclear: UnclearSeparatorError, where: Callable[[str], str]) -> DatasetError:
    ways = " or ".join(f"{split(unclear.cell, way)} (dataset.separator: {way!r})" for way in unclear.separators)
    return DatasetError(
        f"{where(unclear.cell)}: {unclear.cell!r} may be {ways}; say which, or list the names in dataset.classes",
        separator=unclear.separators[0],
    )
