"""What is written in COCO, VOC, YOLO or CVAT's XML, in whatever dialect, is read back exactly."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from hypothesis import given, settings
from hypothesis import strategies as st

from cprfl.data.manifest import Manifest
from cprfl.data.readers.classes import clean_name
from tests.boxes import READERS, Files, images, put, read

NAMES = st.text("aBc1 船é&<>\"'-.,:#", min_size=1, max_size=6).map(clean_name).filter(bool)
STEMS = st.text("aB1 é-_.", min_size=1, max_size=6).map(str.strip).filter(lambda stem: stem.strip(". "))
SUFFIXES = st.sampled_from([".jpg", ".JPG", ".jpeg", ".png"])


@dataclass(frozen=True)
class Written:
    """What a data set is to say: its classes, and those of each image by the split and the image's name."""

    classes: tuple[str, ...]
    labels: Mapping[tuple[str, str], frozenset[int]]

    def split(self, name: str) -> dict[str, list[int]]:
        """Images of a split, with their classes in order."""
        return {image: sorted(shown) for (split, image), shown in self.labels.items() if split == name}


@st.composite
def data_sets(draw: st.DrawFn) -> Written:
    classes = draw(st.lists(NAMES, min_size=1, max_size=4, unique_by=str.casefold))
    labels: dict[tuple[str, str], frozenset[int]] = {}
    for split in ("train", "test"):
        for stem in draw(st.lists(STEMS, min_size=1, max_size=4, unique_by=str.casefold)):
            shown = draw(st.frozensets(st.integers(0, len(classes) - 1)))
            labels[split, stem + draw(SUFFIXES)] = shown
    first = next(iter(labels))
    labels[first] |= {0}  # something is shown
    return Written(tuple(classes), labels)


