"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 15.0


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass ``items`` on and show on stderr how many of ``total`` are done."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, total=total, description=what, console=Console(stderr=True), transient=True)
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if done == total or now - shown >= _SECONDS_BETWEEN_LINES:
            print(f"{what}: {done}/{total}, {now - start:.0f} s", file=sys.stderr, flush=True)
            shown = now
