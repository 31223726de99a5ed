"""Where the images are that annotations name, however people write paths."""

from __future__ import annotations

import os
import os.path
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.storage import Folder, join
from cprfl.data.walking import walked

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff",
    ".jp2", ".avif", ".heic", ".ppm", ".pgm", ".jfif",
)  # fmt: skip
"""Suffixes of image files, in lower case."""

LONGEST_NAME = 255
"""Characters of a file's name, as filesystems have it."""

_DETOUR = re.compile(r"(^|/)(\.{0,2}/|\.{0,2}$)")


def is_file(uri: str) -> bool:
    """Whether there is a local file; never an error, whatever stands where a path should."""
    return os.path.isfile(local_path(uri))  # noqa: PTH113 (pathlib's raises for names that are too long)


def is_there(uri: str) -> bool:
    """Whether there is a local file or folder; never an error, as `is_file`."""
    return os.path.exists(local_path(uri))  # noqa: PTH110 (likewise)


def is_folder(uri: str) -> bool:
    """Whether there is a local folder; never an error, as `is_file`."""
    return os.path.isdir(local_path(uri))  # noqa: PTH112 (likewise)


class ImageFolder:
    """The folder that annotations name images in.

    A name is taken as it is written where there is such a file. Otherwise: with backslashes for slashes, in another
    Unicode form, in other letters' case, with the suffix that it lacks or another image suffix. Where *no* name leads
    anywhere, the files' names alone are looked for in the folder, then in those below it, if they are unique there.
    What is found in another way is counted in `notes`; a name that leads nowhere stays what it is.

    Args:
        folder: path or URI; remote ones are not listed, and their names are taken as they are.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._listings = _Listings()
        self._ways = Counter[str]()
        self._example: dict[str, str] = {}

    def find(self, names: Iterable[str]) -> list[tuple[str, str]]:
        """Id and URI of each image: its path below the folder, in Unicode's composed form, and where it is.

        An absolute path or a URI is its own id.
        """
        written = list(names)
        found = [self._find(name) for name in written]
        if written and not any(place for place in found):
            found = self._by_base_name(written)
        plain = [_plain(name) for name in written]
        places = [place or (name, join(self.folder, name)) for place, name in zip(found, plain, strict=True)]
        return [(unicodedata.normalize("NFC", image_id), uri) for image_id, uri in places]

    @property
    def notes(self) -> list[str]:
        """How images were found that are not where they are said to be, one line each."""
        return [f"{count} images found {way}, such as {self._example[way]}" for way, count in self._ways.items()]

    def _find(self, name: str) -> tuple[str, str] | None:
        uri = join(self.folder, name)
        if is_remote(uri):
            return name, uri
        if self._is_file(uri):
            return _plain(name), join(self.folder, _plain(name))
        slashed = _plain(name.replace("\\", "/"))
        way = [] if slashed == _plain(name) else ["with slashes for backslashes"]
        path = join(self.folder, slashed)
        if path == uri or not self._is_file(path):
            listing, base = self._listings.with_file(path)
            match = listing.like(base)
            if match is None:
                return None
            if unicodedata.normalize("NFC", match) != unicodedata.normalize("NFC", base):
                way.append(f"as {_difference(base, match)}")
            path = path[: len(path) - len(base)] + match
            slashed = slashed[: len(slashed) - len(base)] + match
        if way:
            self._note(" and ".join(way), name, path)
        return slashed, path

    def _by_base_name(self, names: list[str]) -> list[tuple[str, str] | None]:
        bases = [_plain(name.replace("\\", "/")).rpartition("/")[2] for name in names]
        if is_remote(self.folder) or len({*bases}) < len({*names}):
            return [None] * len(names)
        folder = str(local_path(self.folder)) or "."
        listing = self._listings[folder]
        matches = [listing.like(base) for base in bases]
        if not any(matches):
            below = _below(folder)
            listing = _Listing(below)
            matches = [None if match is None else below[match] for match in map(listing.like, bases)]
        for name, match in zip(names, matches, strict=True):
            if match is not None:
                self._note("by the file's name alone", name, join(self.folder, match))
        return [None if match is None else (match, join(self.folder, match)) for match in matches]

    def _is_file(self, path: str) -> bool:
        listing, base = self._listings.with_file(path)
        return listing.has(base)

    def _note(self, way: str, name: str, path: str) -> None:
        self._ways[way] += 1
        self._example.setdefault(way, f"{name!r}: {path}")


class LocalFiles:
    """Local files by their paths, the name in any Unicode form, and with its suffix in any letters' case."""

    def __init__(self) -> None:
        self._listings = _Listings()

    def find(self, path: str) -> str | None:
        """The path of the file, as its folder has it; none where there is none."""
        listing, base = self._listings.with_file(path)
        if listing.has(base):
            return path
        match = listing.like(base) or ""
        return f"{path[: len(path) - len(base)]}{match}" if _but_for_the_suffix(match, base) else None


