"""Which classes are named in the plot of the long tail, and on which side: so that no name is on another.

It is worked out for a narrow page: on a wider one points are further apart, and names as long as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.cells import cell_len

_WIDTH = 560  # pixels of the plot on a narrow page
_LETTER, LONGEST, GAP = 7, 140, 8  # pixels: of a letter, of a name, between a name and its point
_LINE = 14  # pixels of a name's height


class _Place(NamedTuple):
    """Of a name, in pixels."""

    start: float
    end: float
    y: float

    def meets(self, other: _Place) -> bool:
        """Whether two names are on each other."""
        return self.start < other.end and other.start < self.end and abs(self.y - other.y) < _LINE


def named(rows: Sequence[Mapping[str, Any]], domain: tuple[float, float], height: int, count: int) -> dict[int, str]:
    """``left`` or ``right`` of its point for each class that is named: of the worst, those that there is room for.

    Args:
        rows: classes with ``label``, ``class``, ``images`` and ``AP``.
        domain: training images from the plot's left edge to its right; logarithmic, from 0 on as 1 more.
        height: pixels of the plot.
        count: how many are named at most; of twice as many.
    """
    scale = np.log if domain[0] > 0 else np.log1p
    low, high = map(float, scale(domain))
    x_P = [_WIDTH * (float(scale(row["images"])) - low) / ((high - low) or 1.0) for row in rows]
    y_P = [height * row["AP"] / 100 for row in rows]
    found: dict[int, str] = {}
    taken: list[_Place] = []
    for number in sorted(range(len(rows)), key=y_P.__getitem__)[: 2 * count]:
        x, y, name = x_P[number], y_P[number], rows[number]["class"]
        length = GAP + min(LONGEST, _LETTER * cell_len(name))
        sides = {"right": _Place(x, x + length, y), "left": _Place(x - length, x, y)}
        free = {
            side: sum(
                place.start < other < place.end and abs(y - high_up) < _LINE / 2
                for other, high_up in zip(x_P, y_P, strict=True)
            )
            for side, place in sides.items()
            if place.start >= 0 and place.end <= _WIDTH and not any(place.meets(other) for other in taken)
        }  # points that the name would be on
        if free and len(found) < count:
            side = min(free, key=free.__getitem__)
            found[rows[number]["label"]] = side
            taken.append(sides[side])
    return found
