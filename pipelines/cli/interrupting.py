"""Ctrl-C and SIGTERM: the first ends the command in good order, those that follow at once are not heard."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipelines.background import NEWS, in_transaction

_PATIENCE = 10.0  # seconds that runs have to be closed in; who presses later wants it to end now
_AGAIN = 0.05  # seconds until it is looked whether a transaction has ended
STOPPED = 130
_first: list[float] = []


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Let the first of them raise KeyboardInterrupt in the block, so that runs end KILLED and Ray is shut down.

    Then they stay as they are: whoever presses again must not end that which ends Ray's processes after the block.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    _first.clear()
    before = [signal.signal(number, _interrupt) for number in numbers]
    with _ending_in_time():
        try:
            yield
        finally:
            if not _first:
                for number, handler in zip(numbers, before, strict=True):
                    signal.signal(number, handler)


@contextmanager
def _ending_in_time() -> Iterator[None]:
    """End this process where the block, once it is interrupted, does not end: what it waits for may be gone.

    Who takes a machine away sends SIGTERM, waits, and then kills what Ray has started and left behind too.
    """
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_AGAIN * 5):
            if _first and time.monotonic() - _first[0] > _PATIENCE:
                say_where()
                os._exit(STOPPED)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise the first, or what is left of it: an alarm.

    A transaction ends before: one that is left in the middle keeps MLflow's database locked.
    """
    if not _first or number == signal.SIGALRM:
        _first.append(time.monotonic())
        signal.signal(NEWS, signal.SIG_IGN)  # it is ending; that Ray ends beside it is no news
        if in_transaction(frame):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN)
            return
        raise KeyboardInterrupt
    if time.monotonic() - _first[0] > _PATIENCE:
        os._exit(STOPPED)


def was_interrupted(ended: SystemExit) -> bool:
    """Whether typer ended the command because of an interruption that the command itself did not answer."""
    return ended.code == STOPPED and isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt)


def say_where() -> None:
    """Say how far the command got, in one line; what is pressed after it, while Python ends, changes nothing."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python puts the default, to die of it, in place of our own
    from cprfl.progress import goes_on, standing

    where = f" {standing()}" if standing() else ""
    print(f"cprfl: stopped{where}; {goes_on()} goes on", file=sys.stderr, flush=True)
