"""labelme: one JSON file an image, beside it or in a folder of its own."""

from __future__ import annotations

import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

from cprfl.data.filesystems import is_remote
from cprfl.data.readers.annotations import Annotations, Row, SplitName
from cprfl.data.readers.base import DatasetConfig
from cprfl.data.readers.discovery import Proposal, Tree, common_folder, split_of_path
from cprfl.data.readers.json_text import read_json
from cprfl.data.readers.labelme_json import Document, is_labelmes, labels_of, read_documents
from cprfl.data.readers.layout import folder_of_images
from cprfl.data.readers.locate import SUFFIXES, ImageFolder, is_file
from cprfl.data.readers.shards import files_below
from cprfl.data.storage import DataPath, Folder, join, parent
from cprfl.errors import DatasetError


class LabelmeDataset(DatasetConfig):
    """Image-level labels of labelme's shapes, and of the flags of an image that are true.

    Folders below are read too. JSON files that have neither ``shapes`` nor ``imagePath`` are passed over, and counted.

    Attributes:
        splits: the folder of JSON files for each split.
        images: the folder of the images, where they are not where the JSON files say, seen from themselves.
        flags: whether flags of an image are classes; those of a shape never are.
        unlabelled: whether an image without a JSON file, which nobody annotated, is left out or shows no class.
    """

    name: Literal["labelme"] = "labelme"
    splits: dict[SplitName, DataPath]
    images: DataPath | None = None
    flags: bool = True
    unlabelled: Literal["leave_out", "negative"] = "leave_out"

    def read_annotations(self) -> Annotations:
        """The flags' names as classes, and the images of each split in the order of their JSON files' names."""
        notes: list[str] = []
        flags = Counter[str]()
        rows: dict[SplitName, list[Row]] = {}
        for split, folder in self.splits.items():
            documents, said = read_documents(folder)
            places = self._places(folder, documents, notes)
            listed = zip(documents, places, strict=True)
            rows[split] = [Row("", uri, labels_of(document, self.flags), document.where) for document, uri in listed]
            notes += said
            for document in documents if self.flags else ():
                flags.update({flag: int(is_true) for flag, is_true in document.flags.items()})
        if flags.total():
            some = ", ".join(f"{flag!r} ({count})" for flag, count in flags.most_common(5) if count)
            notes.append(f"{flags.total()} labels are flags of images: {some}; dataset.flags: false leaves them out")
        self._add_unlabelled(rows, notes)
        return Annotations(list(flags), {split: self._with_ids(split, own) for split, own in rows.items()}, notes)

    def _places(self, folder: str, documents: Sequence[Document], notes: list[str]) -> list[str]:
        """Where the images are: as their JSON files say; or beside these, by the image's name or by their own."""
        base = ImageFolder(self.images if self.images is not None else folder)
        below = [str(PurePosixPath(document.path).parent) for document in documents]
        written = [document.image for document in documents]
        names = [name.replace("\\", "/").rpartition("/")[2] for name in written]
        stems = [PurePosixPath(document.path).stem for document in documents]
        places = _found(base, written if self.images is not None else _joined(below, written))
        for way, others in (("by their names", names), ("by their JSON files' names", stems)):
            missing = [number for number, uri in enumerate(places) if not _is_there(uri)]
            found = dict(zip(missing, _found(base, [_joined(below, others)[n] for n in missing]), strict=True))
            mended = {number: uri for number, uri in found.items() if _is_there(uri)}
            places = [mended.get(number, uri) for number, uri in enumerate(places)]
            if mended:
                number, uri = next(iter(mended.items()))
                notes.append(f"{len(mended)} images found {way}, such as {written[number]!r}: {uri}")
        notes += base.notes
        for document, uri in zip(documents, places, strict=True):
            if document.is_embedded and not _is_there(uri):
                raise DatasetError(
                    f"{document.where}: its image {document.image!r} is not there ({uri}), only the copy in the JSON "
                    "file (`imageData`), which is not read; put the image there, or set dataset.images to its folder "
                    "(labelme_export_json writes the copy to a file)"
                )
        return places

    def _add_unlabelled(self, rows: Mapping[SplitName, list[Row]], notes: list[str]) -> None:
        """Find the images that nobody annotated, and do what ``unlabelled`` says."""
        annotated = {row.uri for own in rows.values() for row in own}
        others = {split: sorted(self._images_near(split, own) - annotated) for split, own in rows.items()}
        counts = Counter(uri for own in others.values() for uri in own)
        if not counts:
            return
        first, most = counts.most_common(1)[0]
        if self.unlabelled == "leave_out":
            mend = "dataset.unlabelled: negative makes them images that show no class"
            notes.append(f"{len(counts)} images without a JSON file are left out, such as {first}; {mend}")
            return
        if most > 1:
            raise DatasetError(
                f"{first}: nothing says which split it is in, for it has no JSON file, and lies where several splits "
                "have images; set dataset.unlabelled: leave_out"
            )
        notes.append(f"{len(counts)} images without a JSON file show no class (dataset.unlabelled), such as {first}")
        for split, own in others.items():
            rows[split].extend(Row("", uri, (), uri) for uri in own)

    def _images_near(self, split: SplitName, rows: Sequence[Row]) -> set[str]:
        """The images below the split's folder, and those beside its images."""
        folder = self.splits[split]
        files = [join(folder, file) for file in files_below(folder)[0]]
        for other in {parent(row.uri) for row in rows}:
            files += [f"{other}/{name}" for name in Folder(other).files() if not name.startswith(".")]
        return {_plain(file) for file in files if PurePosixPath(file).suffix.lower() in SUFFIXES}

    def _with_ids(self, split: SplitName, rows: Sequence[Row]) -> list[Row]:
        """Rows with the images' paths: below their folder, or below the one that all are in if that is elsewhere."""
        uris = [row.uri for row in rows]
        if any(map(is_remote, uris)):
            return [replace(row, image_id=row.uri.removeprefix(f"{self.splits[split]}/")) for row in rows]
        folder = self.images if self.images is not None else self.splits[split]
        ids = [os.path.relpath(uri, folder or ".") for uri in uris]
        if any(image_id.startswith("../") for image_id in ids):
            ids = [os.path.relpath(uri, os.path.commonpath([*map(parent, uris)])) for uri in uris]
        return [replace(row, image_id=image_id) for row, image_id in zip(rows, ids, strict=True)]


