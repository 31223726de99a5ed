"""Images of requests that come at the same time are scored together, in a thread of their own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cprfl.inference.predictor import Predictor


@dataclass(frozen=True)
class _Asked:
    predictor: Predictor
    pixels_K3HW: Tensor
    answer: Future[np.ndarray] = field(default_factory=Future)


class Batcher:
    """Scores images in batches, in the order in which they were asked for.

    An image is scored by the predictor that it was read for, so that a new champion changes nothing for those that are
    waiting.

    Args:
        size: of a batch, at most.
        wait: seconds that the first image of a batch waits for others, at most.
        scored: told the size of each batch.
    """

    def __init__(self, size: int, wait: float, scored: Callable[[int], None]) -> None:
        self._size, self._wait, self._scored = size, wait, scored
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Images that wait."""
        return len(self._waiting)

    def ask(self, predictor: Predictor, pixels_K3HW: Tensor) -> Future[np.ndarray]:
        """Probabilities [C] of an image, as ``encoder.transform.scored`` made it, when they are there."""
        asked = _Asked(predictor, pixels_K3HW)
        with self._changed:
            assert not self._closed
            self._waiting.append(asked)
            self._changed.notify()
        return asked.answer

    def close(self) -> None:
        """Score what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            wanted = [asked for asked in batch if asked.answer.set_running_or_notify_cancel()]
            if wanted:
                self._score(wanted)

    def _next(self) -> list[_Asked]:
        """The images that are scored next, all by one predictor; none at the end."""
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            deadline = time.monotonic() + self._wait
            while len(self._waiting) < self._size and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            batch: list[_Asked] = []
            while self._waiting and len(batch) < self._size:
                if batch and self._waiting[0].predictor is not batch[0].predictor:
                    break
                batch.append(self._waiting.popleft())
            return batch

    def _score(self, batch: list[_Asked]) -> None:
        try:
            pixels_NK3HW = torch.stack([asked.pixels_K3HW for asked in batch])
            probability_NC = batch[0].predictor.probabilities(pixels_NK3HW)
        except Exception as error:  # whoever asked is told; the thread goes on for the others
            for asked in batch:
                asked.answer.set_exception(error)
            return
        self._scored(len(batch))
        for asked, probability_C in zip(batch, probability_NC, strict=True):
            asked.answer.set_result(probability_C)
