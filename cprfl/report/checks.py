"""What a check of a model found: it always says whether it passed, so that silence is never success."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "tip", "issue", "not applicable", "skipped"]
"""``skipped``: it could not be looked at, for a reason that the explanation gives."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        code: by which it is named everywhere, like ``below-linear-baseline``.
        title: what was found, in a few words.
        status: how it came out.
        explanation: why it matters and what to do, in a sentence or two.
    """

    code: str
    title: str
    status: Status
    explanation: str
