"""Which reader a folder is for, and the settings with which it is read."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cprfl.config import components, read_override, validate
from cprfl.data.checks import missing_images, where_it_may_be
from cprfl.data.filesystems import is_remote
from cprfl.data.images import image_stamps
from cprfl.data.long_tail import class_counts
from cprfl.data.manifest import TEST, VALIDATION, Groups, Manifest
from cprfl.data.readers import (
    coco,
    csv_table,
    cvat,
    folders,
    labelme,
    labelstudio,
    list_files,
    openimages,
    parquet_table,
    voc,
    webdataset,
    yolo,
)
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree
from cprfl.data.readers.json_text import read_json
from cprfl.errors import ConfigError, DatasetError
from cprfl.experiment import AnyDataset, Experiment
from cprfl.words import counted, named

# What says most of itself comes first: a folder of VOC may well have a table in it, and every folder has folders.
READERS = (
    webdataset, parquet_table, yolo, coco, cvat, labelstudio, labelme, voc, openimages, csv_table, list_files, folders,
)  # fmt: skip
TEST_SHARE = 0.2
_A_FILE_FOR_EACH_IMAGE = ("voc", "labelme")  # a second one is a former state, or predictions
_LOOKED_AT = 3  # files, for what is wrong with them
_MENDS = {
    ".json": "of JSON, COCO's instances, labelme's files and Label Studio's exports are read",
    ".xml": 'of XML, Pascal VOC\'s files and "CVAT for images 1.1" (of no video) are read',
    ".arrow": "`save_to_disk` of Hugging Face's datasets is not read: write Parquet with `to_parquet`",
    ".jsonl": "JSON lines are not read: write a CSV table (pandas: read_json(..., lines=True).to_csv)",
    ".tfrecord": "TFRecord is not read: export COCO, Pascal VOC or YOLO",
    ".zip": "unpack the .zip files first",
    ".gz": "unpack the .gz files first",
    ".tgz": "unpack the .tgz files first",
    ".7z": "unpack the .7z files first",
    ".rar": "unpack the .rar files first",
}


@dataclass(frozen=True)
class Reading:
    """A data set as it is read from what lies there.

    Attributes:
        dataset: settings of the section ``dataset``, paths relative to the root.
        found: format, dialect and files, one line.
        unsure: what else a setting could be, by its name.
        others: what else was found, and is not read.
        manifest: what comes out.
    """

    dataset: Mapping[str, Any]
    found: str
    unsure: Mapping[str, str]
    others: tuple[str, ...]
    manifest: Manifest


def read_what_is_there(path: Path, overrides: Sequence[str] = ()) -> Reading:
    """Find out how a folder or a file of annotations is read, and read it.

    Where the reader refuses and says with which settings it would not, those are taken, and are unsure; but files of
    annotations that are about one image are not joined. A test split is dealt out where there is none.

    Args:
        path: what to look at.
        overrides: settings that are known, ``dataset.labels_column=content``.

    Raises:
        DatasetError: where nothing is found that a reader knows, or what is found cannot be read.
        ConfigError: where an override is no setting of the data set that is found.
    """
    tree = Tree.of(path)
    proposals = [proposal for reader in READERS for proposal in reader.discover(tree)]
    if not proposals:
        tables = [file for file in tree.annotations(".csv", ".tsv") if "/" not in file]
        if tree.only is None and len(tables) == 1:
            return read_what_is_there(path / tables[0], overrides)  # which says why it is none
        raise DatasetError(_nothing_found(path, tree))
    first, *others = proposals
    settings, unsure = _with_a_test_split(first)
    settings |= _known(settings, overrides)
    alike = [other.found for other in others if other.dataset["name"] == first.dataset["name"]]
    if alike:
        _add(unsure, "splits", f"not read, for it is no other split: {named(alike, 3, ' | ')}")
    while True:
        try:
            manifest = _dataset(settings, tree.root).read()
            break
        except DatasetError as error:
            second = "repeated_images" in error.settings and first.dataset["name"] in _A_FILE_FOR_EACH_IMAGE
            if second or not error.settings.keys() - settings.keys():
                raise DatasetError(f"{first.found}\n{error}") from None
            settings |= error.settings
            why = str(error).split(";")[0].replace(f"{tree.root.absolute()}/", "")
            unsure |= dict.fromkeys(error.settings, f"needed: {why}")
    settings |= _about_images(manifest, path, tree.root, unsure)
    if settings["name"] != "folders" and (twins := _twins(manifest, tree)):
        _add(unsure, "splits", twins)
    counts = class_counts(manifest)
    if (counts == 0).any():
        settings["classes_without_images"] = "leave_out"
        manifest = manifest.with_classes({manifest.class_names[label] for label in np.flatnonzero(counts)})
    settings["groups"] = _groups(manifest)
    manifest = replace(manifest, groups=Groups(**settings["groups"]))
    return Reading(settings, first.found, unsure, tuple(other.found for other in others), manifest)


def _nothing_found(path: Path, tree: Tree) -> str:
    """That nothing is found to read, and what would mend it as far as the files' names say it."""
    kinds = Counter(PurePosixPath(file).suffix.lower() or "no suffix" for file in tree.files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    mends = [_broken_json(tree), *(mend for suffix, mend in _MENDS.items() if suffix in kinds)]
    if tree.images and 2 * kinds[".txt"] > len(tree.images):
        mends.append(
            "label files of YOLO lie beside the images, or in `labels` where these lie in `images`, and the names of "
            "the classes are in data.yaml or classes.txt"
        )
    usual = "point at the file itself, or write dataset.name and its settings (README, Your own images)"
    return f"{path}: no annotations that can be read (files: {listed}); {'; '.join([*filter(None, mends), usual])}"


def _broken_json(tree: Tree) -> str:
    """Where one of the first JSON files is none, or nearly COCO's, which no reader can say."""
    try:
        for file in tree.annotations(".json")[:_LOOKED_AT]:
            read_json(tree.path(file), "JSON file")
            if coco.looks_like_coco(tree.head(file)):
                coco.read_coco(tree.path(file))
    except DatasetError as error:
        return str(error)
    return ""


def _known(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides say of the section ``dataset``."""
    known: dict[str, Any] = {}
    for override in overrides:
        change = read_override(Experiment, override, {"dataset": settings})
        if change.keys() != {"dataset"} or "name" in change["dataset"]:
            raise ConfigError(f"--set {override}: init takes settings of the data set that it finds: dataset.KEY=VALUE")
        known |= change["dataset"]
    return known


def _dataset(settings: Mapping[str, Any], root: Path) -> DatasetConfig:
    (kind,) = components(AnyDataset, settings["name"])
    found = validate(kind, dict(settings), source="dataset", data_root=str(root.absolute()))
    assert isinstance(found, DatasetConfig)
    return found


def _with_a_test_split(proposal: Proposal) -> tuple[dict[str, Any], dict[str, str]]:
    settings, unsure = dict(proposal.dataset), dict(proposal.unsure)
    splits = settings.get("splits", {})
    if TEST in splits or settings.get("split_column"):
        return settings, unsure
    if VALIDATION in splits:
        settings["splits"] = {TEST if split == VALIDATION else split: source for split, source in splits.items()}
        _add(unsure, "splits", "there is no test split: the validation images are tested on")
    else:
        settings["split"] = {"test": TEST_SHARE}
        unsure["split"] = "no test split was found; groups_by: what must stay on one side (a column, or a pattern)"
    return settings, unsure


def _about_images(manifest: Manifest, path: Path, root: Path, unsure: dict[str, str]) -> dict[str, Any]:
    """Skip images that are not there, unless that is most of them: then their paths are misread."""
    missing = missing_images(manifest, image_stamps(manifest.uris))
    if 2 * len(missing) > len(manifest):
        guess = where_it_may_be(missing[0].uri, str(root))
        if path.is_file():
            guess += "; or point at the folder that has both the annotations and the images"
        raise DatasetError(
            f"{len(missing)} of {counted(len(manifest), 'image')} are not where the annotations say, such as "
            f"{missing[0].uri}; {guess}"
        )
    if not missing:
        return {}
    unsure["on_bad_image"] = f"{len(missing)} of {len(manifest)} images are not there, such as {missing[0].uri}"
    return {"on_bad_image": "skip"}


def _twins(manifest: Manifest, tree: Tree) -> str:
    """That images of the same names lie in other folders too; nothing where that is so of less than half of them."""
    read = {os.path.normpath(uri): uri for uri in manifest.uris if not is_remote(uri)}
    names = {_base(place): uri for place, uri in read.items()}
    others = [image for image in tree.images if _base(image) in names]
    root = tree.root.absolute()
    twins = [image for image in others if os.path.normpath(root / image) not in read]
    if not twins or 2 * len(twins) < len(manifest):
        return ""
    return f"{len(twins)} images of the same names are not read, such as {twins[0]} (but {names[_base(twins[0])]})"


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _add(unsure: dict[str, str], setting: str, why: str) -> None:
    unsure[setting] = f"{unsure[setting]}; {why}" if setting in unsure else why


def _groups(manifest: Manifest) -> dict[str, int]:
    """The published thresholds where each group has a tenth of the classes, else those that make groups of one size."""
    counts = sorted(class_counts(manifest).tolist())
    usual = Groups()
    tail, head = sum(count < usual.tail for count in counts), sum(count >= usual.head for count in counts)
    if min(tail, head, len(counts) - tail - head) >= max(1, len(counts) / 10):
        return {"head": usual.head, "tail": usual.tail}
    tail, head = counts[len(counts) // 3], counts[-max(1, len(counts) // 3)]
    return {"head": max(head, 1), "tail": max(min(tail, head), 1)}
