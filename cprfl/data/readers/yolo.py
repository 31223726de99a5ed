"""YOLO: a text file of boxes an image, as Ultralytics, darknet, Roboflow, CVAT and Label Studio write it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import Annotations, Row, SplitName, split_name
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree, common_folder, split_of_path
from cprfl.data.readers.layout import in_order
from cprfl.data.readers.locate import SUFFIXES, ImageFolder, LocalFiles, is_file, names_below
from cprfl.data.readers.tables.cells import number_in
from cprfl.data.readers.text import read_lines, read_text
from cprfl.data.readers.yolo_data import YoloData, ends, read_yolo_data
from cprfl.data.storage import DataPath, Folder, join, parent
from cprfl.errors import DatasetError
from cprfl.words import counted

_LINE = 4096  # bytes of the longest first line that is looked at


class YoloDataset(DatasetConfig):
    """Image-level labels of boxes and polygons; an image without any is an all-negative row.

    Attributes:
        data: ``data.yaml``, ``obj.data``, or a file with the names of the classes (``classes.txt``).
        splits: for each split, the name that ``data`` has for its images (``{train: train, test: val}``), or a folder
            or list of images, relative to ``data``. Else the splits that ``data`` names.
    """

    name: Literal["yolo"] = "yolo"
    data: DataPath
    splits: dict[SplitName, str] | None = None

    def read_annotations(self) -> Annotations:
        """The class names in the order of their indices, and the rows of each split."""
        data = read_yolo_data(self.data)
        rows: dict[SplitName, list[Row]] = {}
        notes: list[str] = []
        for split, paths in self._chosen(data).items():
            places, more = _images(data, paths)
            notes += more
            rows[split], more = _rows(data, split, places)
            notes += more
        alone = _without_image({row.where for listed in rows.values() for row in listed})
        if alone:
            notes.append(f"{counted(len(alone), 'label file')} without an image, such as {alone[0]}")
        return Annotations(list(data.names.values()), rows, notes)

    def _chosen(self, data: YoloData) -> dict[SplitName, Sequence[str]]:
        """The paths of each split's images."""
        if self.splits is not None:
            return {split: data.entries.get(word, [word]) for split, word in self.splits.items()}
        chosen = {split: paths for key, paths in data.entries.items() if (split := split_name(key)) is not None}
        if "train" not in chosen:
            raise DatasetError(f"{data.path}: names no `train` images; say where they are with dataset.splits")
        return chosen


