"""How much a server takes on, and what it says when that is too much."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Attributes:
        batch: images that are scored at once, at most.
        wait: seconds for which an image waits for others to be scored with.
        body: bytes of a request.
        images: images of a request.
        queue: images, and requests that are still being read, that are on their way at once.
        seconds: for sending a request.
    """

    batch: int = 16
    wait: float = 0.005
    body: int = 20_000_000
    images: int = 64
    queue: int = 512
    seconds: float = 60.0


class RefusedError(Exception):
    """A request that is not answered with scores.

    Attributes:
        status: HTTP's.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """Counts what is on its way, and lets no more in than the queue holds; used by the event loop alone."""

    def __init__(self, queue: int) -> None:
        self._queue = queue
        self.inside = 0

    @contextmanager
    def entered(self, count: int) -> Iterator[None]:
        """Hold so many places as long as the block runs.

        Raises:
            RefusedError: 503, where they are not free.
        """
        if self.inside + count > self._queue:
            raise RefusedError(503, f"{self.inside} images are waiting already; try again in a moment")
        self.inside += count
        try:
            yield
        finally:
            self.inside -= count
