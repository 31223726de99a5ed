"""A trained model as a person wants to see it: `ModelReport`, and how it is found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cprfl.evaluation.blocks import columns
from cprfl.evaluation.intervals import Bootstrap
from cprfl.evaluation.metrics import f1_of_counts
from cprfl.evaluation.reliability import calibration_error
from cprfl.report.checks.base import Check, Seen
from cprfl.report.checks.every import model_checks
from cprfl.report.findings.image_findings import ImageFindings
from cprfl.report.model.class_facts import AtThreshold, ClassFacts, class_facts
from cprfl.report.model.images_of_class import ImagesOfClass, how_many, images_of_class
from cprfl.report.results import Results


@dataclass(frozen=True)
class GroupFacts:
    """One group of classes, or all of them.

    Attributes:
        name: ``total``, ``head``, ``medium`` or ``tail``.
        classes: that it has.
        f1: CF1 of its classes at the model's thresholds, percent, as in the metrics; none where no image shows one.
        f1_half: likewise at 0.5 of the sigmoid of the logit.
        reliability: of all its classes' probabilities, as `cprfl.evaluation.reliability` gives it.
    """

    name: str
    classes: int
    f1: float | None
    f1_half: float | None
    reliability: list[dict[str, float | int]]

    @property
    def ece(self) -> float | None:
        """Expected calibration error, percent; none where nothing is known of its classes."""
        return calibration_error(self.reliability) if self.reliability else None


@dataclass(frozen=True)
class ModelReport:
    """What there is to know of a model.

    Attributes:
        results: what it was made from.
        intervals: mAP of it (`MODEL`) and of what it is compared with, in resamples of the test images.
        checks: what spoils its results, or does not.
        groups: the whole and the groups that have classes.
        classes: what it does with each class.
        images: which test images show that, of each class.
        findings: what it tells of the images themselves.
    """

    results: Results
    intervals: Bootstrap
    checks: tuple[Check, ...]
    groups: list[GroupFacts]
    classes: list[ClassFacts]
    images: list[ImagesOfClass]
    findings: ImageFindings

    @property
    def baselines(self) -> tuple[str, ...]:
        """Names of the models that it is compared with."""
        return self.intervals.models[1:]

    @property
    def ordered(self) -> list[ClassFacts]:
        """The classes, that of the lowest AP first; those that no test image shows come last."""
        return sorted(self.classes, key=lambda facts: (facts.ap is None, facts.ap or 0))


def model_report(results: Results) -> ModelReport:
    """Find out what there is to know of a model."""
    seen = Seen(results)
    intervals, decisions, classes = seen.precision, results.decisions, class_facts(seen)
    count = how_many(len(classes))
    images = [
        images_of_class(targets_N, decisions.of_class(label, logits_N), decisions.threshold_C[label], count)
        for label, (targets_N, logits_N) in enumerate(columns(seen.targets_NC, results.logits))
    ]
    found = [
        GroupFacts(
            name,
            len(own),
            _class_f1([classes[label].chosen for label in own]),
            _class_f1([classes[label].half for label in own]),
            seen.reliability[name].table() if name in seen.reliability else [],
        )
        for name, own in intervals.groups.items()
    ]
    return ModelReport(results, intervals, model_checks(seen), found, classes, images, seen.findings)


def _class_f1(counts: Sequence[AtThreshold]) -> float | None:
    """CF1, percent; none where no image shows one of the classes."""
    hits, named, positives = np.array([(at.found, at.found + at.false, at.found + at.missed) for at in counts]).T
    return f1_of_counts(np.stack([hits, named, positives]))["CF1"] if positives.any() else None
