"""What is in an uncompressed tar file, and where: its headers are read, and what is asked for."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from cprfl.data.filesystems import is_remote, named
from cprfl.data.opened import open_file
from cprfl.errors import DatasetError

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
_BLOCK = 512
_MOST_BYTES = 2**24  # of the labels of one image
_REMOTE_BYTES = 2**23  # of a request
_LOOKED_AT = 2**16  # bytes behind the end, for whether there is another archive


@dataclass(frozen=True)
class Member:
    """A file in a tar file.

    Attributes:
        name: its path in the archive.
        offset: of its first byte.
        size: in bytes.
        content: its bytes, where they were asked for.
    """

    name: str
    offset: int
    size: int
    content: bytes | None


def tar_members(path: str, wanted: Callable[[str], bool]) -> list[Member]:
    """The files in a tar file, in its order.

    A local file is read header by header; a remote one whole, in one stream, for a request a header would take longer.

    Args:
        path: path or URI.
        wanted: which files' bytes to read, by name.

    Raises:
        DatasetError: where it is missing, compressed, damaged or cut off, or has other archives behind it.
    """
    try:
        with named(path):
            with open_file(path) as start:  # which refuses pipes
                _refuse_compressed(path, start.read_at(8, 0))
            mode: Literal["r|", "r:"] = "r|" if is_remote(path) else "r:"
            size = _REMOTE_BYTES if is_remote(path) else 2**20
            with open_file(path) as file, tarfile.open(fileobj=file, mode=mode, bufsize=size) as tar:
                members = list(_read(path, tar, wanted))
                end = tar.offset
            with open_file(path) as file:
                _refuse_more(path, end, file.size(), file.read_at(_LOOKED_AT, end))
    except FileNotFoundError:
        raise DatasetError(f"{path}: tar file not found; check the path and data_root") from None
    except tarfile.TarError as error:
        raise DatasetError(f"{path}: no tar file, or damaged or cut off: {error}; write or download it again") from None
    return members


def _read(path: str, tar: tarfile.TarFile, wanted: Callable[[str], bool]) -> Iterator[Member]:
    places: dict[str, tuple[int, int]] = {}
    for info in tar:
        if not info.isfile() and not info.islnk() and not info.issym():
            continue
        if info.issym() or info.sparse is not None:
            kind = "a symbolic link" if info.issym() else "a sparse file"
            raise DatasetError(
                f"{path}: {info.name} is {kind}, not a file; write the archive anew with tar --dereference"
            )
        if not info.name.isprintable() and re.search("[\ud800-\udfff]", info.name):  # bytes that do not decode
            raise DatasetError(f"{path}: the name {info.name!a} is not UTF-8; rename the file and write it anew")
        if info.islnk():  # the same file a second time
            if info.linkname not in places:
                raise DatasetError(f"{path}: {info.name} is a link to {info.linkname}, which is not there")
            places[info.name] = places[info.linkname]
        else:
            places[info.name] = info.offset_data, info.size
        content = None
        if wanted(info.name):
            if info.size > _MOST_BYTES:
                raise DatasetError(
                    f"{path}: {info.name} should say what labels an image has, and holds {info.size:,} bytes; name "
                    "the labels with dataset.labels"
                )
            extracted = tar.extractfile(info)
            assert extracted is not None
            content = extracted.read()
        yield Member(info.name, *places[info.name], content)


def _refuse_compressed(path: str, start: bytes) -> None:
    kind = next((kind for mark, kind in _COMPRESSED.items() if start.startswith(mark)), None)
    if kind is not None:
        raise DatasetError(
            f"{path}: compressed ({kind}), so that no image can be read without all before it; unpack it to a plain "
            ".tar (images are compressed already)"
        )


def _refuse_more(path: str, end: int, size: int, behind: bytes) -> None:
    """Refuse what the end of the archive shows: that it has none, or is not the end of the file."""
    if size < end + _BLOCK:
        raise DatasetError(f"{path}: cut off: it lacks the empty block at its end; write or download it again")
    if any(behind):
        raise DatasetError(
            f"{path}: there is more behind the end of the archive (byte {end}); archives are joined with "
            "tar --concatenate, or listed one by one in dataset.splits"
        )
