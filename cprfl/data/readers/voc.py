"""Pascal VOC: one XML file an image, as VOC, CVAT, Roboflow and LabelImg lay them out."""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Literal
from xml.etree import ElementTree

from pydantic import field_validator

from cprfl.data.readers.annotations import Annotations, Row, SplitName, split_name
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.classes import clean_name
from cprfl.data.readers.discovery import Proposal, Tree, common_folder, split_of_path
from cprfl.data.readers.layout import folder_of_images, in_order
from cprfl.data.readers.voc_files import (
    VocFile,
    VocSplit,
    annotation_files,
    find_images,
    image_folder,
    read_annotation,
    without_annotation,
)
from cprfl.errors import DatasetError

_LOOKED_AT = 10  # files of a folder, for whether they are VOC's
VOC_CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


class VocDataset(DatasetConfig):
    """Image-level labels of VOC's objects (not of their parts); ``difficult`` tells whether objects marked so count.

    LabelMe 3 writes such files too; its objects that are marked as deleted do not count.

    ``classes`` are VOC's twenty unless they are given; null takes those that the files name.
    """

    name: Literal["voc"] = "voc"
    splits: dict[SplitName, VocSplit]
    classes: list[str] | None = VOC_CLASSES
    difficult: bool = True

    @field_validator("classes")
    @classmethod
    def _an_empty_list_is_none(cls, classes: list[str] | None) -> list[str] | None:
        return classes or None

    def read_annotations(self) -> Annotations:
        """The configured class names, and the rows of each image set or folder."""
        splits: dict[SplitName, list[Row]] = {}
        notes: list[str] = []
        for split, source in self.splits.items():
            folder = image_folder(source)
            splits[split], more = self._rows(annotation_files(source), folder, source.root)
            notes += more
            if not source.image_set:
                notes += without_annotation(folder, {row.uri for row in splits[split]})
        if self.classes is not None and self.other_classes == "error":
            _check_names(self.classes, [row for rows in splits.values() for row in rows], self.ignore_case)
        return Annotations(self.classes or [], splits, notes)

    def _rows(self, files: Sequence[VocFile], folder: str, root: str) -> tuple[list[Row], list[str]]:
        """Rows, and how their images were found.

        Ids are the images' names without suffix behind the root's name: VOC2007 and VOC2012 have numbers that may meet.
        """
        parsed = [read_annotation(file) for file in files]
        filenames = [(element.findtext("filename") or "").strip() for element in parsed]
        places, notes = find_images([file.name for file in files], filenames, folder)
        year = root.rstrip("/").rpartition("/")[2]
        rows = [
            Row(_published_id(year, path), uri, self._labels(file.path, element), file.where)
            for file, element, (path, uri) in zip(files, parsed, places, strict=True)
        ]
        return rows, notes

    def _labels(self, path: str, element: ElementTree.Element) -> list[str]:
        names = []
        for position, marked in enumerate(element.findall("object")):
            if (marked.findtext("deleted") or "0").strip() == "1":
                continue
            name = (marked.findtext("name") or "").strip()
            if not name:
                raise DatasetError(f"{path}, object {position}: no <name>; name it, or remove the object")
            if self.difficult or (marked.findtext("difficult") or "0").strip() != "1":
                names.append(name)
        return names


def _check_names(classes: Sequence[str], rows: Sequence[Row], ignore_case: bool) -> None:
    """Refuse names that are no classes, saying which the files have."""

    def folded(name: str) -> str:
        return clean_name(name).casefold() if ignore_case else clean_name(name)

    known = {folded(name) for name in classes}
    for row in rows:
        for name in row.labels:
            if folded(name) in known:
                continue
            close = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}? The" if close else "the"
            found = sorted({clean_name(name) for row in rows for name in row.labels})
            raise DatasetError(
                f"{row.where}: unknown class {name!r}; {hint} files name {', '.join(map(repr, found))}: set "
                "dataset.classes to these (null takes them as they are), or dataset.other_classes: ignore",
                classes=None,
            )


