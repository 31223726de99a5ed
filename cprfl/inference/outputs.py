"""Scores written as they come: a table for people, JSON, CSV and Parquet.

What is written when something ends it before its time is whole and can be read.
"""

from __future__ import annotations

import csv
import json
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cprfl.errors import ConfigError
from cprfl.evaluation.decisions import Decisions
from cprfl.inference.overlay import overlay
from cprfl.inference.streaming import ScoredImage
from cprfl.plain import no_formula, printable

Write = Callable[[Sequence[ScoredImage]], None]
"""Takes the next images."""

MARK = "*"  # of a class whose threshold the image reaches
_ROWS_PER_GROUP = 1024
_QUALITY = 88  # of overlays


def labels(probability_C: np.ndarray, decisions: Decisions) -> list[int]:
    """Numbers of the classes whose threshold is reached, the most probable first."""
    found = np.flatnonzero(probability_C >= decisions.threshold_C.astype(np.float32))
    return [int(label) for label in found[np.argsort(-probability_C[found], kind="stable")]]


def shown(probability_C: np.ndarray, decisions: Decisions, top: int | None, found_only: bool) -> list[int]:
    """Numbers of the classes to show: the ``top`` most probable ones, of all or of those that are `labels`."""
    ranked = [int(label) for label in np.argsort(-probability_C, kind="stable")]
    return (labels(probability_C, decisions) if found_only else ranked)[:top]


@contextmanager
def text_output(stream: TextIO, decisions: Decisions, top: int | None, found_only: bool) -> Iterator[Write]:
    """A line per image: ``PATH: dog 0.91*, cat 0.12``, marked where the threshold is reached."""

    def write(images: Sequence[ScoredImage]) -> None:
        for image in images:
            found = set(labels(image.probability_C, decisions))
            words = [
                f"{decisions.class_names[label]} {image.probability_C[label]:.2f}{MARK if label in found else ''}"
                for label in shown(image.probability_C, decisions, top, found_only)
            ]
            print(printable(f"{image.uri}: {', '.join(words) or 'no class'}"), file=stream)
        stream.flush()

    yield write


@contextmanager
def json_output(stream: TextIO, decisions: Decisions, top: int | None, found_only: bool) -> Iterator[Write]:
    """One JSON object, ``{PATH: {CLASS: PROBABILITY}}``."""
    separator = "{\n"

    def write(images: Sequence[ScoredImage]) -> None:
        nonlocal separator
        for image in images:
            chosen = shown(image.probability_C, decisions, top, found_only) if top or found_only else None
            values = {
                decisions.class_names[label]: float(image.probability_C[label])
                for label in (range(len(decisions.class_names)) if chosen is None else chosen)
            }
            stream.write(separator + json.dumps({image.uri: values}, indent=2, ensure_ascii=False)[2:-2])
            separator = ",\n"
        stream.flush()

    try:
        yield write
    finally:
        stream.write("{}\n" if separator == "{\n" else "\n}\n")
        stream.flush()


@contextmanager
def csv_output(path: Path, decisions: Decisions) -> Iterator[Write]:
    """A row per image: its path, the classes found, and a column of probabilities for each class."""
    with _kept_part(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(map(no_formula, ["image", "labels", *decisions.class_names]))

        def write(images: Sequence[ScoredImage]) -> None:
            for image in images:
                found = ";".join(decisions.class_names[label] for label in labels(image.probability_C, decisions))
                scores = [f"{probability:.6g}" for probability in image.probability_C.tolist()]
                writer.writerow([no_formula(image.uri), no_formula(found), *scores])

        yield write


@contextmanager
def parquet_output(path: Path, decisions: Decisions) -> Iterator[Write]:
    """Columns ``image``, ``labels`` (the classes found) and ``probabilities`` float32 [c], names in the metadata."""
    names = decisions.class_names
    schema = pa.schema(
        {"image": pa.string(), "labels": pa.list_(pa.string()), "probabilities": pa.list_(pa.float32(), len(names))},
        metadata={"class_names": json.dumps(names)},
    )
    waiting: list[ScoredImage] = []

    def flush(writer: pq.ParquetWriter) -> None:
        values = np.array([image.probability_C for image in waiting], dtype=np.float32).reshape(-1)
        found = [[names[label] for label in labels(image.probability_C, decisions)] for image in waiting]
        columns = [
            pa.array([image.uri for image in waiting], pa.string()),
            pa.array(found, schema.field("labels").type),
            pa.FixedSizeListArray.from_arrays(pa.array(values), len(names)),
        ]
        writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        waiting.clear()

    with _kept_part(path) as aside, pq.ParquetWriter(aside, schema) as writer:

        def write(images: Sequence[ScoredImage]) -> None:
            waiting.extend(images)
            if len(waiting) >= _ROWS_PER_GROUP:
                flush(writer)

        try:
            yield write
        finally:
            if waiting:
                flush(writer)


@contextmanager
def overlay_output(folder: Path, decisions: Decisions, top: int | None) -> Iterator[Write]:
    """A picture for each class found in an image, and for the most probable one where there is none.

    Files are called ``IMAGE.CLASS.jpg``, with a number behind an image's name that was there before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    times: Counter[str] = Counter()

    def write(images: Sequence[ScoredImage]) -> None:
        for image in images:
            assert image.look is not None
            stem = _file_name(PurePosixPath(image.uri).stem)
            times[stem.casefold()] += 1
            number = f"-{times[stem.casefold()]}" if times[stem.casefold()] > 1 else ""
            best = int(image.probability_C.argmax())
            for label in labels(image.probability_C, decisions)[:top] or [best]:
                drawn = overlay(image.look.picture, image.look.weights_CHW[label], image.look.seen)
                drawn.save(folder / f"{stem}{number}.{_file_name(decisions.class_names[label])}.jpg", quality=_QUALITY)

    yield write


def _file_name(text: str) -> str:
    """The text without what a file's name may not have, at most 80 characters."""
    return re.sub(r"[^\w.+-]+", "_", text).strip(".")[:80] or "_"


def check_output(path: Path) -> None:
    """See that a file may be written here.

    Raises:
        ConfigError: where it is a folder or a URI.
    """
    if "://" in str(path) or ":/" in str(path):
        raise ConfigError(f"{path}: results are written to local files; name one, and copy it from there")
    if path.is_dir():
        raise ConfigError(f"{path}: a folder; name a file in it, such as {path / 'scores'}{path.suffix or '.csv'}")


@contextmanager
def _kept_part(path: Path) -> Iterator[Path]:
    """A path beside ``path`` that becomes ``path`` in any case, with what has been written by then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield aside
    finally:
        if aside.exists():
            aside.replace(path)
