"""Pictures that are nearly the same, found by cached features and confirmed by pixels: leaks, and repetitions.

`cprfl.report.data_set.alike` finds what was scaled or compressed again, before anything is encoded. Features also lead
to crops and to other exposures, whose hashes differ.

Shapes: N images, F features, K neighbours, S x S pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cprfl.data.feature_store import FeatureStore
from cprfl.data.images import DEFAULT_READING, Reading, open_image
from cprfl.data.manifest import Manifest
from cprfl.errors import UnreadableImageError
from cprfl.progress import progress
from cprfl.report.findings.exports import Value, write_csv

COLUMNS = ("first", "first_split", "second", "second_split", "similarity", "correlation", "first_uri", "second_uri")
NEIGHBOURS = 5  # of each image that are looked at
SAME = 0.9  # correlation of brightness from which on two pictures are one
_BLOCK = 1024  # images that are compared with all at a time
_BATCH = 256
_SPREAD = 3.0  # deviations below the usual distance to a neighbour, on a log scale
_SIDE = 32  # pixels of what is compared
_KEPT = 40  # of the larger copy that a window is cut out of: 32/40 is the smallest crop that is looked for
_WINDOWS = tuple(
    (left, top, left + size, top + size)
    for size in (_KEPT, 39, 38, 37, 36, 34)
    for left, top in itertools.product(sorted({0, (_KEPT - size) // 2, _KEPT - size}), repeat=2)
)


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show nearly the same picture.

    Attributes:
        rows: of the manifest, ascending.
        image_ids: of both.
        uris: of both.
        splits: of both.
        similarity: cosine of their features.
        correlation: of their brightness where they fit best; none where one of them cannot be read any more.
    """

    rows: tuple[int, int]
    image_ids: tuple[str, str]
    uris: tuple[str, str]
    splits: tuple[str, str]
    similarity: float
    correlation: float | None

    @property
    def leaks(self) -> bool:
        """Whether they are in different splits."""
        return self.splits[0] != self.splits[1]


def near_duplicates(
    manifest: Manifest, store: FeatureStore, reading: Reading = DEFAULT_READING
) -> tuple[NearDuplicate, ...]:
    """Pairs of images that show nearly the same picture: those in different splits first, then the most similar.

    Args:
        manifest: the images; those without features are passed over.
        store: their features.
        reading: how image files are read.

    Raises:
        StorageError: where the images' storage cannot be reached.
    """
    bad = {image.image_id for image in store.bad_images}
    kept = [row for row, image_id in enumerate(manifest.image_ids) if image_id not in bad]
    if len(kept) < 2:
        return ()
    pairs_K2, similarity_K = similar_pairs(unit_features(store, manifest.select(kept)))
    rows = [(kept[first], kept[second]) for first, second in pairs_K2.tolist()]
    correlations = _correlations(manifest.uris, rows, reading)
    found = [
        _pair(manifest, pair, similarity, correlation)
        for pair, similarity, correlation in zip(rows, similarity_K.tolist(), correlations, strict=True)
        if correlation is None or correlation >= SAME
    ]
    return tuple(sorted(found, key=lambda pair: (not pair.leaks, -pair.similarity, pair.rows)))


def _pair(manifest: Manifest, rows: tuple[int, int], similarity: float, correlation: float | None) -> NearDuplicate:
    first, second = rows
    return NearDuplicate(
        rows,
        (manifest.image_ids[first], manifest.image_ids[second]),
        (manifest.uris[first], manifest.uris[second]),
        (manifest.splits[first], manifest.splits[second]),
        similarity,
        correlation,
    )


def unit_features(store: FeatureStore, images: Manifest) -> np.ndarray:
    """Mean over the cells of each image, standardised, of length 1, float32 [N, F]."""
    row_of = {image_id: row for row, image_id in enumerate(images.image_ids)}
    features_NF = np.empty((len(images), store.grid_shape[1]), dtype=np.float32)
    batches = store.subset(images.image_ids).iter_batches(_BATCH, views="plain")
    for batch in progress(batches, len(images), "reading features", size=lambda batch: len(batch.image_ids)):
        features_NF[[row_of[image_id] for image_id in batch.image_ids]] = batch.grid_BVD.float().mean(dim=1).numpy()
    features_NF -= features_NF.mean(axis=0)
    features_NF /= features_NF.std(axis=0) + 1e-6
    features_NF /= np.linalg.norm(features_NF, axis=1, keepdims=True) + 1e-12
    return features_NF


