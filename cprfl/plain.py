"""Text of strangers, names of classes and files above all, made harmless for where it goes.

HTML has autoescaping, and tables of `rich` have `rich.markup.escape`; here is what is left: terminals and spreadsheets.
"""

from __future__ import annotations

import re

# Control characters, with which a text moves the cursor or talks to the terminal; what turns the order of the letters
# around; halves of characters, which nothing can write; marks that break lines or say nothing.
_STEERING = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
_STEERS = re.compile(f"[{_STEERING}]")
_INVISIBLE = re.compile(f"(?![\n\t])[{_STEERING}\u200b\u2060\u00ad]")
_FORMULA = re.compile(r"[\t\r\n]|\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # full-width signs are signs to some


def steering_character(text: str) -> str | None:
    """The first character that would steer what shows the text, as ``U+001B``; none where there is none."""
    found = _STEERS.search(text)
    return None if found is None else f"U+{ord(found.group()):04X}"


def printable(text: str) -> str:
    r"""The text for a terminal or log: what would steer it, or cannot be seen, is written as ``\x1b``.

    Line breaks and tabs stay, for our own texts have them.
    """
    return _INVISIBLE.sub(lambda found: repr(found.group())[1:-1], text)


def no_formula(text: str) -> str:
    """The text as a spreadsheet takes it for text: what begins like a formula gets an apostrophe before it."""
    return f"'{text}" if _FORMULA.match(text) else text
