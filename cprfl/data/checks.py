"""What can be known of a data set before any image is decoded: what is missing, what is twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import xxhash

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.images import BadImage
from cprfl.data.manifest import Manifest

MISSING = (-1,)  # the stamp of a file that is not there (`cprfl.data.storage.stamps`)
_LOOKED_AT = 200_000  # files, where one is looked for that is not where it should be
_TAIL = 4096  # bytes at the end of a file, which tell most images of one size apart


def missing_images(manifest: Manifest, stamps: Sequence[tuple[int, ...]]) -> list[BadImage]:
    """The images whose files are not there.

    Args:
        manifest: the images.
        stamps: size and time of each one's file, see `cprfl.data.images.image_stamps`.
    """
    listed = zip(manifest.image_ids, manifest.uris, stamps, strict=True)
    return [BadImage(image_id, uri, "file not found") for image_id, uri, stamp in listed if stamp == MISSING]


def where_it_may_be(uri: str, root: str) -> str:
    """A guess at what to change where no image is found: what is in the folder instead, and where the name is found.

    Args:
        uri: where one of the images should be.
        root: the folder to look in, the experiment's ``data_root``.
    """
    if is_remote(uri):
        return "check the bucket or address, and the folder of images"
    path = local_path(uri)
    found = next((file for file in _files(root) if file.name == path.name), None)
    found = found or next((file for file in _files(root) if file.stem == path.stem and path.stem), None)
    if found is not None:
        return f"there is {found}: set the folder of images (dataset.images, or `images` of each split) to meet it"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}; check data_root and the folder of images"
    inside = sorted(entry.name for entry in islice(os.scandir(path.parent), 1000))[:3]
    return f"the folder {path.parent} has {', '.join(inside) or 'no file'}; check how the annotations write the paths"


def same_content(manifest: Manifest, stamps: Sequence[tuple[int, ...]]) -> list[tuple[int, int]]:
    """Pairs of images in two splits whose local files have the same bytes: what is tested on was trained on.

    Only files of one size are opened, and read whole only where their ends agree too.

    Args:
        manifest: the images.
        stamps: size and time of each one's file.

    Returns:
        Rows of the manifest, the first of each content in the order of the splits, and one in another split.
    """
    sizes: dict[object, list[int]] = {}
    for row, (uri, stamp) in enumerate(zip(manifest.uris, stamps, strict=True)):
        if len(stamp) == 2 and stamp != MISSING and not is_remote(uri):
            sizes.setdefault(stamp[0], []).append(row)
    ends = _told_apart(manifest, sizes.values(), lambda path: _digest(path, _TAIL))
    return [
        (rows[0], row)
        for rows in _told_apart(manifest, ends, _digest)
        for row in rows[1:]
        if manifest.splits[row] != manifest.splits[rows[0]]
    ]


def _told_apart(manifest: Manifest, candidates: Iterable[Sequence[int]], key: Callable[[Path], str]) -> list[list[int]]:
    """Groups of rows with one key, of several splits, from groups that may be."""
    result: list[list[int]] = []
    for rows in candidates:
        if len({manifest.splits[row] for row in rows}) < 2:
            continue
        alike: dict[str, list[int]] = {}
        for row in rows:
            alike.setdefault(key(local_path(manifest.uris[row])), []).append(row)
        result += alike.values()
    return result


def _digest(path: Path, tail: int | None = None) -> str:
    with path.open("rb") as file:
        if tail is not None:
            file.seek(max(0, path.stat().st_size - tail))
        return xxhash.xxh3_128_hexdigest(file.read())


def _files(root: str) -> Iterator[Path]:
    """Files below a folder, as many as are worth looking at."""
    walked = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    return islice(walked, _LOOKED_AT)
