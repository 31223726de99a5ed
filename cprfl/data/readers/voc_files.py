"""Where VOC's annotations and images are."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

from cprfl.config import Config
from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.readers.locate import SUFFIXES, ImageFolder, is_file, names_below
from cprfl.data.readers.text import STRUCTURED_BYTES, read_lines
from cprfl.data.readers.xml_file import parse_xml
from cprfl.data.storage import DataPath, Folder, join, parent, read_bytes
from cprfl.data.walking import walked
from cprfl.errors import DatasetError
from cprfl.words import counted

_ANNOTATIONS = ("Annotations", "annotations", "xmls", "xml")
_IMAGES = ("JPEGImages", "images", "Images", "imgs", "img")


class VocSplit(Config):
    """A folder of annotations, and which of them are the split.

    Attributes:
        root: the folder that has the others.
        image_set: name of a list in ``ImageSets/Main``; without it, every XML file is an image of the split.
        annotations: folder of the XML files, in ``root``; else that of a usual name (``Annotations``), or ``root``.
        images: folder of the images, in ``root``; else that of a usual name (``JPEGImages``), or ``root``.
    """

    root: DataPath
    image_set: str | None = None
    annotations: str | None = None
    images: str | None = None


@dataclass(frozen=True)
class VocFile:
    """An annotation.

    Attributes:
        name: its path below the folder of annotations, without suffix.
        path: where it is.
        listed: file and line that list it.
    """

    name: str
    path: str
    listed: str = ""

    @property
    def where(self) -> str:
        """Both, for messages."""
        return f"{self.listed}, {self.path}" if self.listed else self.path


def annotation_files(source: VocSplit) -> list[VocFile]:
    """The XML files of a split: those that its image set lists, or all.

    Raises:
        DatasetError: where there is no such list, or no XML file.
    """
    folder = _annotations(source)
    return _listed(source, folder) if source.image_set else _all_files(folder)


def image_folder(source: VocSplit) -> str:
    """The folder of a split's images."""
    return _folder(source.root, source.images, _IMAGES, _annotations(source))


def _annotations(source: VocSplit) -> str:
    return _folder(source.root, source.annotations, _ANNOTATIONS)


def _folder(root: str, given: str | None, usual: Sequence[str], beside: str | None = None) -> str:
    """A folder in ``root``: the given one, or the first usual one that there is, or the one with the annotations."""
    if given is not None:
        return join(root, given)
    if is_remote(root):
        return join(root, usual[0])
    found = next((name for name in usual if (local_path(root) / name).is_dir()), None)
    if found is not None:
        return join(root, found)
    return root if beside in (None, root) else join(root, usual[0])


def _listed(source: VocSplit, annotations: str) -> list[VocFile]:
    """The files of an image set."""
    listing = join(source.root, f"ImageSets/Main/{source.image_set}.txt")
    numbers, lines = zip(*read_lines(listing, "image set"), strict=True)
    names = [_without_suffix(name, annotations) for name in _without_flags(lines, listing, annotations)]
    return [
        VocFile(name, join(annotations, f"{name}.xml"), f"{listing}, line {number}")
        for name, number in zip(names, numbers, strict=True)
    ]


def _without_flags(lines: Sequence[str], listing: str, annotations: str) -> Sequence[str]:
    """The names in a list of one class, whose lines are ``name 1`` or ``name -1``; other lines as they are.

    Blanks may be part of a name too: what there are annotations for decides.
    """
    flagged = [re.fullmatch(r"(.*\S)\s+(?:-1|0|1)", line) for line in lines]
    names = [match[1] for match in flagged if match is not None]
    if len(names) < len(lines) or not all(_is_annotated(line, annotations) for line in lines):
        return names if len(names) == len(lines) else lines
    if all(_is_annotated(name, annotations) for name in names):
        raise DatasetError(
            f"{listing}, line 1: {lines[0]!r} may be the image of this name, or {names[0]!r} with a flag, for there "
            "are annotations of both; write the images' names with their suffix (.jpg)"
        )
    return lines


def _without_suffix(name: str, annotations: str) -> str:
    """A name without an image's suffix, unless that is part of the annotation's name."""
    suffix = PurePosixPath(name).suffix
    if suffix.lower() not in SUFFIXES or _is_annotated(name, annotations):
        return name
    return name.removesuffix(suffix)


def _is_annotated(name: str, annotations: str) -> bool:
    path = join(annotations, f"{name}.xml")
    if is_remote(path):
        return Folder(parent(path)).exists(path.rpartition("/")[2])
    return is_file(path)


def _all_files(annotations: str) -> list[VocFile]:
    """Every XML file of a folder; of those in it too where it is a local one."""
    names = [name for name in names_below(annotations) if name.lower().endswith(".xml")]
    if not names:
        raise DatasetError(
            f"{annotations}: no XML file there; set `annotations` to their folder, or `image_set` to a list of images"
        )
    return [VocFile(name[: -len(".xml")], join(annotations, name)) for name in names]


def read_annotation(file: VocFile) -> ElementTree.Element:
    """The element ``annotation``.

    Raises:
        DatasetError: where the file is missing or malformed.
    """
    try:
        content = read_bytes(file.path, STRUCTURED_BYTES)
    except FileNotFoundError:
        raise DatasetError(f"{file.path}: annotation not found, though {file.listed} lists it") from None
    return parse_xml(content, file.path, "annotation of VOC", "annotation")


def find_images(names: Sequence[str], filenames: Sequence[str], folder: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Path below the folder and URI of each annotation's image, and notes on how it was found.

    An image is called as its annotation; where there is none, as this says in its ``<filename>``.
    """
    images = ImageFolder(folder)
    places = images.find([_image_name(name, filename) for name, filename in zip(names, filenames, strict=True)])
    renamed = 0
    for number, (_, uri) in enumerate(places):
        if not _exists(uri) and (other := _by_filename(names[number], filenames[number], images)) is not None:
            places[number] = other
            renamed += 1
    notes = [f"{renamed} images found by the <filename> in their XML files, which have other names"]
    return places, [*images.notes, *(notes if renamed else [])]


def _image_name(name: str, filename: str) -> str:
    """The image's file: called as its annotation, with the suffix that this gives."""
    suffix = PurePosixPath(filename).suffix
    return f"{name}{suffix if suffix.lower() in SUFFIXES else '.jpg'}"


def _by_filename(name: str, filename: str, folder: ImageFolder) -> tuple[str, str] | None:
    """The image by its ``<filename>``, where there is such a file."""
    base = filename.replace("\\", "/").rpartition("/")[2]
    if not base:
        return None
    [place] = folder.find([join(str(PurePosixPath(name).parent), base)])
    return place if _exists(place[1]) else None


def _exists(uri: str) -> bool:
    """Whether there is such a file; nobody asks a remote storage for each."""
    return is_remote(uri) or is_file(uri)


def without_annotation(images: str, uris: Collection[str]) -> list[str]:
    """A note on images that no XML file is about."""
    if is_remote(images):
        return []
    others = [path for path in walked(local_path(images)) if PurePosixPath(path).suffix.lower() in SUFFIXES]
    count = sum(join(images, path) not in uris for path in others)
    return [f"{images}: left out without an XML file: {counted(count, 'image')}"] if count else []
