"""A folder for each class: an image shows the classes in whose folders it lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import xxhash
from pydantic import Field

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.readers.annotations import Annotations, Row, SplitName, split_name
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.locate import SUFFIXES
from cprfl.data.readers.shards import files_below
from cprfl.data.storage import DataPath, join, read_bytes, stamps
from cprfl.errors import DatasetError
from cprfl.words import counted

_JOINTS = ("+", "&", ",", ";", "|", "__")
_WORDS_FOR_NONE = {"none", "no_class", "negative", "negatives", "background", "empty", "unlabeled", "unlabelled"}
_NO_CLASSES = {"images", "imgs", "image", "labels", "annotations", "masks", "jpegimages", "data"}
_OF_TOOLS = {"no_label", "_unlabeled"}  # what CVAT and FiftyOne call the folder of images without a label
_BESIDE = {
    "readme", "license", "licence", "thumbs", "desktop", "classes", "class_names", "synsets", "attribution", "citation",
}  # fmt: skip


class FoldersDataset(DatasetConfig):
    """One folder for each class; an image of several classes lies in the folder of each.

    Files of one name in several folders are one image where they are one file (links) or have the same bytes, and
    several where they have not. Their ids are their names below the class's folder if those tell all images of the
    split apart, otherwise ``<class>/<name>``. A folder with nothing in it is a class that no image shows.

    Attributes:
        splits: the folder of the classes' folders, for each split.
        nested: which of the folders that an image lies in is its class, where they are nested: the ``first``, the
            ``last``, their ``path`` (the class ``animal/dog``), or ``each``.
        no_class: the folder of images that show no class.
        separator: what joins the names of classes in a folder's name (``cat+dog``).
    """

    name: Literal["folders"] = "folders"
    splits: dict[SplitName, DataPath]
    nested: Literal["first", "last", "path", "each"] | None = None
    no_class: str | None = None
    separator: str | None = Field(default=None, min_length=1)

    def read_annotations(self) -> Annotations:
        """Names of the classes, sorted, and the images of each split."""
        found: dict[str, None] = {}
        rows: dict[SplitName, list[Row]] = {}
        notes: list[str] = []
        for split, root in self.splits.items():
            files, folders = files_below(root)
            copies = self._copies(root, [file for file in files if _is_image(file)])
            images = _images(copies)
            rows[split] = [self._row(image, image_id) for image, image_id in zip(images, _ids(images), strict=True)]
            filled = {parent for file in (*files, *folders) for parent in map(str, PurePosixPath(file).parents)}
            empty = [_placed(f"{folder}/x", self.nested)[0] for folder in folders if folder not in filled]
            found |= dict.fromkeys(label for labels in (*empty, *(copy.labels for copy in copies)) for label in labels)
            notes += _notes(root, files, images)
        if self.no_class is not None and self.no_class not in found:
            some = ", ".join(sorted(found)[:10])
            raise DatasetError(f"dataset.no_class: there is no folder {self.no_class!r} (folders: {some})")
        names = sorted({name for label in found for name in self._names(label)})
        return Annotations(names, rows, [*notes, *self._doubts(names)])

    def _copies(self, root: str, files: Sequence[str]) -> list[_Copy]:
        """The images, each file by itself."""
        if not files:
            raise DatasetError(f"{root}: no images below it; check the path and data_root")
        inner = [file.split("/")[-2] for file in files if file.count("/") > 1]
        if self.nested is None and inner and all(split_name(name) is not None for name in inner):
            raise DatasetError(
                f"{root}: the folders of splits ({inner[0]}) lie in those of the classes; put the classes' folders "
                "into those of the splits (train/dog, test/dog)"
            )
        for file in files:
            folder, _, base = file.rpartition("/")
            if not folder:
                raise DatasetError(
                    f"{root}: {base} lies in no folder of a class; images of one that show nothing are put into a "
                    "folder of their own, which dataset.no_class names"
                )
            if "/" in folder and self.nested is None:
                first, last = folder.split("/")[0], folder.rpartition("/")[2]
                raise DatasetError(
                    f"{root}: {file} lies in nested folders; set dataset.nested to say which is its class: first "
                    f"({first!r}), last ({last!r}), path ({folder!r}) or each, or set dataset.splits to the folder "
                    "that the classes' folders are in",
                    nested="last",
                )
        uris = [join(root, file) for file in files]
        sizes = [stamp[0] for stamp in stamps(uris)]
        return [
            _Copy(file, uri, size, *_placed(file, self.nested))
            for file, uri, size in zip(files, uris, sizes, strict=True)
        ]

    def _row(self, image: Sequence[_Copy], image_id: str) -> Row:
        labels = {label for copy in image for label in copy.labels}
        if self.no_class in labels and any(self.no_class not in copy.labels for copy in image):
            other = next(copy.uri for copy in image if self.no_class not in copy.labels)
            raise DatasetError(f"{image[0].uri}: it is in the folder {self.no_class!r} of no class, and is {other} too")
        shown = [] if self.no_class in labels else sorted({name for label in labels for name in self._names(label)})
        return Row(image_id, image[0].uri, shown, image[0].uri)

    def _names(self, label: str) -> list[str]:
        """The classes that a folder's name means."""
        if label == self.no_class:
            return []
        return [label] if self.separator is None else [part.strip() for part in label.split(self.separator)]

    def _doubts(self, names: Sequence[str]) -> list[str]:
        """What may be meant otherwise."""
        doubts = [
            f"the folder {name!r} is a class; dataset.no_class: {name} makes its images ones that show no class"
            for name in names
            if self.no_class is None and _may_be_none(name)
        ]
        parts = {joint: Counter(part for name in names for part in name.split(joint)) for joint in _JOINTS}
        for joint, counts in parts.items():
            joined = [name for name in names if joint in name and all(counts[part] > 1 for part in name.split(joint))]
            if joined:
                doubts.append(
                    f"the folder {joined[0]!r} is one class; dataset.separator: {joint!r} makes several of such names"
                )
        return doubts


