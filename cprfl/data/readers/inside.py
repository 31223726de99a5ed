"""Whether all images of a data set lie in its folder, wherever annotations say that they are."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable

from cprfl.data import packed
from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.readers.annotations import Row
from cprfl.errors import DatasetError


def check_inside(folder: str, rows: Iterable[Row]) -> None:
    """Refuse images outside of a folder: by an absolute path, ``../``, a link, or the URI of another place.

    Raises:
        DatasetError: naming the first.
    """
    inside = _place(folder).rstrip("/") + "/"
    for row in rows:
        place = _place(packed.container(row.uri) if packed.is_packed(row.uri) else row.uri)
        if not place.startswith(inside):
            raise DatasetError(
                f"{row.where}: image {row.image_id!r} is {place}, which is outside of {folder} (dataset.stay_inside)"
            )


def _place(uri: str) -> str:
    """Where a file is in the end."""
    if not is_remote(uri):
        return os.path.realpath(local_path(uri))
    scheme, _, path = uri.partition("://")
    return f"{scheme}://{posixpath.normpath(path)}"
