"""What a model does with each class of the test images: its ranking, its threshold, how far its probabilities hold.

Shapes: N images, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cprfl.data.long_tail import GroupName, class_counts, groups
from cprfl.data.manifest import Manifest
from cprfl.evaluation.blocks import columns
from cprfl.evaluation.confusion import Confusion, confusions
from cprfl.evaluation.reliability import Bins, calibration_error
from cprfl.report.checks.base import Seen

BINS = 20  # of a histogram of scores
_POINTS = 60  # of a precision-recall curve, at most


@dataclass(frozen=True)
class AtThreshold:
    """What counting an image as showing the class from some probability on comes to.

    Attributes:
        threshold: the probability.
        found: images that show the class and were counted.
        false: images that do not, and were.
        missed: images that show it and were not.
    """

    threshold: float
    found: int
    false: int
    missed: int

    @property
    def precision(self) -> float | None:
        """Share of the counted images that show the class; none where no image was counted."""
        return self.found / (self.found + self.false) if self.found + self.false else None

    @property
    def recall(self) -> float | None:
        """Share of the class's images that were counted; none where no image shows it."""
        return self.found / (self.found + self.missed) if self.found + self.missed else None

    @property
    def f1(self) -> float | None:
        """F1, a fraction; none where no image shows the class."""
        positives = self.found + self.missed
        return 2 * self.found / (2 * self.found + self.false + self.missed) if positives else None


@dataclass(frozen=True)
class ClassFacts:
    """One class.

    Attributes:
        label: its column.
        name: as the data set spells it.
        group: by its training images.
        training_images: that show it.
        test_images: that show it.
        unknown: test images of which nobody knows, left out of everything here.
        ap: percent; none where no test image shows it.
        chosen: at the threshold of the model.
        half: at 0.5 of the sigmoid of the logit, as F1s are reported without thresholds.
        recall_P: recall at each hit, from the image of the highest score on; of long curves some points.
        precision_P: precision there.
        shown_B: share of the images that show it in each bin of probability.
        other_B: share of the others likewise.
        reliability: the bins of `cprfl.evaluation.reliability`.
        ece: expected calibration error, percent.
        confusion: what it is taken for, and what it comes with.
    """

    label: int
    name: str
    group: GroupName
    training_images: int
    test_images: int
    unknown: int
    ap: float | None
    chosen: AtThreshold
    half: AtThreshold
    recall_P: np.ndarray
    precision_P: np.ndarray
    shown_B: np.ndarray
    other_B: np.ndarray
    reliability: list[dict[str, float | int]]
    ece: float | None
    confusion: Confusion


def class_facts(seen: Seen) -> list[ClassFacts]:
    """The facts of each class, in the order of the classes."""
    results, targets_NC, found_NC = seen.results, seen.targets_NC, seen.found
    manifest, logits_NC = results.manifest, results.logits
    counts_C, group_C = class_counts(manifest), group_names(manifest)
    mistakes = confusions(range(len(manifest.class_names)), logits_NC, found_NC, targets_NC, manifest.class_names)
    facts = []
    for label, (targets_N, logits_N, found_N) in enumerate(columns(targets_NC, logits_NC, found_NC)):
        name, known_N = manifest.class_names[label], ~np.isnan(targets_N)
        shown_n, logits_n = targets_N[known_N] > 0, logits_N[known_N]
        probability_n = results.decisions.of_class(label, logits_n)
        threshold = float(results.decisions.threshold_C[label])
        bins = Bins()
        bins.add(probability_n, targets_N[known_N])
        table = bins.table()
        facts.append(
            ClassFacts(
                label, name, group_C[label], int(counts_C[label]), int(shown_n.sum()), int((~known_N).sum()),
                results.evaluation.metrics.get(f"AP/{name}"),
                _at(threshold, found_N[known_N], shown_n), _at(0.5, logits_n > 0, shown_n),
                *precision_recall(logits_n, shown_n),
                _histogram(probability_n[shown_n]), _histogram(probability_n[~shown_n]),
                table, calibration_error(table) if table else None,
                mistakes[label],
            )
        )  # fmt: skip
    return facts


def group_names(manifest: Manifest) -> list[GroupName]:
    """The group of each class."""
    members = groups(class_counts(manifest), manifest.groups.head, manifest.groups.tail)
    return [next(name for name, own in members.items() if label in own) for label in range(len(manifest.class_names))]


def _at(threshold: float, counted_N: np.ndarray, shown_N: np.ndarray) -> AtThreshold:
    found = int((counted_N & shown_N).sum())
    return AtThreshold(threshold, found, int(counted_N.sum()) - found, int(shown_N.sum()) - found)


def precision_recall(scores_N: np.ndarray, shown_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at the hits: tied scores are one step, so that the area below the steps is the AP."""
    order = np.argsort(-scores_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True)) if len(order) else np.array([], dtype=int)
    hits = np.cumsum(shown_N[order])[ends]
    kept = np.flatnonzero(np.diff(hits, prepend=0) > 0)
    if len(kept) > _POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, _POINTS).round().astype(int)]
    return hits[kept] / max(int(shown_N.sum()), 1), hits[kept] / (ends[kept] + 1)


def _histogram(probability_N: np.ndarray) -> np.ndarray:
    counts = np.histogram(probability_N, bins=BINS, range=(0, 1))[0]
    shares: np.ndarray = counts / max(int(counts.sum()), 1)
    return shares
