"""Load on a server: many clients at once, each asking again as soon as it is answered.

cprfl serve demo --port 8000 &
python -m tests.benchmarks.serve http://127.0.0.1:8000 --clients 64 --seconds 600 photo.jpg ...
"""

from __future__ import annotations

import argparse
import http.client
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np


@dataclass
class Load:
    """What the clients saw.

    Attributes:
        seconds: until each request was answered.
        statuses: how many answers of each status; ``error`` where a connection broke.
        duration: of all of it.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    duration: float = 0.0

    def __str__(self) -> str:
        """One line: requests by status, images a second and latency percentiles."""
        p50, p95, p99 = np.percentile(self.seconds, [50, 95, 99]) * 1000
        rate = len(self.seconds) / self.duration
        return (
            f"{dict(self.statuses)} in {self.duration:.0f} s: {rate:.0f} images/s, p50 {p50:.0f} ms, p95 {p95:.0f} ms, "
            f"p99 {p99:.0f} ms, longest {1000 * max(self.seconds):.0f} ms"
        )


def load(address: str, images: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Ask ``/predict`` with so many clients at once for so long."""
    found, begun = Load(), time.monotonic()
    threads = [
        threading.Thread(target=_ask, args=(address, images[number % len(images)], begun + seconds, found))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.duration = time.monotonic() - begun
    return found


def _ask(address: str, image: bytes, until: float, found: Load) -> None:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=120)
    while (begun := time.monotonic()) < until:
        try:
            connection.request("POST", "/predict", image, {"Content-Type": "application/octet-stream"})
            answer = connection.getresponse()
            answer.read()
            status = str(answer.status)
        except (OSError, http.client.HTTPException) as error:
            status = f"error: {error}"
            connection.close()
        found.seconds.append(time.monotonic() - begun)  # appending is atomic
        found.statuses.update([status])
    connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    print(load(given.address, [path.read_bytes() for path in given.images], given.clients, given.seconds))