class _Listing:
    """Names of files, and by how they would be written otherwise."""

    def __init__(self, names: Iterable[str]) -> None:
        self._files = {*names}
        self._alike: dict[str, list[str]] | None = None

    def has(self, base: str) -> bool:
        """Whether there is a file of exactly this name."""
        return base in self._files

    def like(self, base: str) -> str | None:
        """The one file whose name differs in Unicode form, in case, in the suffix that it has, in this order."""
        if not self._files:
            return None
        if self._alike is None:
            self._alike = {}
            for name in sorted(self._files):
                stem, suffix = _parts(_folded(name))
                keys = {unicodedata.normalize("NFC", name), f"case:{_folded(name)}"}
                if suffix in SUFFIXES:
                    keys.add(f"stem:{stem}")
                for key in keys:
                    self._alike.setdefault(key, []).append(name)
        folded = _folded(base)
        stem, suffix = _parts(folded)
        swapped = [f"stem:{stem}"] if suffix in SUFFIXES else []
        for key in (unicodedata.normalize("NFC", base), f"case:{folded}", f"stem:{folded}", *swapped):
            matches = self._alike.get(key, [])
            if len(matches) == 1:
                return matches[0]
        return None


class _Listings(dict[str, _Listing]):
    """Of local folders, each listed once."""

    def __missing__(self, folder: str) -> _Listing:
        listing = self[folder] = _Listing(_names_in(folder))
        return listing

    def with_file(self, path: str) -> tuple[_Listing, str]:
        """The listing of the folder that a file is in, and the file's name."""
        plain = path.removeprefix("file://")
        folder, _, base = plain.rpartition("/")
        return self[folder or ("/" if plain.startswith("/") else ".")], base


def _names_in(folder: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if not entry.is_dir()]
    except (OSError, ValueError):  # no such folder, or no name of one
        return []


def names_below(folder: str) -> list[str]:
    """Paths below a folder of the files in it; those in its own folders too where it is a local one; sorted."""
    return sorted(Folder(folder).files() if is_remote(folder) else walked(local_path(folder)))


def _below(folder: str) -> dict[str, str]:
    """Paths of the files below a folder by their names, of those whose name no other has."""
    paths: dict[str, list[str]] = {}
    for path in walked(folder):
        paths.setdefault(path.rpartition("/")[2], []).append(path)
    return {name: found[0] for name, found in paths.items() if len(found) == 1}


def _plain(name: str) -> str:
    """A relative path without detours (``./a``, ``a//b``); any other name as it is."""
    if "://" in name or name.startswith("/"):
        return name
    return os.path.normpath(name) if _DETOUR.search(name) else name  # which takes a while, a million times


def _parts(name: str) -> tuple[str, str]:
    """Stem and suffix of a file's name, as pathlib has them, in a tenth of the time."""
    stem, _, suffix = name.rpartition(".")
    return (stem, f".{suffix}") if stem and suffix else (name, "")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _but_for_the_suffix(one: str, other: str) -> bool:
    """Whether two names are one, their suffixes in any letters' case."""
    (stem, suffix), (written, wanted) = (_parts(unicodedata.normalize("NFC", name)) for name in (one, other))
    return stem == written and suffix.casefold() == wanted.casefold()


def _difference(written: str, found: str) -> str:
    if _folded(written) == _folded(found):
        return "other letters' case"
    return f"{Path(found).suffix} files"
