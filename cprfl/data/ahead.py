"""Reading ahead of whoever works on what was read before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


def read_ahead(read: Callable[[Item], Read], items: Iterable[Item], ahead: int, readers: int) -> Generator[Read]:
    """What ``read`` makes of each item, in order, made in threads; so memory holds no more than is ahead.

    Args:
        read: is called in the threads.
        items: taken one by one.
        ahead: how many are being read, or wait, beside the one that is given.
        readers: threads.
    """
    pending: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(readers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(read, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
