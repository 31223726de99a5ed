"""An experiment as a commented YAML file, and what was found as some lines."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cprfl.data.long_tail import class_counts, groups
from cprfl.data.manifest import TEST, TRAIN, VALIDATION, Manifest
from cprfl.starting.machine import Encoders
from cprfl.starting.reading import Reading
from cprfl.words import counted

_WIDTH = 110


def name_of(path: Path) -> str:
    """An experiment's name after a folder or file."""
    stem = path.absolute().stem if path.is_file() else path.absolute().name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._").lower()
    return name if name and name not in ("cache", "mlflow") else "experiment"


def document(path: Path, output: Path, reading: Reading, encoders: Encoders) -> str:
    """The YAML file of an experiment: what it says is what was found, what it is unsure of is a comment.

    Args:
        path: what was looked at.
        output: where the file will be, for the commands in its head.
        reading: how the data set is read.
        encoders: of images and class names.
    """
    root = path if path.is_dir() else path.parent
    lines = [
        f"# {reading.found}.",
        *(f"# Not read: {other}." for other in reading.others),
        "#",
        f"#   cprfl data {output}     # look at the data",
        f"#   cprfl run {output}      # train, test, register",
        f"name: {name_of(path)}",
        f"data_root: {_scalar(str(root.resolve()))}   # base of the paths below",
        "",
        "dataset:",
        *_section(reading.dataset, reading.unsure),
        *_classes(reading.manifest),
        "",
        f"# {encoders.why}.",
        "# Others: name: timm (DINOv2, SigLIP2, ConvNeXt, ...), open_clip, torchvision; `weights` names a local file.",
        "encoder:",
        *_section(encoders.encoder, {}),
        "",
        "text_encoder:",
        *_section(encoders.text_encoder, {}),
        "",
        "# Members, weights and epochs are chosen on folds of the training images; the test images are scored once.",
        "model:",
        "  name: auto",
        "",
        "train:",
        "  epochs: 30   # at most",
        "",
        "variants:",
        "  logistic-regression:   # the honest baseline: scikit-learn on the cached features",
        "    model: {name: logistic_regression}",
    ]
    return "\n".join(lines) + "\n"


def in_words(reading: Reading, encoders: Encoders) -> list[str]:
    """What was found, in about ten lines."""
    manifest, counts = reading.manifest, class_counts(reading.manifest)
    sizes = [f"{manifest.splits.count(name)} {name}" for name in (TRAIN, VALIDATION, TEST) if name in manifest.splits]
    dealt = " (dealt out: dataset.split)" if "split" in reading.dataset else ""
    empty = sum(not labels for labels in manifest.labels)
    order = np.argsort(counts, kind="stable")
    names = manifest.class_names
    rarest = ", ".join(f"{names[label]} {counts[label]}" for label in order[:3])
    most = ", ".join(f"{names[label]} {counts[label]}" for label in order[::-1][:3])
    per_image = sum(map(len, manifest.labels)) / len(manifest)
    members = {group: len(found) for group, found in groups(counts, manifest.groups.head, manifest.groups.tail).items()}
    return [
        f"found     {reading.found}",
        f"images    {len(manifest)}: {', '.join(sizes)}{dealt}",
        f"labels    {counted(len(names), 'class')}, {per_image:.1f} an image; {counted(empty, 'image')} without any",
        f"frequent  {most} (training images)",
        f"rare      {rarest}",
        f"groups    head >= {manifest.groups.head} ({members['head']}), medium ({members['medium']}), "
        f"tail < {manifest.groups.tail} ({members['tail']})",
        *(f"note      {note}" for note in manifest.notes),
        *(f"unsure    dataset.{setting}: {why}" for setting, why in reading.unsure.items()),
        f"encoder   {encoders.why}",
        "model     auto; beside it a logistic regression",
    ]


def _section(values: Mapping[str, Any], comments: Mapping[str, str]) -> Iterator[str]:
    """The lines of a section; a comment stands above its setting, or in its place."""
    for key, value in values.items():
        for line in textwrap.wrap(comments.get(key, ""), _WIDTH - 4):
            yield f"  # {line}"
        nested = isinstance(value, Mapping) and any(isinstance(inner, Mapping) for inner in value.values())
        flow = None if isinstance(value, Mapping | list) and not nested else False
        text = yaml.safe_dump({key: value}, default_flow_style=flow, sort_keys=False, allow_unicode=True, width=_WIDTH)
        yield from textwrap.indent(text.rstrip("\n"), "  ").split("\n")
    for key, comment in comments.items():
        if key not in values:
            yield from (f"  # {line}" for line in textwrap.wrap(f"{key}: {comment}", _WIDTH - 4))


def _classes(manifest: Manifest) -> Iterator[str]:
    names = [_scalar(name) for name in manifest.class_names[:12]]
    more = f", ... ({len(manifest.class_names)} in all)" if len(manifest.class_names) > 12 else ""
    yield from (
        f"  # {line}" for line in textwrap.wrap(f"classes: [{', '.join(names)}{more}]   # names and order", _WIDTH - 4)
    )


def _scalar(text: str) -> str:
    """A text as YAML writes it, in one line."""
    return yaml.safe_dump(text, default_style=None, allow_unicode=True, width=10**6).removesuffix("...\n").strip()
