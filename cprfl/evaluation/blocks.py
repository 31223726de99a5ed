"""Matrices of images by classes, a part at a time: temporaries of a whole one take several times its own memory.

What is summed over parts is summed in the order of the whole, or counted in whole numbers, so that results do not
depend on where parts end.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_VALUES = 2**21  # of a part: 16 MB in float64


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Images of a matrix [N, C] that are looked at together; once nothing, where there are none."""
    num_images, num_classes = shape
    step = max(1, _VALUES // max(num_classes, 1))
    return (slice(start, start + step) for start in range(0, max(num_images, 1), step))


def shown_classes(targets_NC: np.ndarray) -> np.ndarray:
    """Whether an image shows the class, bool [C]."""
    shown: np.ndarray = np.any([(targets_NC[rows] > 0).any(axis=0) for rows in row_blocks(targets_NC.shape)], axis=0)
    return shown


def columns(*matrices_NC: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """The columns of each class, [N] of each matrix, one class after the other.

    Those of some classes are copied together: a row is fetched from memory whole, whoever asks for one number of it.
    """
    num_images, num_classes = matrices_NC[0].shape
    step = max(1, _VALUES // max(num_images, 1))
    for start in range(0, num_classes, step):
        parts_cN = [np.ascontiguousarray(matrix_NC[:, start : start + step].T) for matrix_NC in matrices_NC]
        yield from zip(*parts_cN, strict=True)
