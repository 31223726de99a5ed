"""What can be known of a data set before any image is decoded: what is missing, what is twice."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import xxhash

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.images import BadImage, image_stamps
from cprfl.data.manifest import Manifest
from cprfl.data.walking import walked

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


def same_bytes(
    manifest: Manifest, stamps: Sequence[tuple[int, ...]], *, across_splits: bool = False
) -> list[list[int]]:
    """Groups of images whose local files have the same bytes.

    Only files of one size are opened, and read whole only where their ends agree too.

    Args:
        manifest: the images.
        stamps: size and time of each one's file.
        across_splits: only groups with images of several splits: what is tested on was trained on.

    Returns:
        Rows of the manifest, ascending in each group.
    """
    sizes = _of_each_size(manifest.uris, stamps)

    def told_apart(candidates: Iterable[Sequence[int]], tail: int | None) -> Iterator[list[int]]:
        for rows in candidates:
            found: dict[str, list[int]] = {}
            for row in rows:
                found.setdefault(_digest(local_path(manifest.uris[row]), tail), []).append(row)
            yield from filter(worth_it, found.values())

    def worth_it(rows: Sequence[int]) -> bool:
        return len({manifest.splits[row] for row in rows} if across_splits else rows) > 1

    return list(told_apart(told_apart(filter(worth_it, sizes.values()), _TAIL), None))


def copies_of(manifest: Manifest, uris: Sequence[str]) -> set[str]:
    """Those of the files whose bytes are those of an image of a data set, whatever they are called; local ones."""
    own, others = ([uri for uri in some if not is_remote(uri)] for some in (manifest.uris, uris))
    own_of_size, found = _of_each_size(own, image_stamps(own)), set[str]()
    for size, rows in _of_each_size(others, image_stamps(others)).items():
        digests = {_digest(local_path(own[row]), None) for row in own_of_size.get(size, [])}
        if digests:
            found |= {others[row] for row in rows if _digest(local_path(others[row]), None) in digests}
    return found


def _of_each_size(uris: Sequence[str], stamps: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Rows of the local files that are there, by their sizes in bytes."""
    sizes: dict[int, list[int]] = {}
    for row, (uri, stamp) in enumerate(zip(uris, stamps, strict=True)):
        if len(stamp) == 2 and not is_remote(uri):
            sizes.setdefault(stamp[0], []).append(row)
    return sizes


def _digest(path: Path, tail: int | None) -> str:
    with path.open("rb") as file:
        if tail is not None:
            file.seek(max(0, path.stat().st_size - tail))
        return xxhash.xxh3_128_hexdigest(file.read())


def _files(root: str) -> Iterator[Path]:
    """Files below a folder, as many as are worth looking at."""
    return (Path(root, path) for path in islice(walked(root), _LOOKED_AT))
