"""Which classes a model fails at, and what it takes them for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cprfl.data.long_tail import GroupName, class_counts, groups
from cprfl.evaluation.confusion import Company, confusions
from cprfl.report.results import Results
from cprfl.words import percent


@dataclass(frozen=True)
class ClassResult:
    """One class.

    Attributes:
        name: of the class.
        group: head, medium or tail.
        training_images: that show it.
        test_images: that show it.
        ap: test average precision, percent.
        false_positives: test images in which it is found and that do not show it.
        misses: test images that show it and in which it is not found.
        looked_at: of the false positives, the first ones, on which ``confused_with`` rests.
        confused_with: what those show instead, more often than by chance; none where nothing does.
    """

    name: str
    group: GroupName
    training_images: int
    test_images: int
    ap: float
    false_positives: int
    misses: int
    looked_at: int
    confused_with: Company | None

    @property
    def mistake(self) -> str:
        """``green circle (93% of 30)``, of the false positives that were looked at; empty where nothing stands out."""
        company = self.confused_with
        return f"{company.class_name} ({percent(company.share)} of {self.looked_at})" if company else ""


def worst_classes(results: Results, count: int) -> list[ClassResult]:
    """The classes of lowest test AP, the worst first; of those alone that a test image shows."""
    manifest, metrics, targets_NC = results.manifest, results.evaluation.metrics, results.test.targets(dtype=np.float16)
    training = class_counts(manifest)
    members = groups(training, manifest.groups.head, manifest.groups.tail)
    group_of = {int(label): group for group, labels in members.items() for label in labels}
    shown = [label for label, name in enumerate(manifest.class_names) if f"AP/{name}" in metrics]
    worst = sorted(shown, key=lambda label: metrics[f"AP/{manifest.class_names[label]}"])[:count]
    found_NC = results.decisions.found(results.logits)
    result = []
    mistaken = confusions(worst, results.logits, found_NC, targets_NC, manifest.class_names)
    for label, mistakes in zip(worst, mistaken, strict=True):
        name = manifest.class_names[label]
        result.append(ClassResult(
            name, group_of[label], int(training[label]), int((targets_NC[:, label] == 1).sum()), metrics[f"AP/{name}"],
            mistakes.false_positives, mistakes.misses, mistakes.looked_at,
            mistakes.shown_instead[0] if mistakes.shown_instead else None,
        ))  # fmt: skip
    return result
