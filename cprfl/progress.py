"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

_SECONDS_BETWEEN_LINES = 15.0


def progress(items: Iterable[Item], total: int, what: str, size: Callable[[Item], int] = lambda _: 1) -> Iterator[Item]:
    """Pass ``items`` on and show on stderr how much of ``total`` is done, the rate and the time left.

    ``size`` says how much an item counts.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task, start = bar.add_task(what, total=total, rate=""), time.monotonic()
            for item in items:
                yield item
                bar.advance(task, size(item))
                bar.update(task, rate=_rate(bar.tasks[0].completed, time.monotonic() - start))
        return
    start = shown = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if done == total or now - shown >= _SECONDS_BETWEEN_LINES:
            seconds = now - start
            left = f", {seconds * (total - done) / done:.0f} s left" if done < total else ""
            print(f"{what}: {done}/{total}, {seconds:.0f} s, {_rate(done, seconds)}{left}", file=sys.stderr, flush=True)
            shown = now


def _rate(done: float, seconds: float) -> str:
    """What is done in a second, or how long one takes."""
    return f"{done / seconds:.1f}/s" if done >= seconds else f"{seconds / max(done, 1):.1f} s each"