def _images(data: YoloData, paths: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Id and URI of each image in folders or lists, and notes on how they were found."""
    places: list[tuple[str, str]] = []
    notes: list[str] = []
    for written in paths:
        place = data.locate(written)
        if place not in data.as_written(written):
            notes.append(f"{data.path}: {written!r} is taken to be {place}")
        found, more = _listed_images(data, place) if place.endswith(".txt") else (_images_below(place), [])
        if not found:
            raise DatasetError(f"{place}: no images there; correct {written!r} in {data.path}, or set dataset.splits")
        inside = next((folder for folder in data.folders if place.startswith(f"{folder}/")), "")
        # Of several folders, each may have an image of one name.
        prefix = "" if len(paths) == 1 or place.endswith(".txt") else place.removeprefix(f"{inside}/")
        places += [(join(prefix, image_id), uri) for image_id, uri in found]
        notes += more
    return places, notes


def _images_below(folder: str) -> list[tuple[str, str]]:
    return [
        (name, join(folder, name)) for name in names_below(folder) if PurePosixPath(name).suffix.lower() in SUFFIXES
    ]


def _listed_images(data: YoloData, listing: str) -> tuple[list[tuple[str, str]], list[str]]:
    """Images of a list, whose paths may begin in the list's folder, in the data's, or on another machine."""
    lines = [line.replace("\\", "/") for _, line in read_lines(listing, "list of images")]
    base, begins = next(_beginnings(lines[:20], [parent(listing), *data.folders]), (parent(listing), ""))
    images = ImageFolder(base)
    found = images.find([line.removeprefix(begins) for line in lines])
    begun = [f"{listing}: {begins!r}, with which its paths begin, is taken to be {base}"] if begins else []
    return found, [*begun, *images.notes]


def _beginnings(lines: Sequence[str], folders: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Folders that have a line's image, and how much of the line stands for the folder."""
    for line in lines:
        for end in ends(line):
            for folder in folders:
                if not is_remote(folder) and is_file(join(folder, end)):
                    yield folder, line[: len(line) - len(end)] if line.endswith(end) else ""


def _rows(data: YoloData, split: SplitName, places: Sequence[tuple[str, str]]) -> tuple[list[Row], list[str]]:
    """A row for each image, and a note on those without objects."""
    rows: list[Row] = []
    missing = empty = 0
    files = LocalFiles()
    for image_id, uri in places:
        path = _label_file(uri, files)
        labels = _labels(path, data) if path is not None else []
        missing += path is None
        empty += path is not None and not labels
        rows.append(Row(image_id, uri, labels, path or uri))
    if missing == len(rows):
        looked = " and ".join(_label_files(places[0][1]))
        raise DatasetError(
            f"{data.path}: no image of the split {split} has a label file (looked for {looked}); put the label files "
            "there, or leave the split out of dataset.splits"
        )
    without = [f"{count} {kind}" for count, kind in ((missing, "no label file"), (empty, "an empty one")) if count]
    return rows, [f"split {split}: images without objects: {' and '.join(without)}"] if without else []


def _without_image(used: Collection[str]) -> list[str]:
    """Label files with boxes, in the folders of those that are used, of which there is no image; of this machine."""
    alone: list[str] = []
    for folder in sorted({parent(path) for path in used if path.endswith(".txt") and not is_remote(path)}):
        before, labels, below = f"/{folder}/".rpartition("/labels/")
        places = [Path(folder), Path(f"{before}/images/{below}"[1:])] if labels else [Path(folder)]
        names = [path.name for place in places if place.is_dir() for path in place.iterdir()]
        images = {PurePosixPath(name).stem for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES}
        files = [path for path in sorted(places[0].glob("*.txt")) if path.stem not in images and str(path) not in used]
        alone += [str(path) for path in files if _has_boxes(path)]
    return alone


def _has_boxes(path: Path) -> bool:
    """Whether a text file begins as label files do, and as lists and notes do not."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        words = file.readline(_LINE).split()
    return len(words) >= 5 and all(number_in(word.decode(errors="replace")) is not None for word in words)


def _label_files(uri: str) -> list[str]:
    """Where the label file of an image may be: in ``labels`` where the image is in ``images``, or beside it."""
    beside = f"{uri.removesuffix(PurePosixPath(uri).suffix)}.txt"
    before, images, name = f"/{beside}".rpartition("/images/")
    return [f"{before}/labels/{name}"[1:], beside] if images else [beside]


def _label_file(uri: str, files: LocalFiles) -> str | None:
    """The label file of an image, if there is one; its name may be in another Unicode form than the image's."""
    found = (_existing(path) if is_remote(path) else files.find(path) for path in _label_files(uri))
    return next((path for path in found if path is not None), None)


def _existing(path: str) -> str | None:
    return path if Folder(parent(path)).exists(path.rpartition("/")[2]) else None


def _labels(path: str, data: YoloData) -> list[str]:
    """Names of the classes of a label file's lines."""
    names: dict[str, None] = {}
    for number, line in enumerate(read_text(path, "label file").splitlines(), 1):
        if line.strip():
            names[_class_of(line.split(), f"{path}, line {number}", data)] = None
    return list(names)


def _class_of(words: Sequence[str], where: str, data: YoloData) -> str:
    try:
        index, *numbers = map(float, words)
    except ValueError:
        index, numbers = -1.0, []
    if not index.is_integer() or len(numbers) < 4:
        raise DatasetError(
            f"{where}: expected `class x y w h` or `class x1 y1 x2 y2 ...`, the class an index, got "
            f"{' '.join(words)[:60]!r}"
        )
    if index not in data.names:
        raise DatasetError(
            f"{where}: class {index:g} has no name; {data.path} names {min(data.names)} to {max(data.names)}"
        )
    return data.names[int(index)]


def discover(tree: Tree) -> list[Proposal]:
    """Ways to read a folder with a data file of YOLO, or with label files and a list of names."""
    proposals = [
        proposal
        for file in tree.annotations(".yaml", ".yml", ".data")
        if (data := _parsed(tree, file)) is not None and (proposal := _by_data(file, data)) is not None
    ]
    return proposals or _by_names(tree)


def _parsed(tree: Tree, file: str) -> YoloData | None:
    try:
        return read_yolo_data(tree.path(file))
    except DatasetError:
        return None


def _by_data(file: str, data: YoloData) -> Proposal | None:
    """The splits of a data file that have images and labels."""
    images: dict[SplitName, set[str]] = {}
    words: dict[SplitName, str] = {}
    left_out: list[str] = []
    labels = LocalFiles()
    for word, paths in sorted(data.entries.items(), key=lambda entry: split_name(entry[0]) != "train"):
        split = split_name(word)
        try:
            uris = {uri for _, uri in _images(data, paths)[0]}
        except DatasetError:
            left_out.append(f"{word} names {paths[0]}, where no image is")
            continue
        if split is None or not any(_label_file(uri, labels) for uri in uris):
            left_out.append(f"no image of {word} has a label file")
        elif uris in images.values():  # as in a file that is used before there are validation images
            left_out.append(f"{word} names the images of another split")
        else:
            images[split], words[split] = uris, word
    if len(words) == 1:
        images, words = {"train": next(iter(images.values()))}, {"train": next(iter(words.values()))}
    if "train" not in words:
        return None
    listed = ", ".join(f"{word}: {len(images[split])} images" for split, word in words.items())
    unsure = {"splits": "; ".join(left_out)} if left_out else {}
    return Proposal({"name": "yolo", "data": file, "splits": in_order(words)}, f"YOLO's {file}; {listed}", unsure)


def _by_names(tree: Tree) -> list[Proposal]:
    """A list of names beside images that have label files."""
    lists = [f for f in tree.annotations(".txt", ".names", ".labels") if _is_list_of_names(PurePosixPath(f))]
    known = {file: names for file in lists if (names := _parsed(tree, file)) is not None}
    files = LocalFiles()
    labelled = [image for image in tree.images if known and _label_file(tree.path(image), files) is not None]
    if not labelled:
        return []
    data = max(sorted(known, key=len), key=lambda file: len(known[file].names))
    if not _reads(known[data], str(_label_file(tree.path(labelled[0]), files))):
        return []
    _refuse_other_names(data, known)
    by_split: dict[SplitName | None, list[str]] = {}
    for image in labelled:
        by_split.setdefault(split_of_path(f"{PurePosixPath(image).parent}/x"), []).append(image)
    if None in by_split or "train" not in by_split:
        by_split = {"train": labelled}
    splits = in_order(
        {
            split: os.path.relpath(common_folder(images), PurePosixPath(data).parent)
            for split, images in by_split.items()
            if split is not None
        }
    )
    listed = ", ".join(f"{split}: {len(images)} images" for split, images in by_split.items())
    return [Proposal({"name": "yolo", "data": data, "splits": splits}, f"YOLO's labels and {data}; {listed}")]


def _is_list_of_names(file: PurePosixPath) -> bool:
    """Whether a file is called as LabelImg, darknet and Roboflow call the list of the classes' names."""
    return file.name in ("classes.txt", "_darknet.labels") or file.suffix == ".names"


def _refuse_other_names(longest: str, lists: Mapping[str, YoloData]) -> None:
    """Refuse lists of which one gives an index another name than the longest: LabelImg writes one into each folder."""
    for file, data in lists.items():
        other = next((n for n, name in data.names.items() if lists[longest].names[n] != name), None)
        if other is not None:
            raise DatasetError(
                f"{longest} and {file} disagree: class {other} is {lists[longest].names[other]!r} and "
                f"{data.names[other]!r}; keep the list that the label files' numbers are of, or read each folder alone"
            )


def _reads(data: YoloData, label: str) -> bool:
    """Whether an image's label file is one: text files beside images may be anything, such as captions."""
    try:
        _labels(label, data)
    except DatasetError:
        return False
    return True
