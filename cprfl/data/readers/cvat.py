"""CVAT's own XML, "CVAT for images 1.1"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal
from xml.etree import ElementTree

from cprfl.data.filesystems import is_remote, local_path
from cprfl.data.readers.annotations import Annotations, Row, SplitName, split_name
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.layout import folder_of_images, in_order, split_choices
from cprfl.data.readers.locate import ImageFolder, is_folder
from cprfl.data.readers.text import STRUCTURED_BYTES, read_file
from cprfl.data.readers.xml_file import parse_xml
from cprfl.data.storage import DataPath, join, parent
from cprfl.errors import DatasetError


class CvatDataset(DatasetConfig):
    """Image-level labels of tags and of shapes of every kind; an image without any is an all-negative row.

    A file may have several subsets: where they are called after splits (``Train``, ``validation``), each is that
    split, whichever split the file is given for.

    Attributes:
        splits: the XML file of each split; one file may be that of several, if its subsets tell them apart.
        images: folder of the images; else ``images`` beside the XML file, or the folder that this is in.
    """

    name: Literal["cvat"] = "cvat"
    splits: dict[SplitName, DataPath]
    images: DataPath | None = None

    def read_annotations(self) -> Annotations:
        """The labels that the files list, and the rows of each split in the files' order."""
        class_names: dict[str, None] = {}
        rows: dict[SplitName, list[Row]] = {split: [] for split in self.splits}
        notes: list[str] = []
        for path in dict.fromkeys(self.splits.values()):
            root = _root(path)
            images = _images(path, root)
            class_names |= dict.fromkeys(_label_names(root))
            given = [split for split, other in self.splits.items() if other == path]
            split_of, more = _splits(path, images, given)
            folder = ImageFolder(_image_folder(path) if self.images is None else self.images)
            places = folder.find(_image_names(images, folder.folder))
            for image, (image_id, uri) in zip(images, places, strict=True):
                where = f"{path}, image {image.get('name')!r}"
                split = split_of[image.get("subset", "")]
                rows.setdefault(split, []).append(Row(image_id, uri, _labels(image, where), where))
            notes += [*more, *folder.notes]
        return Annotations(list(class_names), rows, notes)


def _images(path: str, root: ElementTree.Element) -> list[ElementTree.Element]:
    """The elements of images, each with a name."""
    if root.find("track") is not None:
        raise DatasetError(f'{path}: tracks of a video ("CVAT for video"); export it as "CVAT for images 1.1"')
    images = root.findall("image")
    if not images:
        raise DatasetError(f'{path}: no <image>; export the annotations as "CVAT for images 1.1"')
    for position, image in enumerate(images):
        if not image.get("name", "").strip():
            raise DatasetError(f"{path}, image {image.get('id', position)}: no name; give it that of its file")
    return images


def _label_names(root: ElementTree.Element) -> list[str]:
    """Names of the labels that the task lists, without those of skeletons' points."""
    labels = [label for label in root.iterfind("meta//labels/label") if label.find("parent") is None]
    return [name for label in labels if (name := clean_name(label.findtext("name") or ""))]


def _labels(image: ElementTree.Element, where: str) -> list[str]:
    names = []
    for position, marked in enumerate(image):
        name = (marked.get("label") or "").strip()
        if not name:
            raise DatasetError(f"{where}, <{marked.tag}> {position}: no label; label it, or remove it")
        if marked.get("outside") != "1":
            names.append(name)
    return names


def _splits(
    path: str, images: Sequence[ElementTree.Element], given: Sequence[SplitName]
) -> tuple[dict[str, SplitName], list[str]]:
    """The split of each subset, and how it was decided where there was something to decide."""
    counts = Counter(image.get("subset", "") for image in images)
    listed = ", ".join(f"{subset!r} ({count} images)" for subset, count in counts.items())
    meant = {subset: split for subset in counts if (split := split_name(subset)) is not None}
    if len(counts) > 1 and len(meant) == len(counts):
        left, wanted = {*meant.values()}.difference(given), {*given}.difference(meant.values())
        if len(left) == len(wanted) == 1:  # the file is also that of the tests, say, and has a validation subset
            [instead] = wanted
            meant = {subset: instead if split in left else split for subset, split in meant.items()}
        return meant, [f"{path}: its subsets are splits: {listed}"]
    if len(counts) > 1 and meant:
        raise DatasetError(
            f"{path}: some of its subsets are no splits: {listed}; call each Train, Validation or Test, or export them "
            "apart"
        )
    if len(given) > 1:
        raise DatasetError(
            f"{path}: the file of the splits {', '.join(given)}, which its subsets do not tell apart: {listed}; call "
            "them Train, Validation and Test, or give each split a file of its own"
        )
    notes = [f"{path}: its subsets are no splits, all are {given[0]}: {listed}"] if len(counts) > 1 else []
    return dict.fromkeys(counts, given[0]), notes


def _image_folder(path: str) -> str:
    folder = parent(path)
    beside = join(folder, "images")
    return beside if not is_remote(path) and is_folder(beside) else folder


def _image_names(images: Sequence[ElementTree.Element], folder: str) -> list[str]:
    """Names of the images' files: in a folder of their subset, if there is one."""
    names = [image.get("name", "") for image in images]
    if is_remote(folder) or not is_folder(folder):
        return names
    inner = {entry.name.casefold(): entry.name for entry in local_path(folder).iterdir() if entry.is_dir()}
    subsets = [inner.get(image.get("subset", "").casefold()) for image in images]
    return [
        name if subset is None or name.startswith(f"{subset}/") else f"{subset}/{name}"
        for name, subset in zip(names, subsets, strict=True)
    ]


def _root(path: str) -> ElementTree.Element:
    what = "annotations of CVAT"
    return parse_xml(read_file(path, what, STRUCTURED_BYTES), path, what, "annotations")


def discover(tree: Tree) -> list[Proposal]:
    """Ways to read the XML files of a folder that list images."""
    found = {file: images for file in tree.annotations(".xml") if (images := _parsed(tree, file))}
    return [_proposal(tree, files, found) for files in split_choices(found)]


def _parsed(tree: Tree, file: str) -> list[ElementTree.Element]:
    if not re.search(rb"<annotations[\s>]", tree.head(file)):
        return []
    try:
        path = tree.path(file)
        return _images(path, _root(path))
    except DatasetError:
        return []


def _proposal(
    tree: Tree, files: Mapping[SplitName, str], found: Mapping[str, Sequence[ElementTree.Element]]
) -> Proposal:
    splits = in_order(files)
    if list(splits) == ["train"]:
        images = found[splits["train"]]
        subsets = {split_name(image.get("subset", "")) for image in images}
        if len(subsets) > 1 and None not in subsets:
            splits = in_order({split: splits["train"] for split in subsets if split is not None})
    folders = set()
    for file in splits.values():
        names = [f"{image.get('subset', '.')}/{image.get('name')}" for image in found[file]]
        folders.add(folder_of_images(tree, names, file))
    listed = ", ".join(f"{split}: {file} ({len(found[file])} images)" for split, file in splits.items())
    dataset = {"name": "cvat", "splits": splits}
    folder = next(iter(folders))
    if len(folders) == 1 and folder is not None:
        dataset["images"] = folder
    return Proposal(dataset, f'CVAT\'s XML, "CVAT for images 1.1"; {listed}')
