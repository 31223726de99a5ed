"""Which classes a model fails at."""

from __future__ import annotations

from dataclasses import dataclass

from cprfl.data.long_tail import GroupName, class_counts, groups
from cprfl.data.manifest import TEST, Manifest
from cprfl.evaluation.metrics import Evaluation


@dataclass(frozen=True)
class ClassResult:
    """One class: the images that show it, and its test AP in percent."""

    name: str
    group: GroupName
    training_images: int
    test_images: int
    ap: float


def worst_classes(manifest: Manifest, evaluation: Evaluation, count: int) -> list[ClassResult]:
    """The classes of lowest test AP, the worst first; of those alone that a test image shows."""
    training = class_counts(manifest)
    members = groups(training, manifest.groups.head, manifest.groups.tail)
    shown = [label for labels in manifest.split(TEST).labels for label in labels]
    results = [
        ClassResult(name, next(group for group, found in members.items() if label in found),
                    int(training[label]), shown.count(label), evaluation.metrics[f"AP/{name}"])
        for label, name in enumerate(manifest.class_names)
        if f"AP/{name}" in evaluation.metrics
    ]  # fmt: skip
    return sorted(results, key=lambda result: result.ap)[:count]