def reads_back(written: Written, files: Files, reader: str, folders: Mapping[str, str], **given: Any) -> Manifest:
    """Read what was written, with its images in a folder for each split, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder), files)
        put(Path(folder), images(*(f"{folders[split]}/{name}" for split, name in written.labels)))
        manifest = read(READERS[reader][1], Path(folder), **given)
        assert all(Path(uri).is_file() for uri in manifest.uris)
        found = {
            (split, str(Path(uri).relative_to(Path(folder) / folders[split]))): frozenset(
                manifest.class_names[label] for label in labels
            )
            for split, uri, labels in zip(manifest.splits, manifest.uris, manifest.labels, strict=True)
        }
    names = {key: frozenset(written.classes[label] for label in shown) for key, shown in written.labels.items()}
    assert found == names
    return manifest


APART = {"train": "train/i", "test": "test/i"}


@given(data_sets(), st.data())
@settings(max_examples=25, deadline=None)
def test_coco_reads_back_what_is_written(written: Written, data: st.DataObject) -> None:
    number = data.draw(st.sampled_from([int, float, str]))
    path = data.draw(st.sampled_from(["", "./", "x\\..\\"]))
    root, first = data.draw(st.sampled_from([None, "things", written.classes[0]])), data.draw(st.integers(0, 2))
    files: Files = {}
    for split in APART:
        order = (
            data.draw(st.permutations(range(len(written.classes)))) if split == "test" else range(len(written.classes))
        )
        ids = {label: number(place + first + 1) for place, label in enumerate(order)}
        own = written.split(split)
        repeat = data.draw(st.integers(1, 2))
        marks = [(n, label) for n, shown in enumerate(own.values()) for label in shown for _ in range(repeat)]
        content = {
            "images": [{"id": str(n) if number is str else n, "file_name": path + name} for n, name in enumerate(own)],
            "annotations": [{"image_id": n, "category_id": ids[label], "bbox": [0, 0, 1, 1.5]} for n, label in marks],
            "categories": [{"id": ids[n], "name": written.classes[n]} | ({"supercategory": root} if root else {})
                           for n in order] + ([{"id": first, "name": root, "supercategory": "none"}] if root else []),
        }  # fmt: skip
        keys = data.draw(st.permutations(list(content)))
        files[f"{split}/a.json"] = json.dumps(
            {key: content[key] for key in keys}, ensure_ascii=data.draw(st.booleans())
        )
    splits = {split: {"annotations": f"{split}/a.json", "images": folder} for split, folder in APART.items()}
    manifest = reads_back(written, files, "coco", APART, splits=splits)
    grouping = {root} - {*written.classes[:1]} if root else set()
    assert manifest.class_names == tuple(
        name for name in written.classes if name not in grouping or name in _shown(written)
    )


def _shown(written: Written) -> set[str]:
    return {written.classes[label] for shown in written.labels.values() for label in shown}


@given(data_sets(), st.data())
@settings(max_examples=25, deadline=None)
def test_voc_reads_back_what_is_written(written: Written, data: st.DataObject) -> None:
    sets, beside = data.draw(st.booleans()), data.draw(st.booleans())
    codec = data.draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"]))
    folders = {split: f"{split}/JPEGImages" if sets or not beside else split for split in APART}
    files: Files = {}
    for split in folders:
        own = written.split(split)
        stems = {Path(name).stem: name for name in own}
        if len(stems) < len(own):
            return  # two images of one name, which VOC cannot tell apart
        for stem, name in stems.items():
            objects = "".join(f"<object><name>{escape(written.classes[c])}</name></object>" for c in own[name])
            filename = data.draw(st.sampled_from(["", f"<filename>{name}</filename>", f"<filename>{stem}</filename>"]))
            first = f'<?xml version="1.0" encoding="{codec.removesuffix("-sig")}"?>'
            text = f"{first}<annotation>{filename}{objects}</annotation>"
            files[f"{split}/{'Annotations/' if sets or not beside else ''}{stem}.xml"] = text.encode(codec)
        lines = data.draw(
            st.sampled_from([list(own), list(stems), [f"{stem} {'-1' if n else 1}" for n, stem in enumerate(stems)]])
        )
        files[f"{split}/ImageSets/Main/mine.txt"] = "\n".join(lines)
    splits = {split: {"root": split} | ({"image_set": "mine"} if sets else {}) for split in folders}
    reads_back(written, files, "voc", folders, splits=splits, classes=None)


@given(data_sets(), st.data())
@settings(max_examples=25, deadline=None)
def test_yolo_reads_back_what_is_written(written: Written, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["images/{}", "{}/images", "{}"]))
    folders = {split: layout.format(split) for split in APART}
    names = {n: json.dumps(name, ensure_ascii=False) for n, name in enumerate(written.classes)}
    listed = data.draw(st.booleans())
    files: Files = {}
    entries = {}
    for split, folder in folders.items():
        own = written.split(split)
        if len({Path(name).stem for name in own}) < len(own):
            return  # two images with one label file
        for name, shown in own.items():
            shape = data.draw(st.sampled_from(["0.5 0.5 0.25 1", "0 0 1 0 1 1 0 1e-2", ".5 .5 .25 1 0.9"]))
            lines = [f"{label} {shape}" for label in shown]
            files[f"{folder.replace('images', 'labels')}/{Path(name).stem}.txt"] = "\n".join(lines)
        files[f"{split}.txt"] = "".join(f"{folder}/{name}\n" for name in own)
        entries[split] = data.draw(st.sampled_from([folder, f"../{folder}", f"/elsewhere/{folder}", f"{split}.txt"]))
    if data.draw(st.booleans()):
        files["obj.names"] = "\n".join(written.classes)
        files["it.data"] = "".join(f"{split} = {entry}\n" for split, entry in entries.items()) + "names = obj.names\n"
    else:
        listing = "".join(f"- {name}\n" for name in names.values())
        mapping = "".join(f"  {n}: {name}\n" for n, name in names.items())
        splits = "".join(f"{split}: {json.dumps(entry)}\n" for split, entry in entries.items())
        files["it.yaml"] = f"{splits}names:\n{listing if listed else mapping}"
    manifest = reads_back(written, files, "yolo", folders, data="it.data" if "it.data" in files else "it.yaml")
    assert manifest.class_names == written.classes


@given(data_sets(), st.data())
@settings(max_examples=25, deadline=None)
def test_cvat_reads_back_what_is_written(written: Written, data: st.DataObject) -> None:
    one_file = data.draw(st.booleans())
    words = {
        "train": data.draw(st.sampled_from(["Train", "train"])),
        "test": data.draw(st.sampled_from(["Test", "test"])),
    }
    folders = {split: f"images/{words[split]}" if one_file else f"{split}/images" for split in APART}
    labels = "".join(f"<label><name>{escape(name)}</name></label>" for name in written.classes)
    inner: dict[str, str] = {}
    for split in APART:
        subset = f' subset="{words[split]}"' if one_file or data.draw(st.booleans()) else ""
        for n, (name, shown) in enumerate(written.split(split).items()):
            kind = data.draw(st.sampled_from(["box", "polygon", "tag", "mask"]))
            marks = "".join(f"<{kind} label={quoteattr(written.classes[c])}></{kind}>" for c in shown)
            inner[split] = inner.get(split, "") + f"<image id='{n}' name={quoteattr(name)}{subset}>{marks}</image>"
    if one_file:
        inner = {"": "".join(inner.values())}
    meta = f"<meta><task><labels>{labels}</labels></task></meta>"
    files: Files = {
        f"{split or '.'}/a.xml": f"<annotations>{meta}{content}</annotations>" for split, content in inner.items()
    }
    splits = {split: "a.xml" if one_file else f"{split}/a.xml" for split in APART}
    manifest = reads_back(written, files, "cvat", folders, splits=splits)
    assert manifest.class_names == written.classes
