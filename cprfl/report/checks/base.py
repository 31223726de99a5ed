"""What a check of a model found: it always says whether it passed, so that silence is never success."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from cprfl.data.long_tail import class_counts, groups
from cprfl.evaluation.intervals import Bootstrap, bootstrap
from cprfl.evaluation.reliability import Bins, reliability
from cprfl.report.findings.image_findings import ImageFindings, image_findings
from cprfl.report.results import Results
from cprfl.words import named

Status = Literal["passed", "tip", "issue", "not applicable", "skipped"]
"""``skipped``: it could not be looked at, for a reason that the explanation gives."""

CODES = (
    "epoch-chosen-on-test", "leak", "near-duplicates", "below-linear-baseline", "below-zero-shot",
    "class-hidden-by-mean", "overfit", "calibration-off", "thresholds-not-fitted", "threshold-at-edge",
    "few-test-positives", "classes-without-test-images", "bad-images-skipped", "unknown-labels",
)  # fmt: skip
"""Of all checks; Dagster wants to know them before anything is checked."""

MODEL = "this model"
FEW = 5  # test images that show a class; of fewer, one image more or less moves its AP by a fifth


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        code: by which it is named everywhere, like ``below-linear-baseline``.
        title: what was found, in a few words.
        status: how it came out.
        explanation: why it matters and what to do, in a sentence or two.
    """

    code: str
    title: str
    status: Status
    explanation: str


class Seen:
    """What the checks look at, found out once for all of them.

    Shapes: N test images, C classes.

    Args:
        results: of the model.

    Attributes:
        results: of the model.
        targets_NC: of the test images.
        positives_C: test images that show each class.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.targets_NC = results.test.targets(dtype=np.float16)
        self.positives_C: np.ndarray = (self.targets_NC == 1).sum(axis=0)

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Class indices of head, medium and tail, as far as they have classes."""
        manifest = self.results.manifest
        found = groups(class_counts(manifest), manifest.groups.head, manifest.groups.tail)
        return {str(name): classes for name, classes in found.items() if len(classes)}

    @cached_property
    def found(self) -> np.ndarray:
        """Whether a test image counts as showing a class, as the model's decisions read its logits."""
        return self.results.decisions.found(self.results.logits)

    @cached_property
    def reliability(self) -> dict[str, Bins]:
        """How often the model's probabilities are right on the test images: all of them (``total``), and by group."""
        return reliability(self.results.decisions, self.results.logits, self.targets_NC, self.groups)

    @cached_property
    def precision(self) -> Bootstrap:
        """Average precision of the model (`MODEL`) and of the baselines, in resamples of the test images."""
        return bootstrap({MODEL: self.results.logits, **self.results.baselines}, self.targets_NC, self.groups)

    @cached_property
    def findings(self) -> ImageFindings:
        """What scores and features tell of the images themselves."""
        return image_findings(self.results)

    def names(self, classes: np.ndarray, count: int = 5) -> str:
        """The first of these classes by name, and how many more there are."""
        return named([self.results.manifest.class_names[label] for label in classes], count)
