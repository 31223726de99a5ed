"""COCO's instances JSON, as COCO, Roboflow, CVAT, FiftyOne and Label Studio write it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from cprfl.config import Config
from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.coco_file import CocoFile, Id, id_of, read_coco, required_id
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.layout import folder_of_images, in_order, split_choices
from cprfl.data.readers.locate import ImageFolder, LocalFiles
from cprfl.data.storage import DataPath, join
from cprfl.errors import DatasetError


class CocoSplit(Config):
    """One annotation file and the folder its ``file_name`` entries are relative to."""

    annotations: DataPath
    images: DataPath


class CocoDataset(DatasetConfig):
    """Image-level labels of object annotations; an image without any is kept as an all-negative row.

    Classes are the categories of the first split in ascending order of their ids, then those that only further splits
    have; splits are matched by the categories' names. A category that only groups others is no class. ``crowd`` tells
    whether crowd annotations count as labels, as they do in the published lists.
    """

    name: Literal["coco"] = "coco"
    splits: dict[SplitName, CocoSplit]
    crowd: bool = True

    def read_annotations(self) -> Annotations:
        """Class names, and the rows of each split in the file's order."""
        rows: dict[SplitName, list[Row]] = {}
        tables: list[list[_Category]] = []
        notes: list[str] = []
        for split, source in self.splits.items():
            file, folder = read_coco(source.annotations), ImageFolder(source.images)
            categories = _categories(source.annotations, file)
            labels = _labels(source.annotations, file, categories, self.crowd)
            rows[split] = _rows(source.annotations, file, labels, folder)
            tables.append(categories)
            notes += [*folder.notes, *_joined(source.annotations, categories)]
        names, groups = _class_names(tables)
        if groups:
            notes.append(f"categories that only group others are no classes: {', '.join(map(repr, groups))}")
        return Annotations(names, rows, notes)


@dataclass
class _Category:
    id: Id
    name: str
    parent: str
    used: bool = False


def _categories(path: str, file: CocoFile) -> list[_Category]:
    """Categories in ascending order of their ids."""
    found: dict[Id, _Category] = {}
    for position, entry in enumerate(file.categories):
        where = f"{path}, categories[{position}]"
        key = required_id(entry.id, "id", where)
        name, parent = _name(entry.name), _name(entry.supercategory)
        if not name:
            given = "" if entry.name is None else f", but {entry.name!r}"
            raise DatasetError(f"{where}: no `name`{given}; give category {key} a name")
        category = _Category(key, name, "" if parent == "none" else parent)
        if found.setdefault(key, category).name != category.name:
            raise DatasetError(
                f"{where}: category {key} is {found[key].name!r} and {category.name!r}; give each an id of its own"
            )
    return sorted(found.values(), key=lambda category: (isinstance(category.id, str), category.id))


def _name(value: object) -> str:
    """A name, which may be a number, as text; empty where there is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:  # NaN is none
        return ""
    return clean_name(value)


def _labels(
    path: str, file: CocoFile, categories: Sequence[_Category], with_crowds: bool
) -> dict[Id | None, dict[str, None]]:
    """Names of the categories of each image, by the image's id; marks the categories that annotations use."""
    labels: dict[Id | None, dict[str, None]] = {}
    for position, image in enumerate(file.images):
        key = required_id(image.id, "id", f"{path}, images[{position}]")
        if key in labels:
            raise DatasetError(f"{path}, image {key}: listed twice; remove one, or give each image an id of its own")
        labels[key] = {}
    by_id: dict[Id | None, _Category] = {category.id: category for category in categories}
    for position, annotation in enumerate(file.annotations):
        shown, category = labels.get(id_of(annotation.image_id)), by_id.get(id_of(annotation.category_id))
        if shown is None or category is None:
            own = id_of(annotation.id)
            where = f"{path}, annotations[{position}]" if own is None else f"{path}, annotation {own}"
            image_id = required_id(annotation.image_id, "image_id", where)
            if shown is None:
                raise DatasetError(f"{where}: image {image_id} is not in `images`; list it, or remove the annotation")
            category_id = required_id(annotation.category_id, "category_id", f"{where}, which must name what is shown")
            raise DatasetError(f"{where}: category {category_id} is not in `categories`; list it there")
        category.used = True
        if with_crowds or not (annotation.iscrowd is True or id_of(annotation.iscrowd) == 1):
            shown[category.name] = None
    return labels


