"""Labels as tables and tar files hold them, names or indices, brought to names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cprfl.errors import DatasetError

Cell = tuple[str, Sequence[object]]
"""Where the labels of an image are, and the labels."""


def named_labels(cells: Sequence[Cell], names: Sequence[str] | None, multi_hot: bool | None) -> list[list[str]]:
    """The labels of each image, by name.

    Args:
        cells: names (text), or indices (numbers), or one 0 or 1 for each class.
        names: of the classes, in the order of their indices, where they are known.
        multi_hot: whether numbers are 0 and 1 for each class; found out, or refused, unless given.

    Raises:
        DatasetError: for indices without names or out of range, for names beside indices, and for numbers that may
            be indices or 0 and 1 for each class.
    """
    kinds = {type(value) for _, values in cells for value in values}
    if kinds <= {str}:
        return [[str(value) for value in values] for _, values in cells]
    for where, values in cells:
        for value in values:
            if not isinstance(value, bool | int | float) or str in kinds:
                raise DatasetError(
                    f"{where}: the label {value!r} is {_kind(value)}, others are not; labels are all names or all "
                    "indices, in a list for each image (an empty one: no class)"
                )
    if multi_hot is None:
        _refuse_what_may_be_multi_hot(cells, names, kinds)
    if names is None:
        where, values = next((where, values) for where, values in cells if values)
        raise DatasetError(
            f"{where}: the label {values[0]!r} is an index, and nothing names the classes; give their names in the "
            "order of the indices: dataset.label_names: [...]"
        )
    if multi_hot:
        return [_of_multi_hot(where, values, names) for where, values in cells]
    return [[_of_index(where, value, names) for value in values] for where, values in cells]


def _kind(value: object) -> str:
    return {str: "text", type(None): "nothing"}.get(type(value), f"of type {type(value).__name__}")


def _refuse_what_may_be_multi_hot(cells: Sequence[Cell], names: Sequence[str] | None, kinds: set[type]) -> None:
    lengths = {len(values) for _, values in cells}
    length = next(iter(lengths))
    alike = lengths == {length} and length > 1 and all(value in (0, 1) for _, values in cells for value in values)
    if not kinds <= {int} or (alike and (names is None or len(names) == length)):
        where, values = cells[0]
        raise DatasetError(
            f"{where}: the labels {str(list(values))[:60]} look like a 0 or 1 for each class; set dataset.multi_hot: "
            "true if they are, or false if they are indices of classes"
        )


def _of_multi_hot(where: str, values: Sequence[object], names: Sequence[str]) -> list[str]:
    if len(values) != len(names):
        raise DatasetError(f"{where}: {len(values)} numbers for {len(names)} classes; one each (dataset.multi_hot)")
    strange = [value for value in values if value not in (0, 1)]
    if strange:
        raise DatasetError(f"{where}: {strange[0]!r} is neither 0 nor 1 (dataset.multi_hot)")
    return [name for name, value in zip(names, values, strict=True) if value]


def _of_index(where: str, value: object, names: Sequence[str]) -> str:
    if type(value) is not int:
        raise DatasetError(f"{where}: the label {value!r} is no index of a class; indices are whole numbers")
    if value == -1:
        raise DatasetError(
            f"{where}: the label -1 says that nobody labelled the image; leave such images or splits out"
        )
    if not 0 <= value < len(names):
        raise DatasetError(f"{where}: class index {value} is out of range; there are names for 0 to {len(names) - 1}")
    return names[value]


def refuse_joined_names(cells: Sequence[tuple[str, str]], mend: str, **settings: str) -> None:
    """Refuse texts that are several names in one, where each should be the name of one class.

    Args:
        cells: where each text is, and the text.
        mend: what would mend it; ``{separator!r}`` in it is the separator that was found.
        settings: with which it would be read, `DatasetError`.

    Raises:
        DatasetError: for lists written as text; for a separator whose parts are found in other texts again.
    """
    first: dict[str, str] = {}
    for where, text in cells:
        first.setdefault(text, where)
    for text, where in first.items():
        if text[:1] + text[-1:] in ("[]", "{}"):
            raise DatasetError(f"{where}: {text[:60]!r} is a list written as text; store it as a list of names")
    for separator in ",;|":
        parts = {text: {part.strip() for part in text.split(separator)} for text in first}
        holders = Counter(part for own in parts.values() for part in own)
        joined = [text for text in first if separator in text]
        recurring = [text for text in joined if any(holders[part] > 1 for part in parts[text])]
        if recurring and 2 * len(recurring) >= len(joined):
            raise DatasetError(
                f"{first[recurring[0]]}: {recurring[0][:60]!r} looks like several names, joined by {separator!r}; "
                + mend.format(separator=separator),
                **{key: value.format(separator=separator) for key, value in settings.items()},
            )
