"""Images that are the same: files of the same bytes, and pictures that were scaled or compressed again.

imagehash computes such hashes too, one object an image; the small copies that `scan` keeps give all of them in one
product of arrays, and say of each pair of near hashes whether the pictures are indeed the same.

Shapes: N images, S x S the pixels of a small copy, K pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_BITS_APART = 7  # of 64, between the hashes of two copies of one picture
_BANDS = _BITS_APART + 1  # so two such hashes agree in one band at least
_LEVELS_APART = 10.0  # of 255, on the mean, between their small copies
_AT_A_TIME = 2**22  # comparisons


@dataclass(frozen=True)
class Alike:
    """Images that show the same picture.

    Attributes:
        rows: of the manifest, ascending.
        same_bytes: whether their files are the same; the picture is, scaled or compressed in another way, otherwise.
    """

    rows: tuple[int, ...]
    same_bytes: bool


def alike(num_images: int, same_bytes: Sequence[Sequence[int]], near: np.ndarray) -> list[Alike]:
    """Groups of images that are linked, directly or through others.

    Args:
        num_images: of the manifest.
        same_bytes: groups of rows, see `cprfl.data.checks.same_bytes`.
        near: pairs of rows [K, 2], see `near_pairs`.
    """
    links = [np.column_stack([np.full(len(rows) - 1, rows[0]), rows[1:]]) for rows in same_bytes]
    first, second = np.concatenate([near.reshape(-1, 2), *links]).astype(np.int64).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(num_images, num_images))
    _, part_N = connected_components(graph, directed=False)
    linked = np.unique(np.concatenate([first, second]))
    members: dict[int, list[int]] = {}
    for row in linked.tolist():
        members.setdefault(int(part_N[row]), []).append(row)
    whole = {tuple(sorted(rows)) for rows in same_bytes}
    return [Alike(tuple(rows), tuple(rows) in whole) for rows in sorted(members.values())]


def near_pairs(small_NSS3: np.ndarray) -> np.ndarray:
    """Positions of images that show the same picture, linked in pairs [K, 2].

    Hashes of 64 bits that differ in at most 7 agree in one of 8 bands of bits: only images that share a band are
    compared. Of images with one hash, all are compared with the first alone, so that a thousand copies of a picture
    are a thousand pairs.
    """
    hash_N = perceptual_hashes(small_NSS3)
    order = np.argsort(hash_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(hash_N[order]) != 0]) if len(order) else order
    first_N = np.empty_like(order)
    first_N[order] = np.repeat(order[starts], np.diff(np.r_[starts, len(order)]))
    same_N = _same_picture(small_NSS3, first_N, np.arange(len(order)))
    copies = np.flatnonzero(same_N & (first_N != np.arange(len(order))))
    found = [np.column_stack([first_N[copies], copies])]
    others = np.setdiff1d(np.arange(len(order)), copies)
    for first, second in _near_hashes(hash_N[others]):
        pairs = np.column_stack([others[first], others[second]])
        found.append(pairs[_same_picture(small_NSS3, *pairs.T)])
    return np.unique(np.concatenate(found), axis=0)


def perceptual_hashes(small_NSS3: np.ndarray) -> np.ndarray:
    """64 bits of each image, uint64 [N]: which of its lowest 8 x 8 frequencies are above their median."""
    grey_NSS = small_NSS3.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    low_NF = dctn(grey_NSS, axes=(1, 2))[:, :8, :8].reshape(-1, 64)
    low_NF[:, 0] = np.median(low_NF[:, 1:], axis=1)  # the mean brightness says nothing of the picture
    bits_NF = low_NF > np.median(low_NF, axis=1, keepdims=True)
    return np.packbits(bits_NF, axis=1).view(np.uint64).ravel()


def _near_hashes(hash_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of positions whose hashes are near, some several times."""
    edges = np.linspace(0, 64, _BANDS + 1).astype(np.uint64)
    for low, high in itertools.pairwise(edges):
        band_N = (hash_N >> low) & np.uint64(2 ** int(high - low) - 1)
        order = np.argsort(band_N, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band_N[order])) + 1):
            step = max(1, _AT_A_TIME // max(1, len(bucket)))
            for start in range(0, len(bucket) if len(bucket) > 1 else 0, step):
                part = bucket[start : start + step]
                apart = np.bitwise_count(hash_N[part, None] ^ hash_N[None, bucket])
                first, second = np.nonzero(apart <= _BITS_APART)
                first, second = part[first], bucket[second]
                yield first[first < second], second[first < second]


def _same_picture(small_NSS3: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the small copies of pairs of images agree, bool [K]."""
    result = np.zeros(len(first), dtype=bool)
    step = _AT_A_TIME // small_NSS3[:1].size if len(small_NSS3) else 1
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        apart = small_NSS3[first[part]].astype(np.int16) - small_NSS3[second[part]]
        result[part] = np.abs(apart).mean(axis=(1, 2, 3)) <= _LEVELS_APART
    return result