def similar_pairs(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of images [P, 2] that are much nearer than neighbours usually are, and their cosines [P].

    What is usual is told by the distances of all images to their fifth nearest: few pictures come six times. On a log
    scale they are about normal; middle and deviation are taken from the median and the upper half, which copies do not
    reach, and what is three deviations nearer is looked at. That is generous on purpose: pixels decide.

    Args:
        features_NF: of length 1.
    """
    nearest_NK, cosine_NK = _neighbours(features_NF, min(NEIGHBOURS, len(features_NF) - 1))
    distance_NK = np.sqrt(np.maximum(2 - 2 * cosine_NK, 1e-6))
    usual_N = np.log(distance_NK[:, -1])
    middle = np.median(usual_N)
    threshold = middle - _SPREAD * (np.quantile(usual_N, 0.84) - middle)
    rows, places = np.nonzero(np.log(distance_NK) <= threshold)
    pairs_P2 = np.sort(np.column_stack([rows, nearest_NK[rows, places]]), axis=1)
    pairs_P2, once = np.unique(pairs_P2, axis=0, return_index=True)
    return pairs_P2, cosine_NK[rows, places][once]


def _neighbours(features_NF: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other images of each [N, K], and their cosines, the nearest first; a block of images at a time."""
    total = len(features_NF)
    nearest_NK, cosine_NK = np.empty((total, count), dtype=np.int64), np.empty((total, count), dtype=np.float32)
    starts = range(0, total, _BLOCK)
    for start in progress(starts, len(starts), "comparing features, by block"):
        rows = np.arange(start, min(start + _BLOCK, total))
        cosine_BN = features_NF[rows] @ features_NF.T
        cosine_BN[np.arange(len(rows)), rows] = -np.inf
        found_BK = np.argpartition(-cosine_BN, count - 1, axis=1)[:, :count]
        values_BK = np.take_along_axis(cosine_BN, found_BK, axis=1)
        order_BK = np.argsort(-values_BK, axis=1, kind="stable")
        nearest_NK[rows] = np.take_along_axis(found_BK, order_BK, axis=1)
        cosine_NK[rows] = np.take_along_axis(values_BK, order_BK, axis=1)
    return nearest_NK, cosine_NK


def _correlations(uris: Sequence[str], rows: Sequence[tuple[int, int]], reading: Reading) -> list[float | None]:
    """See `correlation`, of each pair; every image is opened once."""
    wanted = sorted({row for pair in rows for row in pair})
    with ThreadPoolExecutor() as pool:
        opened = pool.map(lambda row: _small(uris[row], reading), wanted)
        small = dict(zip(wanted, progress(opened, len(wanted), "comparing pictures"), strict=True))
    found: list[float | None] = []
    for first, second in rows:
        one, other = small[first], small[second]
        found.append(None if one is None or other is None else correlation(one, other))
    return found


def _small(uri: str, reading: Reading) -> Image.Image | None:
    try:
        return small_copy(open_image(uri, reading))
    except UnreadableImageError:
        return None


def small_copy(image: Image.Image) -> Image.Image:
    """The picture's brightness as `correlation` compares it, 40 x 40."""
    return image.convert("L").resize((_KEPT, _KEPT), Image.Resampling.BOX)


def correlation(first: Image.Image, second: Image.Image) -> float:
    """Correlation of the brightness of two small copies, where one is the other, or fits a window of it, best.

    The mean and the contrast of a picture do not count, so that another exposure is the same picture.
    """
    return max(float((_windows(a) @ _normal(b)).max()) for a, b in ((first, second), (second, first)))


def _windows(small: Image.Image) -> np.ndarray:
    """Normalised pixels of the whole and of its crops [W, S * S]."""
    return np.stack([_normal(small, window) for window in _WINDOWS])


def _normal(small: Image.Image, window: tuple[int, int, int, int] = (0, 0, _KEPT, _KEPT)) -> np.ndarray:
    pixels = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=window), dtype=np.float32).ravel()
    pixels = pixels - pixels.mean()
    return pixels / (np.linalg.norm(pixels) + 1e-6)


def write_near_duplicates(path: Path, found: Sequence[NearDuplicate]) -> None:
    """Write ``near_duplicates.csv``, a row for each pair."""
    write_csv(path, COLUMNS, map(_row, found))


def _row(pair: NearDuplicate) -> tuple[Value, ...]:
    (first, second), (first_split, second_split) = pair.image_ids, pair.splits
    return first, first_split, second, second_split, pair.similarity, pair.correlation, *pair.uris
