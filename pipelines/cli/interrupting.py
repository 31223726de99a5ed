"""Ctrl-C and SIGTERM: the first ends the command in good order, those that follow at once are not heard."""

from __future__ import annotations

import os
import signal
import sys
import time

_PATIENCE = 10.0  # seconds that runs have to be closed in; who presses later wants it to end now
STOPPED = 130
_first: list[float] = []


def hear_interrupts() -> None:
    """Let the first of them raise KeyboardInterrupt, so that runs end KILLED and Ray is shut down."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(*_: object) -> None:
    if not _first:
        _first.append(time.monotonic())
        raise KeyboardInterrupt
    if time.monotonic() - _first[0] > _PATIENCE:
        os._exit(STOPPED)


def was_interrupted(ended: SystemExit) -> bool:
    """Whether typer ended the command because of an interruption that the command itself did not answer."""
    return ended.code == STOPPED and isinstance(getattr(ended.__context__, "__cause__", None), KeyboardInterrupt)


def say_where() -> None:
    """Say how far the command got, in one line."""
    from cprfl.progress import standing

    where = f" {standing()}" if standing() else ""
    print(f"cprfl: stopped{where}; the same command goes on", file=sys.stderr, flush=True)