def _published_id(year: str, path: str) -> str:
    """``VOC2012/2008_000001`` for the published sets, whose years have the same numbers; else the image's path."""
    return f"{year}/{PurePosixPath(path).with_suffix('')}" if year.startswith("VOC20") else path


def discover(tree: Tree) -> list[Proposal]:
    """Ways to read the XML files of a folder: by image sets where there are some, else by the folders they are in."""
    files: dict[str, list[str]] = {}
    for file in tree.annotations(".xml"):
        files.setdefault(str(PurePosixPath(file).parent), []).append(file)
    files = {folder: of for folder, of in files.items() if any(_may_be_voc(tree, file) for file in of[:_LOOKED_AT])}
    proposals = [_by_image_sets(tree, folder) for folder in files if _image_sets(tree, folder)]
    return proposals or ([_by_folders(tree, files)] if files else [])


def _may_be_voc(tree: Tree, file: str) -> bool:
    return re.search(rb"<annotation[\s>/]", tree.head(file)) is not None


def _image_sets(tree: Tree, annotations: str) -> dict[str, str]:
    """Image sets beside a folder of annotations, by name, without those of one class (``cat_train``)."""
    folder = str(PurePosixPath(annotations).parent / "ImageSets" / "Main")
    found = {
        PurePosixPath(file).stem: file
        for file in tree.files
        if str(PurePosixPath(file).parent) == folder and file.endswith(".txt") and tree.head(file).strip()
    }
    return {name: file for name, file in found.items() if name.rpartition("_")[2] not in found or "_" not in name}


def _by_image_sets(tree: Tree, annotations: str) -> Proposal:
    root = str(PurePosixPath(annotations).parent)
    sets = _image_sets(tree, annotations)
    named = {split: name for name in sorted(sets) if (split := split_name(name)) is not None}
    if "test" in sets and "trainval" in sets:  # as VOC2007 is used
        named = {"train": "trainval", "test": "test"}
    elif "train" not in named:
        named = {"train": next(iter(sets))}
    elif "train" in sets:
        named["train"] = "train"
    splits = in_order(named)
    listed = ", ".join(f"{split}: {name}" for split, name in splits.items())
    dataset = {"splits": {split: {"root": root, "image_set": name} for split, name in splits.items()}}
    return _proposal(dataset, root, f"Pascal VOC's XML with image sets in {root}; {listed}")


def _by_folders(tree: Tree, files: Mapping[str, Sequence[str]]) -> Proposal:
    by_split: dict[SplitName | None, list[str]] = {}
    for folder, of in files.items():
        by_split.setdefault(split_of_path(f"{folder}/x"), []).extend(of)
    if None in by_split or "train" not in by_split:
        by_split = {"train": [file for of in files.values() for file in of]}
    splits = in_order({split: _source(tree, of) for split, of in by_split.items() if split is not None})
    listed = ", ".join(f"{split}: {len(of)} files" for split, of in by_split.items())
    return _proposal({"splits": splits}, "", f"Pascal VOC's XML without image sets; {listed}")


def _source(tree: Tree, files: Sequence[str]) -> dict[str, str]:
    annotations = common_folder(files)
    names = [str(PurePosixPath(file).relative_to(annotations).with_suffix("")) for file in files]
    images = folder_of_images(tree, names, files[0]) or annotations
    if images == annotations:
        return {"root": annotations}
    root = os.path.commonpath([f"/{annotations}", f"/{images}"])
    inner = {"annotations": annotations, "images": images}
    return {"root": root[1:] or "."} | {key: os.path.relpath(f"/{path}", root) for key, path in inner.items()}


def _proposal(dataset: Mapping[str, Any], root: str, found: str) -> Proposal:
    """With VOC's twenty classes for VOC itself, else with those that the files name."""
    official = PurePosixPath(root).name.startswith("VOC20")
    return Proposal({"name": "voc", **dataset, **({} if official else {"classes": None})}, found)
