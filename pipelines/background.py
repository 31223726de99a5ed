"""Threads: one beside a block of code, one for what would take Ctrl-C for itself, and news for the main one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")
# At most so long it is waited at a time: polars, which MLflow and plots import, lets Ctrl-C interrupt no system call.
_SECONDS = 0.5
NEWS = signal.SIGUSR2  # for the main thread, from another one
_AGAIN = 0.05  # seconds until it is looked whether a transaction has ended
_DATABASE = ("mlflow.store.", "sqlalchemy.")
_news: SimpleQueue[Exception] = SimpleQueue()
_BESIDE = "cprfl: beside the command"  # name of a thread that somebody waits for, or has stopped waiting for


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

    thread = threading.Thread(target=call, name=_BESIDE, daemon=True)
    thread.start()
    while True:
        try:
            result, error = ended.get(timeout=_SECONDS)
        except Empty:
            continue
        thread.join()
        if error is not None:
            raise error
        return result  # type: ignore[return-value]


def is_left_behind() -> bool:
    """Whether work is still done in a thread of `in_thread`, which nobody waits for any more if this is asked."""
    return any(thread.name == _BESIDE for thread in threading.enumerate())


def main_thread_raises() -> None:
    """Let the main thread, which calls this, raise what `raise_in_main_thread` is given."""
    signal.signal(NEWS, _raise_news)


def raise_in_main_thread(error: Exception) -> None:
    """Have the main thread raise an error wherever it waits; it has to listen (`main_thread_raises`)."""
    if signal.getsignal(NEWS) is not _raise_news:
        return
    _news.put(error)
    signal.pthread_kill(threading.main_thread().ident or 0, NEWS)


def _raise_news(number: int, frame: FrameType | None) -> None:
    if in_transaction(frame):
        again = threading.Timer(_AGAIN, signal.pthread_kill, (threading.main_thread().ident or 0, NEWS))
        again.daemon = True
        again.start()
        return
    try:
        error = _news.get_nowait()
    except Empty:  # somebody else's signal
        return
    raise error


def in_transaction(frame: FrameType | None) -> bool:
    """Whether MLflow's database is being written to: who leaves that in the middle keeps it locked."""
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_DATABASE):
            return True
        frame = frame.f_back
    return False
