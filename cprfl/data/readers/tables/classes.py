"""Tables with one column a class, whose cells say yes or no."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.tables.cells import Meaning, meaning, number_in
from cprfl.data.readers.tables.dialect import Table
from cprfl.data.readers.tables.labels import Said, Uncertain, Unmentioned, of_uncertain
from cprfl.errors import DatasetError
from cprfl.words import named

_INDEX = re.compile(r"(.* )?(id|ids|idx|index|uid|guid)|(unnamed \d+( \d+)?)?")
_ATTRIBUTE = re.compile(
    r"(.* )?(age|sex|gender|fold|split|subset|partition|width|height|score|confidence|count|num|number|nr|year|month)"
    r"|is (valid|val|validation|train|training|test|testing|crowd|group of|occluded|truncated|depiction|inside)"
    r"|iscrowd|difficult|occluded|truncated|flipped|augmented"
)
_WORDS = re.compile(r"[^\W_]+")


@dataclass
class _Column:
    """What a column that may be a class holds, over all tables."""

    tables: list[Table] = field(default_factory=list)
    counts: Counter[Meaning] = field(default_factory=Counter)

    @property
    def sure(self) -> int:
        return self.counts["yes"] + self.counts["no"] + self.counts["minus"] + self.counts["unsure"]

    @property
    def strange(self) -> int:
        return self.counts["share"] + self.counts["other"]


@dataclass(frozen=True)
class ClassColumns:
    """Which columns are classes.

    Attributes:
        names: of them, in the tables' order.
        minus_is_no: whether -1 says no: nothing else in the columns of yes and no does.
        notes: what was decided, one line each.
    """

    names: Sequence[str]
    minus_is_no: bool
    notes: Sequence[str]


def class_columns(
    tables: Sequence[Table], taken: Sequence[Collection[str | None]], wanted: Sequence[str] | None, ignore_case: bool
) -> ClassColumns:
    """Which columns are classes: those whose cells say yes or no, unless their names speak of something else.

    Args:
        tables: one or more.
        taken: columns of each table that are something else.
        wanted: the classes, where the user names them.
        ignore_case: whether names that differ only in case are one.

    Raises:
        DatasetError: where none is found, or a column may or may not be one.
    """
    columns: dict[str, _Column] = {}
    for table, others in zip(tables, taken, strict=True):
        for name, cells in table.columns.items():
            if name not in others:
                column = columns.setdefault(name, _Column())
                column.tables.append(table)
                for cell, count in Counter(cells).items():
                    column.counts[meaning(cell)] += count
    binary = [name for name, column in columns.items() if column.sure and not column.strange]
    classes = list(filter(may_be_class, binary))
    said = {meaning for name in classes for meaning, count in columns[name].counts.items() if count}
    minus_is_no = "minus" in said and not said & {"no", "blank"}
    notes = ["-1 is taken for absent, for the cells are 1 and -1 alone"] if minus_is_no else []
    if wanted is not None:
        return ClassColumns(_chosen(columns, tables[0], wanted, ignore_case), minus_is_no, notes)
    attributes = [name for name in binary if _is(_ATTRIBUTE, name)]
    texts = [name for name, column in columns.items() if _is_text(name, column)]
    if texts and not classes and not attributes:
        raise _of_text(tables[0], texts)
    for name, column in columns.items():
        if _nearly_a_class(name, column) or (column.strange and not classes and not attributes):
            raise _strange(name, column)
    if attributes or not classes:
        raise _no_class(tables[0], attributes, classes, columns)
    always = [name for name in classes if {what for what, count in columns[name].counts.items() if count} == {"yes"}]
    if always and len(always) < len(classes):
        notes.append(f"every image shows {', '.join(map(repr, always))}: no class? dataset.classes leaves it out")
    chosen = {*classes, ""}
    left = [name for name in columns if name not in chosen]
    if left:
        listed = named(list(map(repr, left)), 8)
        notes.append(f"columns that are no classes: {listed}; dataset.classes chooses others")
    return ClassColumns(classes, minus_is_no, notes)


def may_be_class(name: str) -> bool:
    """Whether a column's name is not that of an index or of what images have beside classes."""
    return not _is(_INDEX, name) and not _is(_ATTRIBUTE, name)


def check_that_all_have(tables: Sequence[Table], classes: Sequence[str]) -> None:
    """Refuse a class that a table says nothing of.

    Raises:
        DatasetError: naming the class and the table.
    """
    for table in tables:
        here = {name.casefold() for name in table.columns}
        lacking = [name for name in classes if name.casefold() not in here]
        if lacking:
            raise DatasetError(
                f"{table.path}: class columns differ from those of the other files: no "
                f"{', '.join(map(repr, lacking))}; add them, set dataset.unmentioned: unknown, or choose the classes "
                "that all have with dataset.classes",
                unmentioned="unknown",
            )


