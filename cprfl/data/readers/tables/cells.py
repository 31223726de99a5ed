"""What the cell of a table means: yes, no, nobody knows, nothing; or a list as Python or JSON writes it."""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

Meaning = Literal["yes", "no", "minus", "unsure", "blank", "share", "other"]
"""``minus`` is -1, ``share`` a number between 0 and 1, ``other`` everything that is none of these."""

_WORDS: dict[str, Meaning] = {
    **dict.fromkeys(("true", "yes", "y", "x", "✓", "✔"), "yes"),
    **dict.fromkeys(("false", "no", "n"), "no"),
    **dict.fromkeys(("u", "uncertain", "unsure", "unknown", "?"), "unsure"),
}
_NOTHING = {"", "null", "none", "nan", "na", "n/a", "<na>", "-", "--"}
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_KEYS = re.compile(r".*(labels?|choices?|names?|class|classes|tags)", re.IGNORECASE)
_SCORES = re.compile(r".*(score|confidence|prob|probability)", re.IGNORECASE)
_MAKERS = ("array", "asarray", "list", "tuple", "set", "frozenset", "Index", "str_")  # as they print what they hold
_LITERAL = re.compile(rf"[\[{{]|\(\s*(['\")]|[\d\s,.]+\)$)|((np|numpy|pd)\.)?({'|'.join(_MAKERS)})\(.*\)$", re.DOTALL)
_NUMBERS = re.compile(r"\[[\d.\s]*\]")


def is_nothing(cell: str) -> bool:
    """Whether a cell is blank, or a word that programs write for a blank one."""
    return cell.casefold() in _NOTHING


@lru_cache(maxsize=4096)
def meaning(cell: str) -> Meaning:
    """What a cell says of whether an image shows a class."""
    if is_nothing(cell):
        return "blank"
    word = _WORDS.get(cell.casefold())
    if word is not None:
        return word
    number = number_in(cell)
    if number is None:
        return "other"
    exact: dict[float, Meaning] = {1.0: "yes", 0.0: "no", -1.0: "minus"}
    return exact.get(number, "share" if 0 < number < 1 else "other")


def number_in(cell: str) -> float | None:
    """The number that a cell is, with a decimal point or comma; none where it is no finite number."""
    try:
        number = float(cell.replace(",", ".") if _DECIMAL_COMMA.fullmatch(cell) else cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def is_literal(cell: str) -> bool:
    """Whether a cell looks as if it were a list, a tuple, a set, a dictionary or an array of Python, JSON or NumPy."""
    return _LITERAL.match(cell) is not None


def names_in_literal(cell: str) -> list[str]:
    """The names in ``['dog', 'boat']``, ``["dog"]`` or ``{"choices": ["dog"]}``.

    Raises:
        ValueError: where it is broken, or holds something else than names.
    """
    return list(_names(_value(cell)))


def _value(cell: str) -> Any:
    try:
        return json.loads(cell)
    except json.JSONDecodeError:
        pass
    if _NUMBERS.fullmatch(cell):  # NumPy writes no commas, and 1. for 1.0
        return [number.removesuffix(".") for number in cell[1:-1].split()]
    try:
        value = _evaluated(ast.parse(cell, mode="eval").body)
        # NumPy writes no commas, and Python takes 'a' 'b' for 'ab'.
        texts = [
            token.string
            for token in tokenize.generate_tokens(io.StringIO(cell).readline)
            if token.type == tokenize.STRING
        ]
    except (SyntaxError, ValueError, TypeError, tokenize.TokenError, MemoryError, RecursionError):
        raise ValueError("a list or dictionary that neither Python nor JSON can read") from None
    if isinstance(value, list) and all(isinstance(item, str) for item in value) and len(texts) > len(value):
        return [ast.literal_eval(text) for text in texts]
    return value


def _evaluated(node: ast.expr) -> Any:
    """As `ast.literal_eval`, and what prints itself as a call: ``array(['dog'], dtype=object)``, ``set()``."""
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return [_evaluated(item) for item in node.elts]
    if isinstance(node, ast.Name) and node.id == "nan":
        return None
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in _MAKERS:
            return _evaluated(node.args[0]) if node.args else []
    return ast.literal_eval(node)


def _names(value: Any) -> Iterator[str]:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list):
        for item in value:
            yield from _names(item)
    elif isinstance(value, dict):
        keys = [key for key in value if isinstance(key, str) and _KEYS.fullmatch(key)]
        if len(keys) != 1:
            raise ValueError("a dictionary that does not say which of its keys holds the names (choices, labels)")
        if any(isinstance(key, str) and _SCORES.fullmatch(key) for key in value):
            raise ValueError("a name with a score; decide from which score on the image shows it")
        yield from _names(value[keys[0]])
    else:
        raise ValueError(f"{value!r} is no name")
