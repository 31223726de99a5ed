"""Which images are meant by files, folders, patterns and lists of them, local or by URI."""

from __future__ import annotations

import fnmatch
import glob
from collections.abc import Sequence
from pathlib import Path

from pyarrow import fs

from cprfl.data import packed, storage, synthetic, web
from cprfl.data.filesystems import filesystem, is_remote, local_path, on
from cprfl.data.readers.discovery import Tree
from cprfl.data.readers.locate import SUFFIXES, ImageFolder
from cprfl.data.readers.tables.columns import find_image_column
from cprfl.data.readers.tables.dialect import is_image_name, read_table
from cprfl.errors import DatasetError

_TABLES = (".csv", ".tsv")
_PATTERN = "*?["


def find_images(sources: Sequence[str]) -> list[str]:
    """Paths and URIs of the images, each once, in the order of the sources, those of a folder sorted.

    A file that is named itself is taken whatever its name, and need not be there: reading it tells.

    Args:
        sources: image files, folders with all below them, patterns (``photos/**/*.jpg``) and CSV files with a column
            of images, whose relative paths start from the file's folder.

    Raises:
        DatasetError: where a folder, pattern or list has no image.
        StorageError: where a storage cannot be reached.
    """
    return list(dict.fromkeys(uri for source in sources for uri in _images_of(source)))


def _images_of(source: str) -> list[str]:
    if packed.is_packed(source) or source.startswith(f"{synthetic.SCHEME}:"):
        return [source]
    if source.lower().endswith(_TABLES):
        return _listed(source)
    if is_remote(source):
        return [source] if web.is_web(source) else _remote(source)
    path = local_path(source)
    if path.is_dir():
        return _below(path)
    if path.exists() or not any(sign in source for sign in _PATTERN):
        return [source]
    matching = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207  (pathlib takes no absolute pattern)
    found = [name for name in matching if Path(name).is_file()]
    return _only_images(source, found, f"{source}: no file matches this pattern")


def _below(folder: Path) -> list[str]:
    try:
        files = [str(folder / file) for file in Tree.of(folder).files]
    except DatasetError as error:  # an empty folder, for which others have another mend
        return _only_images(str(folder), [], str(error))
    return _only_images(str(folder), files, str(folder))


def _remote(uri: str) -> list[str]:
    """Images of a bucket: below a folder, by a pattern of names in one folder, or one by its URI."""
    place, _, last = uri.rpartition("/")
    is_pattern = any(sign in last for sign in _PATTERN)
    root = "/".join(uri.split("/")[:3])
    folder = place if is_pattern else uri.rstrip("/")
    if not is_pattern and on(folder, lambda opened, path: opened.get_file_info(path).type) != fs.FileType.Directory:
        return [uri]
    infos = on(folder, lambda opened, path: opened.get_file_info(fs.FileSelector(path, recursive=not is_pattern)))
    base = filesystem(root)[1]
    found = sorted(root + info.path.removeprefix(base) for info in infos if info.type == fs.FileType.File)
    if is_pattern:
        found = [file for file in found if fnmatch.fnmatchcase(file.rpartition("/")[2], last)]
    return _only_images(uri, found, f"{uri}: no file here")


def _only_images(source: str, files: Sequence[str], nothing: str) -> list[str]:
    if not files:
        raise DatasetError(f"{nothing}; name image files, a folder of them, or a CSV file with a column of them")
    images = [file for file in files if is_image_name(file)]
    if not images:
        raise DatasetError(
            f"{source}: none of its {len(files)} files is called like an image ({', '.join(SUFFIXES[:4])}, ...), such "
            f"as {files[0]}; name the files themselves if they are images"
        )
    return images


def _listed(path: str) -> list[str]:
    table, folder = read_table(path), storage.parent(path)
    try:
        column = find_image_column(table, folder)
    except DatasetError as error:
        raise DatasetError(f"{str(error).partition('; name')[0]}; call the column of the images 'image'") from None
    names = [name for name in table.columns[column] if name]
    if not names:
        raise DatasetError(f"{path}: its column {column!r} names no image; fill it")
    return [uri for _, uri in ImageFolder(folder).find(names)]
