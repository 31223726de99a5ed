"""How much a server takes on, and what it says when that is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
        memory: bytes of all requests that are on their way at once.
        pixels: of an image; the experiment's ``encoder.max_pixels`` holds too. Strangers may send what is small as a
            file and fills the memory when it is decoded.
    """

    batch: int = 16
    wait: float = 0.005
    body: int = 20_000_000
    images: int = 64
    queue: int = 512
    seconds: float = 60.0
    memory: int = 1_000_000_000
    pixels: int = 100_000_000


Hold = Callable[[int], None]
"""Takes so many bytes more into account; refuses where there are too many."""


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

    def __init__(self, queue: int, memory: int) -> None:
        self._queue, self._memory = queue, memory
        self.inside = self.bytes = 0

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

    @contextmanager
    def holding(self) -> Iterator[Hold]:
        """Give what takes bytes into account, as long as the block runs.

        Raises:
            RefusedError: 503, where all requests together hold too many.
        """
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if self.bytes + count > self._memory:
                raise RefusedError(503, "the server has as much to read as it takes at once; try again in a moment")
            self.bytes += count
            held += count

        try:
            yield hold
        finally:
            self.bytes -= held