def of_columns(table: Table, classes: ClassColumns, uncertain: Uncertain, unmentioned: Unmentioned) -> Said:
    """What the class columns of a table say of the image of each row.

    A class that the table lacks is one that it does not mention.
    """
    here = [name for name in classes.names if name in table.columns]
    written = {name.casefold() for name in here}
    lacking = tuple(name for name in classes.names if name.casefold() not in written)
    lacking = lacking if unmentioned == "unknown" else ()
    cells = {cell for name in here for cell in {*table.columns[name]}}
    means: dict[str, Meaning] = {cell: meaning(cell) for cell in cells}
    unsure = {"unsure"} if classes.minus_is_no else {"unsure", "minus"}
    shown = {"yes", *(unsure if uncertain == "positive" else ())}
    open_ = {*(unsure if uncertain == "unknown" else ()), *(["blank"] if unmentioned == "unknown" else ())}
    yes = {cell for cell in cells if means[cell] in shown}
    nobody_knows = {cell for cell in cells if means[cell] in open_}
    memo: dict[tuple[str, ...], tuple[str, ...]] = {}
    labels: list[tuple[str, ...]] = []
    unknown: list[tuple[str, ...]] = [lacking] * len(table)
    for number, row in enumerate(zip(*(table.columns[name] for name in here), strict=True)):
        names = tuple([name for name, cell in zip(here, row, strict=True) if cell in yes])
        labels.append(memo.setdefault(names, names))
        if nobody_knows:
            names = (*(name for name, cell in zip(here, row, strict=True) if cell in nobody_knows), *lacking)
            unknown[number] = memo.setdefault(names, names)
    return Said(range(len(table)), labels, unknown)


def what_became_of_doubts(
    tables: Sequence[Table], classes: ClassColumns, uncertain: Uncertain, unmentioned: Unmentioned
) -> list[str]:
    """Notes on the cells of class columns that say neither yes nor no, and on what `of_columns` takes them for."""
    means = Counter[Meaning]()
    for table in tables:
        for name in classes.names:
            for cell, count in Counter(table.columns.get(name, ())).items():
                means[meaning(cell)] += count
    unsure = means["unsure"] + (0 if classes.minus_is_no else means["minus"])
    notes = [of_uncertain(unsure, "neither surely present nor surely absent", uncertain)] if unsure else []
    if means["blank"]:
        mend = "" if unmentioned == "unknown" else ": unknown leaves them out of losses and metrics"
        notes.append(f"{means['blank']} cells are blank; taken for {unmentioned} (dataset.unmentioned{mend})")
    return notes


def _chosen(columns: Mapping[str, _Column], table: Table, wanted: Sequence[str], ignore_case: bool) -> list[str]:
    fold = str.casefold if ignore_case else str
    names = {fold(clean_name(name)) for name in wanted}
    chosen = [name for name in columns if fold(name) in names]
    lacking = sorted(names - {fold(name) for name in chosen})
    if lacking:
        raise DatasetError(
            f"{table.path}, line 1: no column for the class {lacking[0]!r} of dataset.classes (columns: "
            f"{', '.join(columns)})"
        )
    for name in chosen:
        if columns[name].strange:
            raise _strange(name, columns[name])
    return chosen


def _nearly_a_class(name: str, column: _Column) -> bool:
    """Whether most of a column's cells are those of a class, but not all; or all are numbers from 0 to 1."""
    if not may_be_class(name) or not column.strange:
        return False
    return column.sure >= column.strange or column.counts["other"] == 0


def _is_text(name: str, column: _Column) -> bool:
    """Whether a column holds words, which may be names of classes."""
    words = {cell for table in column.tables for cell in table.columns[name] if meaning(cell) == "other"}
    return may_be_class(name) and any(number_in(cell) is None for cell in words)


def _of_text(table: Table, texts: Sequence[str]) -> DatasetError:
    """That no column is known to name classes: the only one of words may, and of several it is not known which."""
    listed = named(list(map(repr, texts)), 8)
    return DatasetError(
        f"{table.path}, line 1: no column is called as those are that hold labels, and none holds 0 and 1; "
        f"{listed} may: name it with dataset.labels_column",
        **({"labels_column": texts[0]} if len(texts) == 1 else {}),
    )


def _strange(name: str, column: _Column) -> DatasetError:
    table, cell = next(
        (table, cell)
        for table in column.tables
        for cell in dict.fromkeys(table.columns[name])
        if meaning(cell) in ("share", "other")
    )
    kind = "0 or 1 (a probability? decide from where on it is a 1)" if meaning(cell) == "share" else "0 or 1"
    return DatasetError(
        f"{table.first(name, cell)}: column {name!r} holds {cell!r}, not {kind}; mend it, or name the columns that "
        "are classes with dataset.classes; a column of class names is named with dataset.labels_column"
    )


def _no_class(
    table: Table, attributes: Sequence[str], classes: Sequence[str], columns: Mapping[str, _Column]
) -> DatasetError:
    if attributes:
        listed = ", ".join(map(repr, attributes))
        return DatasetError(
            f"{table.path}, line 1: {listed} may be no class, though the cells are 0 and 1; name the columns that are "
            f"classes: dataset.classes: {list(classes or attributes)}",
            classes=list(classes or attributes),
        )
    return DatasetError(
        f"{table.path}, line 1: no column of labels, and none whose cells are 0 and 1 (columns: {', '.join(columns)}); "
        "name a column of class names with dataset.labels_column"
    )


def _is(pattern: re.Pattern[str], name: str) -> bool:
    """Whether a column's name, in single words, is of a kind."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return pattern.fullmatch(" ".join(_WORDS.findall(apart.casefold()))) is not None