def _rows(path: str, file: CocoFile, labels: Mapping[Id | None, Mapping[str, None]], folder: ImageFolder) -> list[Row]:
    names = []
    files = LocalFiles()
    for position, image in enumerate(file.images):
        name = image.file_name
        if name in (None, "") and isinstance(image.coco_url, str):
            name = _downloaded(image.coco_url, folder.folder, files)
        if not isinstance(name, str | int) or not str(name).strip():
            raise DatasetError(f"{path}, images[{position}]: no `file_name`, and no `coco_url` either")
        names.append(str(name))
    return [
        Row(image_id, uri, tuple(shown), f"{path}, image {key}")
        for (image_id, uri), (key, shown) in zip(folder.find(names), labels.items(), strict=True)
    ]


def _downloaded(url: str, folder: str, files: LocalFiles) -> str:
    """The end of an address that is a path below the folder (LVIS has addresses alone), or the address."""
    parts = url.partition("://")[2].split("/")[1:]
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return next((end for end in ends if not is_remote(folder) and files.find(join(folder, end)) is not None), url)


def _joined(path: str, categories: Sequence[_Category]) -> list[str]:
    """A note on categories of one name, which are one class.

    Raises:
        DatasetError: where their groups say that they are not.
    """
    notes = []
    by_name: dict[str, list[_Category]] = {}
    for category in categories:
        by_name.setdefault(category.name, []).append(category)
    for name, alike in by_name.items():
        used = [category for category in alike if category.used]
        groups = {category.parent for category in used if category.parent not in ("", name)}
        if len(groups) > 1:
            ids = ", ".join(str(category.id) for category in used)
            raise DatasetError(
                f"{path}: categories {ids} are all called {name!r}, in the supercategories "
                f"{', '.join(map(repr, sorted(groups)))}; name them apart"
            )
        if len(used) > 1:
            notes.append(f"{path}: {len(used)} categories are called {name!r}; they are one class")
    return notes


def _class_names(tables: Sequence[Sequence[_Category]]) -> tuple[list[str], list[str]]:
    """Names of the classes in order, and of the categories that only group others: no annotation uses them."""
    used = {category.name for table in tables for category in table if category.used}
    parents = {category.parent for table in tables for category in table if category.parent != category.name}
    names: dict[str, None] = {}
    groups: dict[str, None] = {}
    for table in tables:
        alike, children = Counter(c.name for c in table), Counter(c.parent for c in table)
        for category in table:
            name = category.name
            groups_others = name in parents or children[name] > (category.parent == name)
            if groups_others and not category.used and (alike[name] > 1 or name not in used):
                groups[name] = None
            else:
                names[name] = None
    return list(names), list(groups)


_MARKS = (b'"images"', b'"annotations"', b'"categories"', b'"file_name"', b'"image_id"', b'"category_id"')
_PROGRAMS = ("Roboflow", "Label Studio", "FiftyOne", "CVAT")


def discover(tree: Tree) -> list[Proposal]:
    """Ways to read the instances files of a folder: one where their names tell splits apart, else several."""
    found = {file: parsed for file in tree.annotations(".json") if (parsed := _parsed(tree, file)) is not None}
    instances = {file: parsed for file, parsed in found.items() if PurePosixPath(file).name.startswith("instances")}
    found = instances or found
    fullest = sorted(split_choices(found), key=lambda files: -sum(len(found[f].annotations) for f in files.values()))
    return [_proposal(tree, files, found) for files in fullest]


def _parsed(tree: Tree, file: str) -> CocoFile | None:
    try:
        return read_coco(tree.path(file)) if looks_like_coco(tree.head(file)) else None
    except DatasetError:  # which is said where nothing else is found
        return None


def looks_like_coco(head: bytes) -> bool:
    """Whether a file begins as COCO's do, misspelt or broken ones too."""
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and sum(mark in head for mark in _MARKS) >= 2


def _proposal(tree: Tree, files: Mapping[SplitName, str], found: Mapping[str, CocoFile]) -> Proposal:
    unsure: dict[str, str] = {}
    splits: dict[SplitName, dict[str, Any]] = {}
    for split, file in in_order(files).items():
        names = [str(image.file_name or image.coco_url) for image in found[file].images]
        folder = folder_of_images(tree, names, file)
        splits[split] = {"annotations": file, "images": folder or str(PurePosixPath(file).parent)}
        if folder is None and not any("://" in name for name in names):
            unsure["splits"] = f"none of the images of {file} is in the folder of images"
    head = tree.head(next(iter(files.values()))).lower()
    program = next((f" from {name}" for name in _PROGRAMS if name.lower().encode() in head), "")
    listed = ", ".join(f"{split}: {file} ({len(found[file].images)} images)" for split, file in files.items())
    return Proposal({"name": "coco", "splits": splits}, f"COCO's instances JSON{program}; {listed}", unsure)
