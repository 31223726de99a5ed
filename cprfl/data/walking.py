"""What lies below a folder of this machine, as every reader sees it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def walk(root: str | Path, enters: Callable[[str], bool] = bool) -> Iterator[tuple[str, list[str], list[str]]]:
    """A folder and those below it; links are followed, since big folders are often linked, but not in circles.

    Args:
        root: the folder; nothing is found where there is none.
        enters: whether a folder of this name is looked into.

    Yields:
        The start of the paths of what is in it, below ``root`` (``""``, ``"a/b/"``); the names of the folders in it
        that are entered, and of its files; sorted.
    """
    places = {Path(root): [os.path.realpath(root)]}  # of each folder to come: where it and those above it really are
    for folder, inner, names in os.walk(root, followlinks=True):
        above = places.pop(here := Path(folder))
        there = {name: os.path.realpath(here / name) for name in filter(enters, inner)}
        inner[:] = sorted(name for name, place in there.items() if not any(_holds(place, each) for each in above))
        places |= {here / name: [*above, there[name]] for name in inner}
        below = os.path.relpath(folder, root)
        yield "" if below == "." else f"{below}/", list(inner), sorted(names)


def walked(root: str | Path) -> Iterator[str]:
    """Paths below a folder of all files in it, folder by folder; see `walk`."""
    return (f"{start}{name}" for start, _, names in walk(root) for name in names)


def _holds(folder: str, place: str) -> bool:
    """Whether a place is this folder, or below it."""
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")
