"""Threads: one beside a block of code, and one for what would take Ctrl-C for itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")
# At most so long it is waited at a time: polars, which MLflow and plots import, lets Ctrl-C interrupt no system call.
_SECONDS = 0.5


@contextmanager
def in_background(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run ``work`` in a thread while the block runs; it ends when its event is set."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def in_thread(work: Callable[[], Result]) -> Result:
    """Call ``work`` in a thread and wait for it, so that Ctrl-C is raised here.

    Ray Train answers Ctrl-C by itself where it runs in the main thread: with exit status 1 and no word.
    """
    ended: SimpleQueue[tuple[Result | None, BaseException | None]] = SimpleQueue()

    def call() -> None:
        try:
            ended.put((work(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    while True:
        try:
            result, error = ended.get(timeout=_SECONDS)
        except Empty:
            continue
        if error is not None:
            raise error
        return result  # type: ignore[return-value]
