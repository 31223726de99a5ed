"""Every image opened once: whether it decodes, how large it is, and a small copy to compare it by.

Shapes: N images, S x S the pixels of a small copy.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cprfl.data.filesystems import is_remote
from cprfl.data.images import BadImage, Reading, open_image
from cprfl.data.manifest import Manifest
from cprfl.errors import UnreadableImageError
from cprfl.progress import progress

SMALL = 16  # pixels of a small copy's side
ELONGATED = 4.0  # an image is odd whose longer side is so many times the other: a square crop shows little of it
TINY = 32  # pixels of the shorter side
_ONE_COLOUR = 2  # levels of 255 between the darkest and the brightest part of an image of one colour
_READERS = 16  # threads, where opening an image is waiting for it


@dataclass(frozen=True)
class Scan:
    """What opening all images told.

    Attributes:
        rows: of the manifest, the N images that decode.
        sizes_N2: width and height of each as it is seen, in pixels.
        small_NSS3: a small copy of each, uint8.
        bad: the images that do not decode.
    """

    rows: np.ndarray
    sizes_N2: np.ndarray
    small_NSS3: np.ndarray
    bad: tuple[BadImage, ...]

    @property
    def one_colour(self) -> np.ndarray:
        """Rows of the manifest whose image is of one colour."""
        levels = self.small_NSS3.reshape(-1, SMALL * SMALL, 3)
        return self.rows[np.ptp(levels, axis=1).max(axis=1, initial=0) <= _ONE_COLOUR]

    @property
    def elongated(self) -> np.ndarray:
        """Rows of the manifest whose image is much longer than wide, or the other way round."""
        return self.rows[self.sizes_N2.max(axis=1) >= ELONGATED * self.sizes_N2.min(axis=1)]

    @property
    def tiny(self) -> np.ndarray:
        """Rows of the manifest whose image has hardly any pixels."""
        return self.rows[self.sizes_N2.min(axis=1) < TINY]

    @property
    def extremes(self) -> list[int]:
        """Rows of the manifest with the fewest and with the most pixels; nothing where no image decodes."""
        pixels_N = self.sizes_N2.prod(axis=1)
        return self.rows[[pixels_N.argmin(), pixels_N.argmax()]].tolist() if len(pixels_N) else []


def scan(manifest: Manifest, rows: Sequence[int], reading: Reading) -> Scan:
    """Open these images of a manifest, in threads.

    Args:
        manifest: the images.
        rows: of those that are there.
        reading: how image files are read.

    Raises:
        StorageError: where the storage cannot be reached.
    """
    seen: list[int] = []
    sizes: list[tuple[int, int]] = []
    small: list[np.ndarray] = []
    bad: list[BadImage] = []
    uris = [manifest.uris[row] for row in rows]
    threads = _READERS if any(map(is_remote, uris)) else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for row, found in zip(
            rows, progress(pool.map(lambda uri: _look(uri, reading), uris), len(uris), "looking at images"), strict=True
        ):
            if isinstance(found, UnreadableImageError):
                bad.append(BadImage(manifest.image_ids[row], manifest.uris[row], str(found)))
                continue
            seen.append(row)
            sizes.append(found[0])
            small.append(found[1])
    return Scan(
        np.array(seen, dtype=np.int64),
        np.array(sizes, dtype=np.int64).reshape(-1, 2),
        np.array(small, dtype=np.uint8).reshape(-1, SMALL, SMALL, 3),
        tuple(bad),
    )


def _look(uri: str, reading: Reading) -> tuple[tuple[int, int], np.ndarray] | UnreadableImageError:
    try:
        image = open_image(uri, reading)
    except UnreadableImageError as error:
        return error
    # Each small pixel is the mean of those it covers, so that scaling and compression hardly change it.
    return image.size, np.asarray(image.resize((SMALL, SMALL), Image.Resampling.BOX))