@dataclass(frozen=True)
class _Copy:
    """A file, the folders' names that are its classes, and its name below them."""

    path: str
    uri: str
    size: int
    labels: tuple[str, ...]
    name: str

    def identity(self) -> object:
        """What is the same in all links to one file."""
        if is_remote(self.uri) or self.size < 0:
            return self.uri
        stat = local_path(self.uri).stat()
        return stat.st_dev, stat.st_ino

    def digest(self) -> str:
        """Of its bytes; of its path where it is a link to nothing."""
        return xxhash.xxh3_128_hexdigest(read_bytes(self.uri) if self.size >= 0 else self.uri.encode())


def _is_image(file: str) -> bool:
    return PurePosixPath(file).suffix.lower() in SUFFIXES


def _placed(file: str, nested: str | None) -> tuple[tuple[str, ...], str]:
    """The folders' names that are the classes of a file, and its name below them."""
    *folders, base = file.split("/")
    if nested == "first":
        return (folders[0],), "/".join([*folders[1:], base])
    if nested == "each":
        return tuple(folders), base
    return ("/".join(folders) if nested == "path" else folders[-1],), base


def _images(copies: Iterable[_Copy]) -> list[list[_Copy]]:
    """The files that are one image: links to one file, and files of one name with the same bytes."""
    files: dict[object, list[_Copy]] = {}
    for copy in copies:
        files.setdefault(copy.identity(), []).append(copy)
    alike: dict[tuple[str, int], list[list[_Copy]]] = {}
    for links in files.values():
        alike.setdefault((links[0].name, links[0].size), []).append(links)
    images: list[list[_Copy]] = []
    for several in alike.values():
        same: dict[str, list[_Copy]] = {}
        for links in several:
            same.setdefault(links[0].digest() if len(several) > 1 else "", []).extend(links)
        images += same.values()
    return images


def _ids(images: Sequence[Sequence[_Copy]]) -> list[str]:
    """The images' names, or, where two have one, all their paths."""
    names = [image[0].name for image in images]
    return names if len({*names}) == len(names) else [image[0].path for image in images]


def _notes(root: str, files: Sequence[str], images: Sequence[Sequence[_Copy]]) -> list[str]:
    """What was decided about the files of a split."""
    notes = []
    several = sum(len({copy.labels for copy in image}) > 1 for image in images)
    if several:
        notes.append(f"{root}: {several} images lie in the folders of several classes, and show all of them")
    others = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in files if not _is_image(file))
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        notes.append(f"{root}: passed over, for it is no image: {counted(others.total(), 'file')} ({kinds})")
    return notes


def discover(tree: Tree) -> list[Proposal]:
    """Folders of images alone, which are the classes; below folders that are splits, where there are such."""
    if tree.only is not None or not all(_is_image(file) or _lies_beside(file) for file in tree.files):
        return []
    images = [PurePosixPath(file).parts for file in tree.images]
    start: list[str] = []
    while images and all(len(parts) > 2 for parts in images) and len({parts[0] for parts in images}) == 1:
        start.append(images[0][0])
        images = [parts[1:] for parts in images]
    tops = {parts[0] for parts in images}
    splits = {split: "/".join([*start, top]) for top in tops if (split := split_name(top))}
    left_out = sorted(tops - {split.rpartition("/")[2] for split in splits.values()}) if len(splits) > 1 else []
    if splits and (len(splits) == len(tops) or ("train" in splits and left_out)):
        images = [parts[1:] for parts in images if parts[0] not in left_out]
    else:  # `train` beside `car` and `bus` is a class
        splits = {"train": "/".join(start) or "."}
    classes = {parts[0] for parts in images if len(parts) > 1}
    unlikely = any(name.casefold() in _NO_CLASSES for name in classes) or all(map(split_name, classes))
    if len(classes) < 2 or unlikely or "train" not in splits or not all(len(parts) > 1 for parts in images):
        return []
    none = sorted((name for name in classes if _may_be_none(name)), key=lambda name: (name not in _OF_TOOLS, name))
    certain = {"no_class": none[0]} if none and none[0] in _OF_TOOLS else {}
    return [
        Proposal(
            {"name": "folders", "splits": splits, **certain},
            f"a folder for each of {len(classes)} classes, {len(images)} files",
            ({"no_class": f"{none[0]}, if its images show none of the classes"} if none else {})
            | ({"splits": f"not read: {', '.join(left_out)}"} if left_out else {}),
        )
    ]


def _lies_beside(file: str) -> bool:
    """Whether a file is about others, such as README.roboflow.txt."""
    return PurePosixPath(file).name.casefold().partition(".")[0] in _BESIDE


def _may_be_none(name: str) -> bool:
    return name in _OF_TOOLS or name.strip("_- ").casefold().replace(" ", "_") in _WORDS_FOR_NONE
