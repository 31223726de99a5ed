"""What a data set's report finds wrong, each with an example and what mends it: the worst first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from cprfl.data.manifest import TEST, TRAIN
from cprfl.data.readers.base import DatasetConfig
from cprfl.report.data_set.labels import SPLITS, LabelFacts
from cprfl.report.data_set.report import Copies, DataReport, Sized
from cprfl.report.data_set.scan import ELONGATED, TINY
from cprfl.report.mends import keep_together, more_tested
from cprfl.words import counted, named


@dataclass(frozen=True)
class Problem:
    """Something to mend, or to know of.

    Attributes:
        code: names the kind of problem.
        severity: ``error`` spoils results or stops the training, ``warning`` costs something, ``hint`` may be meant.
        title: what is wrong, with its count.
        example: where.
        mend: what to do.
    """

    code: str
    severity: Literal["error", "warning", "hint"]
    title: str
    example: str
    mend: str


def problems(report: DataReport) -> list[Problem]:
    """All that is wrong with a data set, by severity."""
    found = [*_of_copies(report), *_of_files(report), *_of_classes(report.labels, report.dataset), *_of_images(report)]
    return sorted(found, key=lambda problem: ("error", "warning", "hint").index(problem.severity))


def in_a_row(copies: Copies) -> str:
    """``a.jpg (train) = b.jpg (test)``, and what contradicts; ``~`` where the files are not the same."""
    splits = copies.leaks
    shown = [f"{image.image_id} ({image.split})" if splits else image.image_id for image in copies.images[:3]]
    more = [f"{len(copies.images) - 3} more"] if len(copies.images) > 3 else []
    differ = f": {named(copies.contradictory, 3)}" if copies.contradictory else ""
    return (" = " if copies.same_bytes else " ~ ").join([*shown, *more]) + differ


def _of_copies(report: DataReport) -> Iterator[Problem]:
    leaks, contradictions, repetitions = report.leaks, report.contradictions, report.repetitions
    if leaks:
        yield Problem(
            "leaks", "error",
            f"{counted(len(leaks), 'picture')} in more than one split: what is tested on was trained on",
            in_a_row(leaks[0]),
            keep_together(report.dataset),
        )  # fmt: skip
    if contradictions:
        yield Problem(
            "contradictions", "error",
            f"{counted(len(contradictions), 'picture')} with copies of different labels: one of them is wrong",
            in_a_row(contradictions[0]),
            "Correct the annotations, then leave one copy of each.",
        )  # fmt: skip
    if repetitions:
        yield Problem(
            "repetitions", "warning",
            f"{counted(len(repetitions), 'picture')} several times in one split",
            in_a_row(repetitions[0]),
            "Leave one copy of each: every copy counts anew, in loss and metrics.",
        )  # fmt: skip


def _of_files(report: DataReport) -> Iterator[Problem]:
    skips = report.dataset.on_bad_image == "skip"
    skip = f"dataset.on_bad_image: skip {'leaves them out' if skips else 'goes on'}"
    setting = " (dataset.images)" if "images" in type(report.dataset).model_fields else ""
    if report.missing:
        yield Problem(
            "missing", "warning" if skips else "error",
            f"{counted(len(report.missing), 'image')} of {report.num_images:,} missing",
            report.missing[0].uri,
            f"None is there: {report.elsewhere}." if report.elsewhere else f"Mend the paths{setting}; {skip}.",
        )  # fmt: skip
    if report.images is not None and report.images.bad:
        bad = report.images.bad
        yield Problem(
            "bad", "warning" if skips else "error",
            f"{counted(len(bad), 'image')} that cannot be read",
            f"{bad[0].image_id}: {bad[0].reason}",
            f"Mend the files; {skip}.",
        )  # fmt: skip


def _of_classes(labels: LabelFacts, dataset: DatasetConfig) -> Iterator[Problem]:
    unseen = [found.name for found in labels.classes if not found.images[TRAIN]]
    if unseen:
        yield Problem(
            "unseen", "warning",
            f"{counted(len(unseen), 'class')} without a training image",
            named(unseen, 5),
            "Add images, or train without: dataset.classes_without_images: leave_out.",
        )  # fmt: skip
    if not labels.images[TEST]:
        yield Problem(
            "no-test", "warning", "There is no test image", "",
            "Add images: there are too few for the share that dataset.split.test takes."
            if dataset.split is not None and dataset.split.test
            else "dataset.split: {test: 0.2} takes some for the test.",
        )  # fmt: skip
        return
    untested = [found.name for found in labels.classes if not found.images[TEST]]
    if untested:
        yield Problem(
            "untested", "warning",
            f"{counted(len(untested), 'class')} without a test image: no AP, left out of the means",
            named(untested, 5),
            more_tested(dataset),
        )  # fmt: skip


def _of_images(report: DataReport) -> Iterator[Problem]:
    without = report.labels.without_label
    if any(without.values()):
        yield Problem(
            "unlabelled", "hint",
            f"{counted(sum(map(len, without.values())), 'image')} without a label",
            ", ".join(f"{name} {len(without[name]):,}" for name in SPLITS if without[name])
            + f", such as {next(ids[0] for ids in without.values() if ids)}",
            _what_they_count_for(report.labels),
        )  # fmt: skip
    if report.images is None:
        return
    if report.images.one_colour:
        yield Problem(
            "one-colour", "warning",
            f"{counted(len(report.images.one_colour), 'image')} of one colour",
            named([image.image_id for image in report.images.one_colour], 3),
            "Nothing is to be seen on them: take them out.",
        )  # fmt: skip
    if report.images.tiny:
        yield Problem(
            "tiny", "hint",
            f"{counted(len(report.images.tiny), 'image')} less than {TINY} pixels wide or high",
            _with_size(report.images.tiny),
            "Scaled up they show little: find larger ones, or take them out.",
        )  # fmt: skip
    if report.images.elongated:
        yield Problem(
            "elongated", "hint",
            f"{counted(len(report.images.elongated), 'image')} at least {ELONGATED:g} times as long as wide",
            _with_size(report.images.elongated),
            "The encoder's square squashes or crops them (encoder.resize): cut them up.",
        )  # fmt: skip


def _what_they_count_for(labels: LabelFacts) -> str:
    """What images without a label tell a training."""
    mend = "take out those that nobody looked at"
    parts = []
    if labels.wholly_open:
        parts.append(f"{labels.wholly_open:,} count for nothing, as all their labels are unknown")
    if labels.partly_open:
        parts.append(f"{labels.partly_open:,} count only against the classes that they are known not to show")
    others = sum(map(len, labels.without_label.values())) - labels.wholly_open - labels.partly_open
    if not parts:
        return f"Each counts against every class: {mend}."
    return f"{'; '.join([*parts, *([f'the other {others:,} against every class: {mend}'] if others else [])])}."


def _with_size(images: Sequence[Sized]) -> str:
    return named([f"{found.image.image_id} ({found.width} x {found.height})" for found in images], 3)