def _joined(folders: Sequence[str], names: Sequence[str]) -> list[str]:
    return [join("" if folder == "." else folder, name) for folder, name in zip(folders, names, strict=True)]


def _found(base: ImageFolder, names: Sequence[str]) -> list[str]:
    return [_plain(uri) for _, uri in base.find(names)]


def _plain(uri: str) -> str:
    return uri if is_remote(uri) else os.path.normpath(uri.removeprefix("file://"))


def _is_there(uri: str) -> bool:
    return is_remote(uri) or is_file(uri)


def discover(tree: Tree) -> list[Proposal]:
    """Folders of labelme's JSON files, by split where their names say so."""
    files = [file for file in tree.annotations(".json") if b'"shapes"' in tree.head(file)]
    if tree.only is not None or not files:
        return []
    first = files[0]
    try:
        value = read_json(tree.path(first), "annotation of labelme")
    except DatasetError:
        return []
    if not is_labelmes(value) or not isinstance(value.get("imagePath"), str):
        return []
    found: dict[SplitName | None, list[str]] = {}
    for file in files:
        found.setdefault(split_of_path(parent(file)) if "/" in file else None, []).append(file)
    splits: dict[SplitName, str] = {
        split: common_folder(own) or "." for split, own in found.items() if split is not None
    }
    if None in found or "train" not in splits:
        splits = {"train": common_folder(files) or "."}
    settings: dict[str, object] = {"name": "labelme", "splits": splits}
    image = value["imagePath"].replace("\\", "/")
    if os.path.normpath(join(parent(first), image)) not in tree.files:
        folder = folder_of_images(tree, [image], first)
        if folder is not None and folder not in splits.values():
            settings["images"] = folder
    return [Proposal(settings, f"labelme, {len(files)} JSON files")]
