"""Counts, shares and lists of names in words."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``, ``1 class``, ``2 classes``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def percent(share: float) -> str:
    """``57%``; what is nearly nothing or nearly all is not rounded to it."""
    if 0 < share < 0.01:
        return "<1%"
    return ">99%" if 0.99 < share < 1 else f"{share:.0%}"


def named(names: Sequence[str], count: int = 10, joint: str = ", ") -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return joint.join(names[:count]) + more
