"""WebDataset: tar files of samples, an image and its labels under one name.

Nothing is unpacked: the images stay in the tar files, and are named by where they are in them (`cprfl.data.packed`).
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Literal

from cprfl.data.opened import regular_file
from cprfl.data.packed import tar_uri
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.label_values import named_labels
from cprfl.data.readers.shards import Paths, alike_but_for_numbers, expanded, patterns_of_splits
from cprfl.data.readers.tar_members import Member
from cprfl.data.readers.tar_samples import KINDS_OF_LABELS, Sample, image_of, label_cells, sample_name, samples_of
from cprfl.data.readers.text import read_text
from cprfl.data.storage import Folder, join, parent
from cprfl.errors import DatasetError

_CLASS_LIST = "classes.txt"
_LOOKED_AT = 50  # members, for whether a tar file is one of samples


class WebdatasetDataset(DatasetConfig):
    """Tar files of samples: what has one name up to its first dot, an image and labels among it.

    Labels are a ``.json`` (a list, or an object with one under ``labels_key``), a ``.cls`` (separated by commas or
    lines) or a ``.txt`` (one a line): names, or indices, whose names are ``label_names`` or the lines of a
    ``classes.txt`` beside the tar files. A sample without labels is an error: an empty list says that it shows nothing.

    Attributes:
        splits: a path, a pattern (``train-{000000..000009}.tar``, ``train-*.tar``) or a list for each split.
        image: what follows the first dot in the images' names, where a sample has several (``left.jpg``).
        labels: what follows the first dot in the labels' names, where a sample has several that could be.
        labels_key: of the labels in an object; found out unless given, and then ``labels`` where that is there.
        label_names: names of the classes in the order of their indices.
        multi_hot: whether lists of numbers are a 0 or 1 for each class, rather than indices.
    """

    name: Literal["webdataset"] = "webdataset"
    splits: dict[SplitName, Paths]
    image: str | None = None
    labels: str | None = None
    labels_key: str | None = None
    label_names: list[str] | None = None
    multi_hot: bool | None = None

    def read_annotations(self) -> Annotations:
        """Names of the classes in the order of their indices, and the samples of each split in the files' order."""
        samples: dict[SplitName, list[Sample]] = {}
        notes: list[str] = []
        for split, source in self.splits.items():
            everything = [sample for path in expanded(source) for sample in samples_of(path)]
            samples[split] = [sample for sample in everything if sample.images]
            if len(samples[split]) < len(everything):
                key = next(sample.key for sample in everything if not sample.images)
                number = len(everything) - len(samples[split])
                notes.append(f"{number} samples of {split} have no image and are left out, such as {key}")
        shown = [sample for own in samples.values() for sample in own]
        cells = label_cells(shown, self.labels, self.labels_key)
        names = self.label_names or _class_list(sample.tar for sample in shown)
        listed = named_labels(cells, names, self.multi_hot)
        labels = {sample.where: own for sample, own in zip(shown, listed, strict=True)}
        return Annotations(names or [], {split: self._rows(own, labels) for split, own in samples.items()}, notes)

    def _rows(self, samples: Sequence[Sample], labels: Mapping[str, Sequence[str]]) -> list[Row]:
        """Rows whose ids are the images' paths in their tar file, behind the file's name where two have one path."""
        images = [image_of(sample, self.image) for sample in samples]
        ids = [posixpath.normpath(image.name) for image in images]
        counts = Counter(ids)
        return [
            Row(
                image_id if counts[image_id] == 1 else f"{PurePosixPath(sample.tar).stem}/{image_id}",
                tar_uri(sample.tar, image.offset, image.size, image.name),
                labels[sample.where],
                sample.where,
            )
            for sample, image, image_id in zip(samples, images, ids, strict=True)
        ]


def _class_list(tars: Iterable[str]) -> list[str] | None:
    """The lines of the ``classes.txt`` beside the tar files, if there is one."""
    lists: dict[str, list[str]] = {}
    for folder in dict.fromkeys(map(parent, tars)):
        if Folder(folder).exists(_CLASS_LIST):
            path = join(folder, _CLASS_LIST)
            lists[path] = [line.strip() for line in read_text(path, "list of classes").rstrip().splitlines()]
    if len({tuple(lines) for lines in lists.values()}) > 1:
        raise DatasetError(f"{' and '.join(lists)} disagree; name the classes with dataset.label_names")
    return next(iter(lists.values()), None)


def discover(tree: Tree) -> list[Proposal]:
    """Tar files of images with labels."""
    groups = [files for files in alike_but_for_numbers(tree.annotations(".tar")) if _has_samples(tree.path(files[0]))]
    splits = patterns_of_splits(groups, tree.files) if groups else None
    if splits is None:
        return []
    number = sum(map(len, groups))
    found = f"WebDataset, {number} tar {'file' if number == 1 else 'files'}"
    return [Proposal({"name": "webdataset", "splits": splits}, found)]


def _has_samples(path: str) -> bool:
    """Whether an image and what can be its labels are among the first members of a tar file."""
    samples: dict[str, Sample] = {}
    try:
        with regular_file(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for name in (info.name for info in islice(tar, _LOOKED_AT) if info.isfile()):
                key, part = sample_name(name) or ("", "")
                samples.setdefault(key, Sample(path, key)).parts[part] = Member(name, 0, 0, None)
    except (tarfile.TarError, OSError):
        return False
    return any(sample.images and any(map(sample.ending_in, KINDS_OF_LABELS)) for sample in samples.values())
