"""Checks of the images and labels that a model was trained and tested on."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cprfl.data.filesystems import is_remote
from cprfl.data.manifest import TEST
from cprfl.data.synthetic import SyntheticDataset
from cprfl.preparation import BAD_IMAGES
from cprfl.reading import SAME_CONTENT
from cprfl.report.checks.base import FEW, Check, Seen, Status
from cprfl.report.mends import keep_together
from cprfl.words import counted, percent

_HALF = 0.5
_MANY_BAD = 0.01  # of the images
_FEW_LEAKS = 0.01  # of the test images


def few_test_positives(seen: Seen) -> Check:
    """Whether classes are shown by so few test images that models cannot be compared on them."""
    code, few = "few-test-positives", (seen.positives_C > 0) & (seen.positives_C < FEW)
    if not few.any():
        return Check(code, f"Every class that is tested is shown by {FEW} test images or more", "passed",
                     "Intervals of single classes can be read.")  # fmt: skip
    tested = {group: classes[seen.positives_C[classes] > 0] for group, classes in seen.groups.items()}
    resting = [group for group, classes in tested.items() if len(classes) and few[classes].mean() > _HALF]
    so = f"; the mean of {' and '.join(resting)} rests mostly on them" if resting else ""
    classes = np.flatnonzero(few)
    return Check(
        code, f"{counted(len(classes), 'class')} shown by fewer than {FEW} test images{so}",
        "issue" if resting else "tip",
        f"Their AP moves by tens of points with a single image, which no interval makes up for: {seen.names(classes)}. "
        "Do not compare models on them; label more test images that show them.",
    )  # fmt: skip


def untested_classes(seen: Seen) -> Check:
    """Whether there are classes that no test image shows."""
    code, classes = "classes-without-test-images", np.flatnonzero(seen.positives_C == 0)
    if not len(classes):
        return Check(code, "Every class is tested", "passed", "Each is shown by a test image.")
    share = len(classes) / len(seen.positives_C)
    return Check(
        code, f"{counted(len(classes), 'class')} shown by no test image", "issue" if share > _HALF else "tip",
        f"Nothing is known of {seen.names(classes)}; they are in no mean. Label test images that show them, or leave "
        "them out (dataset.classes).",
    )  # fmt: skip


def leak(seen: Seen) -> Check:
    """Whether test images have the bytes of images that the model was trained on."""
    code, manifest = "leak", seen.results.manifest
    if isinstance(seen.results.experiment.dataset, SyntheticDataset):
        return Check(code, "The images are rendered", "not applicable", "Each scene is drawn anew.")
    if all(is_remote(uri) for uri in manifest.uris):
        return Check(code, "Remote images are not compared", "skipped",
                     "Copy the images to a local folder to have their files compared.")  # fmt: skip
    path = seen.results.folder / SAME_CONTENT
    pairs = [row for row in _rows(path) if TEST in (row["split"], row["same_as_split"])]
    if not pairs:
        return Check(code, "No test image has the content of another split's", "passed",
                     "Local files were compared byte by byte; near-duplicates are another check.")  # fmt: skip
    first = pairs[0]
    return Check(
        code, f"{counted(len(pairs), 'test image')} with the content of one in another split", "issue",
        f"It may have been trained on what it is tested on, such as {first['image_id']} = {first['same_as']}, so the "
        f"metrics are too high. {path.name} lists all pairs. {keep_together(seen.results.experiment.dataset)}",
    )  # fmt: skip


def near_duplicates_across_splits(seen: Seen) -> Check:
    """Whether test images show nearly the pictures of images in other splits."""
    code, results, pairs = "near-duplicates", seen.results, seen.findings.duplicates
    if pairs is None:
        status: Status = "not applicable" if results.store is None else "skipped"
        return Check(code, "Near-duplicates were not looked for", status, f"{seen.findings.no_duplicates}.")
    shared = [pair for pair in pairs if pair.leaks and TEST in pair.splits and pair.correlation is not None]
    if not shared:
        return Check(code, "No test image is nearly one of another split", "passed",
                     "Found by cached features, confirmed by pixels.")  # fmt: skip
    tested = {
        image for pair in shared for image, split in zip(pair.image_ids, pair.splits, strict=True) if split == TEST
    }
    many = len(tested) > _FEW_LEAKS * len(results.test)
    return Check(
        code, f"{counted(len(tested), 'test image')} nearly the same as one of another split",
        "issue" if many else "tip",
        f"Such as {' and '.join(shared[0].image_ids)}: another size, crop or exposure of a picture, or the next frame, "
        f"which is easier than a new one. {keep_together(results.experiment.dataset)}",
    )  # fmt: skip


def bad_images(seen: Seen) -> Check:
    """Whether images were left out because they could not be read."""
    code, path = "bad-images-skipped", seen.results.folder / BAD_IMAGES
    bad = list(_rows(path))
    if not bad:
        return Check(code, "Every image was read", "passed", "None is missing or damaged.")
    total = len(bad) + len(seen.results.manifest)
    return Check(
        code, f"{counted(len(bad), 'image')} of {total:,} left out", "issue" if len(bad) > _MANY_BAD * total else "tip",
        f"They are missing or do not decode, such as {bad[0]['image_id']} ({bad[0]['reason']}); they are neither "
        f"trained on nor tested. Mend them; {path.name} lists all.",
    )  # fmt: skip


def unknown_labels(seen: Seen) -> Check:
    """Whether there are labels that nobody knows, and how much of the test they take away."""
    code, manifest = "unknown-labels", seen.results.manifest
    if not manifest.unknown:
        return Check(code, "Every label is known", "not applicable", "The data set leaves none open.")
    share = sum(len({*own}) for own in manifest.unknown) / (len(manifest) * len(manifest.class_names))
    unknown_C = np.isnan(seen.targets_NC).mean(axis=0)
    most = np.argsort(-unknown_C, kind="stable")
    half = most[unknown_C[most] > _HALF]
    title = f"{percent(share)} of the labels are not known"
    if len(half):
        return Check(
            code, f"{title}; {counted(len(half), 'class')} mostly unknown in the test images", "issue",
            f"Their AP is that of the images that somebody looked at, which may be the easy ones: {seen.names(half)}. "
            "Label more test images of them.",
        )  # fmt: skip
    worst = f"; in the test images most of {seen.names(most[:1])} ({percent(unknown_C[most[0]])})"
    return Check(code, title, "tip", f"They are left out of losses and metrics{worst if unknown_C.any() else ''}. "
                 "Metrics are right where what is unknown was left open at random.")  # fmt: skip


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a table; none where it was not written."""
    if path.exists():
        with path.open(newline="") as file:
            yield from csv.DictReader(file)
