"""Names of classes: one spelling for each, whatever file or split it is in."""

from __future__ import annotations

import difflib
import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cprfl.data.readers.annotations import Row
from cprfl.errors import DatasetError
from cprfl.plain import printable, steering_character

_LONGEST = 1000  # characters of a name


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, and which of them each name that occurs means.

    Attributes:
        names: of the c classes.
        index: class of each name as it is written; none for one that is passed over.
        notes: what was decided, one line each.
    """

    names: tuple[str, ...]
    index: Mapping[str, int | None]
    notes: Sequence[str]

    def indices(self, written: Iterable[str]) -> tuple[int, ...]:
        """Ascending indices of the classes that these names mean."""
        found = {self.index[name] for name in written}
        return tuple(sorted(label for label in found if label is not None))


@functools.lru_cache(2**16)  # a data set has few names, and says them a million times
def clean_name(name: object) -> str:
    """A name as text in Unicode's composed form, with single blanks between its words."""
    return " ".join(unicodedata.normalize("NFC", str(name)).split())


def class_table(
    listed: Sequence[str],
    rows: Iterable[Row],
    wanted: Sequence[str] | None,
    others: Literal["error", "ignore"],
    ignore_case: bool,
) -> ClassTable:
    """Which classes there are, and what each name that is written means.

    Args:
        listed: names that the format lists, in its order.
        rows: the images of all splits.
        wanted: names and order of the classes, where the user fixes them.
        others: what becomes of a label that is not among ``wanted``.
        ignore_case: whether names that differ only in case are one.

    Raises:
        DatasetError: for empty or repeated names, for names that differ only in case, for a label that is not wanted.
    """
    counts, first = Counter[str](), dict[str, str]()
    for row in rows:
        counts.update(row.labels)
        for name in (*row.labels, *row.unknown):
            first.setdefault(name, row.where)
    _check(listed, "class names")
    if wanted is not None:
        _check(wanted, "dataset.classes")
    spelled = {name: clean_name(name) for name in (*listed, *sorted(first))}
    for name, where in first.items():
        if not spelled[name]:
            raise DatasetError(f"{where}: a label without a name")
        _check_characters(spelled[name], where)
    names = list(dict.fromkeys(clean_name(name) for name in wanted or spelled))
    if wanted is None and not names:
        raise DatasetError("dataset: no classes; every label list is empty, so there is nothing to learn")
    total = Counter[str]()
    for name, count in counts.items():
        total[spelled[name]] += count
    one_of, notes = _spellings({*names, *spelled.values()}, total, wanted, ignore_case)
    names = list(dict.fromkeys(one_of.get(name, name) for name in names))
    index: dict[str, int | None] = {}
    place = {name: number for number, name in enumerate(names)}
    passed_over = Counter[str]()
    for name, spelling in spelled.items():
        index[name] = place.get(one_of.get(spelling, spelling))
        if index[name] is None and name in first:
            if others == "error":
                raise DatasetError(
                    f"{first[name]}: unknown class {name!r}; {_hint(spelling, names)}. Add it to dataset.classes, or "
                    "set dataset.other_classes: ignore"
                )
            passed_over[name] += counts[name]
    if passed_over:
        some = ", ".join(f"{name!r} ({count})" for name, count in passed_over.most_common(5))
        notes.append(f"{passed_over.total()} labels of {len(passed_over)} other classes are passed over: {some}")
    return ClassTable(tuple(names), index, notes)


def _spellings(
    names: set[str], counts: Counter[str], wanted: Sequence[str] | None, ignore_case: bool
) -> tuple[dict[str, str], list[str]]:
    """The spelling that stands for each that differs from it only in case."""
    fixed = {clean_name(name) for name in wanted or ()}
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(name.casefold(), []).append(name)
    one_of, notes = dict[str, str](), list[str]()
    for group in alike.values():
        # Names that the user listed both are two classes.
        if len(group) == 1 or len(fixed.intersection(group)) > 1:
            continue
        ordered = sorted(group, key=lambda name: (name not in fixed, -counts[name], name))
        written = ", ".join(f"{name!r} ({counts[name]} labels)" for name in ordered)
        if not ignore_case:
            if fixed.intersection(group):
                continue  # the other spelling is a label that is not wanted
            raise DatasetError(
                f"class names that differ only in case: {written}; write them alike, set dataset.ignore_case: true "
                "to join them, or list both in dataset.classes to keep them apart",
                ignore_case=True,
            )
        one_of |= dict.fromkeys(ordered, ordered[0])
        notes.append(f"joined, for they differ only in case: {written}")
    return one_of, notes


def _check(names: Sequence[str], what: str) -> None:
    cleaned = [clean_name(name) for name in names]
    for name in cleaned:
        _check_characters(name, what)
    repeated = sorted(name for name, count in Counter(cleaned).items() if count > 1)
    if repeated or "" in cleaned:
        raise DatasetError(f"{what} must be unique and not empty; repeated: {repeated}")


def _check_characters(name: str, where: str) -> None:
    """Refuse names that steer what shows them (a terminal, a log, a page), or that no page can be called."""
    steering = steering_character(name)
    if steering is not None:
        raise DatasetError(
            f"{printable(where)}: the class name {name!a} holds the control character {steering}; rename it"
        )
    if len(name) > _LONGEST:
        raise DatasetError(
            f"{printable(where)}: a class name of {len(name):,} characters ({name[:60]!r}...); is it one?"
        )


def _hint(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"classes: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
