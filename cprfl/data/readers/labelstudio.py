"""Label Studio: exports in JSON and JSON-MIN."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import unquote

from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree, common_folder
from cprfl.data.readers.labelstudio_json import (
    Annotation,
    Task,
    controls_of,
    image_key,
    is_elsewhere,
    path_in,
    read_tasks,
)
from cprfl.data.readers.layout import folder_of_images, in_order, split_choices
from cprfl.data.readers.locate import ImageFolder, is_file
from cprfl.data.storage import DataPath, Folder, parent
from cprfl.errors import DatasetError

_UPLOAD = re.compile(r"(?<![^/])[0-9a-f]{8}-")  # what Label Studio puts before an uploaded file's name


class LabelStudioDataset(DatasetConfig):
    """Image-level labels of choices, taxonomies, and boxes, polygons, brushes, ... with labels.

    Cancelled annotations and predictions do not count, and a task without any annotation is left out. Where one
    annotation of a task is marked as ground truth, it alone counts. A taxonomy's label is its path (``animal/dog``).

    Attributes:
        splits: the export of each split, JSON or JSON-MIN.
        images: the folder of the images. Unless given, addresses (``s3://``, ``https://``) are read as they are, and
            other paths are below the export's folder.
        image_key: of the image's path in the tasks' data; found out unless given.
        label_keys: names of the controls whose labels count, choices of regions too; all of the others unless given.
        disagreement: whether an image shows a label that only some of its annotators give: ``positive`` or
            ``negative``, ``unknown`` (left out of losses and metrics), or an error.
    """

    name: Literal["labelstudio"] = "labelstudio"
    splits: dict[SplitName, DataPath]
    images: DataPath | None = None
    image_key: str | None = None
    label_keys: list[str] | None = None
    disagreement: Literal["positive", "negative", "unknown", "error"] = "positive"

    def read_annotations(self) -> Annotations:
        """The tasks of each split that somebody annotated; classes are the names that occur."""
        notes: list[str] = []
        tasks: dict[SplitName, list[Task]] = {}
        for split, path in self.splits.items():
            everything, said = read_tasks(path, self.label_keys)
            tasks[split] = [task for task in everything if task.annotations]
            notes += said
            if not tasks[split]:
                raise DatasetError(f"{path}: nobody annotated any of its {len(everything)} tasks")
            if len(tasks[split]) < len(everything):
                notes.append(
                    f"{path}: {len(everything) - len(tasks[split])} tasks without annotations are left out"
                    " (predictions do not count)"
                )
        every = [task for own in tasks.values() for task in own]
        notes += self._about_labels(every)
        key = image_key(every, self.image_key)
        rows: dict[SplitName, list[Row]] = {}
        for split, own in tasks.items():
            folder = self.images if self.images is not None else parent(self.splits[split])
            places = _places([task.data[key] for task in own], folder, self.images is not None, notes)
            rows[split] = [self._row(task, place) for task, place in zip(own, places, strict=True)]
        return Annotations([], rows, notes)

    def _row(self, task: Task, place: tuple[str, str]) -> Row:
        said = [self._labels(annotation) for annotation in _that_count(task)]
        shown, agreed = set[str]().union(*said), set(said[0]).intersection(*said)
        if shown != agreed and self.disagreement == "error":
            raise DatasetError(
                f"{task.where}: {len(said)} annotators disagree on {', '.join(map(repr, sorted(shown - agreed)))}; set "
                "dataset.disagreement: positive, negative or unknown",
                disagreement="positive",
            )
        labels = shown if self.disagreement == "positive" else agreed
        unknown = shown - agreed if self.disagreement == "unknown" else set()
        return Row(*place, sorted(labels), task.where, sorted(unknown))

    def _labels(self, annotation: Annotation) -> set[str]:
        if self.label_keys is None:
            return {name for names in annotation.labels.values() for name in names}
        every = [*annotation.labels.items(), *annotation.attributes.items()]
        return {name for control, names in every if control in self.label_keys for name in names}

    def _about_labels(self, tasks: Sequence[Task]) -> list[str]:
        """Where labels come from, and where annotators disagree, as far as somebody should know."""
        notes = []
        counts = controls_of(tasks)
        attributes = Counter(control for task in tasks for a in task.annotations for control in a.attributes)
        for wanted in self.label_keys or ():
            if wanted not in counts and wanted not in attributes:
                some = ", ".join(map(repr, {**counts, **attributes})) or "none"
                raise DatasetError(f"dataset.label_keys: no control {wanted!r} gives labels (those that do: {some})")
        if self.label_keys is None and len(counts) > 1:
            some = ", ".join(f"{control!r} ({count})" for control, count in counts.most_common())
            notes.append(f"labels come from {len(counts)} controls: {some}; dataset.label_keys names those that count")
        if self.label_keys is None and attributes:
            some = ", ".join(map(repr, attributes))
            notes.append(f"choices of regions are no labels of images: {some}; dataset.label_keys makes them some")
        several = [task for task in tasks if len(_that_count(task)) > 1]
        differing = [t for t in several if len({frozenset(self._labels(a)) for a in _that_count(t)}) > 1]
        if differing:
            notes.append(
                f"annotators disagree on {len(differing)} of {len(several)} images that several annotated, such as "
                f"{differing[0].where}; what only some say is {self.disagreement} (dataset.disagreement)"
            )
        truths = sum(len(_that_count(task)) < len(task.annotations) for task in tasks)
        if truths:
            notes.append(f"of {truths} images only the annotations that are marked as ground truth count")
        return notes


def _that_count(task: Task) -> Sequence[Annotation]:
    return [annotation for annotation in task.annotations if annotation.is_truth] or task.annotations


def _places(addresses: Sequence[str], folder: str, everything: bool, notes: list[str]) -> list[tuple[str, str]]:
    """Id and URI of each image.

    Args:
        addresses: as Label Studio writes them.
        folder: to look in.
        everything: whether the images at addresses of other servers are in the folder too.
        notes: takes how images were found.
    """
    base = ImageFolder(folder)
    places: dict[int, tuple[str, str]] = {}
    wanted = dict(enumerate(addresses))
    if not everything:
        places = {number: (address, address) for number, address in wanted.items() if is_elsewhere(address)}
    paths = {number: path_in(address) for number, address in wanted.items() if number not in places}
    names = {number: unquote(path) for number, path in paths.items()}
    bases = _each_once({number: name.rpartition("/")[2] for number, name in names.items()})
    uploads = _each_once({number: _UPLOAD.sub("", name) for number, name in bases.items() if _UPLOAD.match(name)})
    renamed = _renamed(folder, uploads) if not is_remote(folder) else {}
    tried = set[tuple[int, str]]()
    ways = [(names, ""), (paths, ""), (bases, "by their names alone"), (uploads, "without Label Studio's prefix")]
    for attempt, way in [*ways, (renamed, "by the names that Label Studio made of theirs")]:
        missing = [n for n, name in attempt.items() if n not in places and (n, name) not in tried]
        tried |= {(number, attempt[number]) for number in missing}
        found = dict(zip(missing, base.find(attempt[number] for number in missing), strict=True))
        found = {number: place for number, place in found.items() if _is_there(place[1])}
        places |= found
        if way and found:
            number = next(iter(found))
            notes.append(f"{len(found)} images found {way}, such as {addresses[number]}: {found[number][1]}")
    notes += base.notes
    nowhere = [number for number in wanted if number not in places]
    places |= dict(zip(nowhere, ImageFolder(folder).find(names[number] for number in nowhere), strict=True))
    return [places[number] for number in wanted]


def _each_once(names: dict[int, str]) -> dict[int, str]:
    """The names that only one image has."""
    counts = Counter(names.values())
    return {number: name for number, name in names.items() if counts[name] == 1}


def _is_there(uri: str) -> bool:
    return is_remote(uri) or is_file(uri)


def _renamed(folder: str, uploads: dict[int, str]) -> dict[int, str]:
    """The files whose names the upload would have changed to these: blanks to underscores, other signs left out."""
    written = [(re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_")), name) for name in Folder(folder).files()]
    counts = Counter(changed for changed, _ in written)
    originals = {changed: name for changed, name in written if counts[changed] == 1}
    return {number: originals[name] for number, name in uploads.items() if name in originals}


def discover(tree: Tree) -> list[Proposal]:
    """Exports of Label Studio: one a split where their names tell splits apart, else each by itself."""
    files = [file for file in tree.annotations(".json") if _may_be_export(tree.head(file))]
    found = [_proposal(tree, in_order(splits)) for splits in split_choices(files)]
    return [proposal for proposal in found if proposal is not None]


def _proposal(tree: Tree, splits: Mapping[SplitName, str]) -> Proposal | None:
    first = next(iter(splits.values()))
    try:
        tasks, _ = read_tasks(tree.path(first), None)
        addresses = [str(task.data[image_key(tasks, None)]) for task in tasks]
    except DatasetError:
        return None
    names = [unquote(path_in(address)) for address in addresses]
    folder = folder_of_images(tree, [*names, *(_UPLOAD.sub("", name, count=1) for name in names)], first)
    if folder is None and len({parent(image) for image in tree.images}) == 1:  # which were renamed when uploaded
        folder = common_folder(tree.images) or "."
    settings = {"name": "labelstudio", "splits": splits} | ({} if folder is None else {"images": folder})
    return Proposal(settings, f"Label Studio; {', '.join(f'{split}: {file}' for split, file in splits.items())}")


def _may_be_export(head: bytes) -> bool:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    full = b'"data"' in text and (b'"annotations"' in text or b'"completions"' in text)
    return text.startswith(b"[") and (full or b'"annotation_id"' in text or b'"lead_time"' in text)
