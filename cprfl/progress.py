"""Progress of long work on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from cprfl.plain import printable

Item = TypeVar("Item")

QUIET, NORMAL, VERBOSE = -1, 0, 1
_SECONDS_BETWEEN_LINES = 15.0
_START = time.monotonic()
_state = {"verbosity": NORMAL, "standing": "", "command": "the same command"}


def set_verbosity(level: int) -> None:
    """Choose how much is shown: nothing but results (`QUIET`), `NORMAL`, or every line with its time (`VERBOSE`)."""
    _state["verbosity"] = level


def is_verbose() -> bool:
    """Whether everything is to be shown."""
    return _state["verbosity"] == VERBOSE


def say(text: str) -> None:
    """Say what begins now, in a line, so that nobody wonders; nothing where it is to be quiet."""
    if _state["verbosity"] == QUIET:
        return
    stamp = f"[{time.monotonic() - _START:6.1f} s] " if _state["verbosity"] == VERBOSE else ""
    print(printable(f"{stamp}{text}"), file=sys.stderr, flush=True)


def standing() -> str:
    """How far the latest work got (``after epoch 24 of 40``), for whoever is interrupted; empty before there is any."""
    return str(_state["standing"])


def stand(where: str) -> None:
    """Note how far the latest work got, where no `Meter` follows it."""
    _state["standing"] = where


def go_on_with(command: str) -> None:
    """Note which command goes on with this one's work, where it is not the same."""
    _state["command"] = command


def goes_on() -> str:
    """The command that goes on with this one's work."""
    return str(_state["command"])


class Meter:
    """How far one piece of work is, with the time left.

    The rate is measured from the first step on: what comes before, starting processes and the like, says nothing of
    those to come. It is shown from the first call of `show` until the block ends.

    Args:
        what: is being done.
        total: of the steps.
        unit: name of a step (``epoch``), where it has one.
    """

    def __init__(self, what: str, total: int, unit: str = "") -> None:
        self.what, self.total, self.unit = what, total, unit
        self.start = self.shown = time.monotonic()
        self.first: tuple[float, int] | None = None
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, note: str = "") -> None:
        """Show that so many steps are done; a line at most every 15 seconds, and always the last one."""
        now = time.monotonic()
        if done and self.first is None:
            self.first = now, done
        of = f"after {self.unit} {done} of {self.total}" if self.unit else f"at {done} of {self.total}"
        stand(of if self.unit else f"{of} ({self.what})")
        if _state["verbosity"] == QUIET:
            return
        pace = ", ".join(part for part in (note, self._pace(done, now)) if part)
        if sys.stderr.isatty() or self._bar is not None:
            self._show_bar(done, pace)
        elif done and (done == self.total or now - self.shown >= _SECONDS_BETWEEN_LINES):
            unit = f"{self.unit} " if self.unit else ""
            say(f"{self.what}: {unit}{done}/{self.total}, {pace}")
            self.shown = now

    def _pace(self, done: int, now: float) -> str:
        """Time gone, rate and time left."""
        gone = now - self.start
        if self.first is None or not done:
            return ""
        since, steps = now - self.first[0], done - self.first[1]
        if done == self.total:
            return f"{span(gone)}, {_rate(steps, since) if steps else _rate(done, gone)}"
        if not steps:  # what came before the first, such as a start of Ray or other trainings, says nothing of the rest
            return span(gone)
        return f"{span(gone)}, {_rate(steps, since)}, {span(since / steps * (self.total - done))} left"

    def _show_bar(self, done: int, pace: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            shown = TextColumn(escape(self.what)), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}")
            self._bar = Progress(*shown, console=Console(stderr=True), transient=True)
            self._bar.add_task(self.what, total=self.total, pace="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=done, pace=pace)


def progress(items: Iterable[Item], total: int, what: str, size: Callable[[Item], int] = lambda _: 1) -> Iterator[Item]:
    """Pass ``items`` on and show how much of ``total`` is done, the rate and the time left.

    ``size`` says how much an item counts.
    """
    done = 0
    with Meter(what, total) as meter:
        meter.show(0)
        for item in items:
            yield item
            done += size(item)
            meter.show(done)


def span(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _rate(done: float, seconds: float) -> str:
    """What is done in a second, or how long one takes."""
    return f"{done / max(seconds, 1e-9):.1f}/s" if done >= seconds else f"{seconds / done:.1f} s each"
