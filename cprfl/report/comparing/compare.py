"""Models side by side, on the images and classes that all of them were tested on.

Shapes: M models, N images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cprfl.config import flatten
from cprfl.data.images import Reading
from cprfl.data.long_tail import GroupName, class_counts, groups
from cprfl.data.manifest import Manifest
from cprfl.errors import DatasetError
from cprfl.evaluation.intervals import Bootstrap, Interval, bootstrap
from cprfl.report.results import Results
from cprfl.words import counted, named

_NOT_OF_THE_MODEL = ("name", "variants", "promotion", "resources", "output_dir", "feature_dir", "data_root")


@dataclass(frozen=True)
class Gain:
    """What a model has over the first one on one class.

    Attributes:
        class_name: of the class.
        group: of the class.
        training_images: that show it, of the first model's.
        test_images: that show it, of those that are compared on.
        before: AP of the first model, percent.
        after: AP of the other.
        gain: points between them.
    """

    class_name: str
    group: GroupName
    training_images: int
    test_images: int
    before: float
    after: float
    gain: Interval


@dataclass(frozen=True)
class Compared:
    """Two or more models on the same images and classes.

    Attributes:
        names: of the M models; the others are compared with the first.
        images: the N images, with the labels that the first model was tested on, of the C classes.
        training_C: training images that show each class, of the first model's.
        group_C: the group of each class.
        probability_MNC: of each model, as its decisions read its logits.
        precision: average precision in resamples of the images.
        left_out: what not all of them know, a sentence each.
        settings: those that differ, by their paths; for each model its value, or nothing.
        reading: how image files are read.
    """

    names: tuple[str, ...]
    images: Manifest
    training_C: np.ndarray
    group_C: tuple[GroupName, ...]
    probability_MNC: np.ndarray
    precision: Bootstrap
    left_out: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    reading: Reading

    def class_gains(self, other: str) -> list[Gain]:
        """What a model has over the first on each class that an image shows, the most gained first."""
        first, after = (self.names.index(name) for name in (self.names[0], other))
        positives_C = self.images.positives
        gains = self.precision.class_gains(other, self.names[0])
        found = [
            Gain(
                self.images.class_names[label], self.group_C[label], int(self.training_C[label]),
                int(positives_C[label]), float(self.precision.precision_MC[first, label]),
                float(self.precision.precision_MC[after, label]), gain,
            )
            for label, gain in enumerate(gains) if gain is not None
        ]  # fmt: skip
        return sorted(found, key=lambda one: -one.gain.value)

    def disagreements(self, count: int) -> np.ndarray:
        """Numbers of the images on which the models' probabilities differ most, added up over the classes."""
        apart_N = np.ptp(self.probability_MNC, axis=0).sum(axis=1)
        return np.argsort(-apart_N, kind="stable")[:count]


def compare_results(runs: Mapping[str, Results]) -> Compared:
    """Compare models that were tested on some of the same images and classes.

    Args:
        runs: results by the names under which they are shown; the first is what the others are compared with.

    Raises:
        DatasetError: where there are fewer than two, or they have no test image, or no class, in common.
    """
    if len(runs) < 2:
        raise DatasetError("compare: give two runs or more")
    names, results = tuple(runs), list(runs.values())
    first = results[0]
    shared = set.intersection(*(set(each.manifest.class_names) for each in results))
    there = set.intersection(*(set(each.test.image_ids) for each in results))
    if not shared or not there:
        what = "class" if not shared else "test image"
        raise DatasetError(f"compare: {named(names)} have no {what} in common, by name; compare runs on the same data")
    images = _common(first, there, shared)
    labels = [first.manifest.class_names.index(name) for name in images.class_names]
    training_C = class_counts(first.manifest)[labels]
    members = groups(training_C, images.groups.head, images.groups.tail)
    logits = {name: _logits(each, images) for name, each in runs.items()}
    probabilities = [_probabilities(each, logits[name], images) for name, each in runs.items()]
    return Compared(
        names,
        images,
        training_C,
        tuple(next(group for group, own in members.items() if label in own) for label in range(len(labels))),
        np.stack(probabilities),
        bootstrap(logits, images.targets(), {str(group): own for group, own in members.items()}),
        tuple(_left_out(runs, images)),
        _differing(runs),
        first.experiment.encoder.reading,
    )


def _common(results: Results, image_ids: set[str], class_names: set[str]) -> Manifest:
    rows = [row for row, image_id in enumerate(results.test.image_ids) if image_id in image_ids]
    return results.test.select(rows).with_classes(class_names)


def _logits(results: Results, images: Manifest) -> np.ndarray:
    """Of these images and classes, in their order."""
    row = {image_id: number for number, image_id in enumerate(results.test.image_ids)}
    column = {name: number for number, name in enumerate(results.manifest.class_names)}
    rows, columns = [row[name] for name in images.image_ids], [column[name] for name in images.class_names]
    return results.logits[np.ix_(rows, columns)]


def _probabilities(results: Results, logits_NC: np.ndarray, images: Manifest) -> np.ndarray:
    labels = [results.decisions.class_names.index(name) for name in images.class_names]
    decisions = results.decisions
    of_these = replace(
        decisions, class_names=images.class_names, slope_C=decisions.slope_C[labels],
        intercept_C=decisions.intercept_C[labels], threshold_C=decisions.threshold_C[labels],
    )  # fmt: skip
    return of_these.probabilities(logits_NC)


def _left_out(runs: Mapping[str, Results], images: Manifest) -> Iterator[str]:
    """What single runs have that is not compared, and where they say something else of the same images."""
    shared, there = set(images.class_names), set(images.image_ids)
    targets_NC = images.targets()
    for name, results in runs.items():
        own = [other for other in results.manifest.class_names if other not in shared]
        if own:
            yield f"{name}: left out {counted(len(own), 'class')} that not all have: {named(own, 5)}"
        lost = len(results.test) - len(there)
        if lost:
            yield f"{name}: left out {counted(lost, 'test image')} that not all have"
        order = {image_id: number for number, image_id in enumerate(images.image_ids)}
        same = _common(results, there, shared)
        other_NC = same.targets()[:, [same.class_names.index(each) for each in images.class_names]]
        mine_NC = targets_NC[[order[image_id] for image_id in same.image_ids]]
        differ = int((~((mine_NC == other_NC) | (np.isnan(mine_NC) & np.isnan(other_NC)))).sum())
        if differ:
            yield f"{name}: {counted(differ, 'label')} of the test images differ; those of {next(iter(runs))} are taken"
        if results.experiment.protocol == "published":
            yield f"{name}: its epoch was chosen on the test images, so that its figures are too high"


def _differing(runs: Mapping[str, Results]) -> dict[str, tuple[str, ...]]:
    """Settings that differ, without those that change no model."""
    values = [flatten(results.experiment.model_dump(mode="json")) for results in runs.values()]
    paths = sorted({path for one in values for path in one if path.split(".")[0] not in _NOT_OF_THE_MODEL})
    shown = {path: tuple(one.get(path, "") for one in values) for path in paths}
    return {path: found for path, found in shown.items() if len(set(found)) > 1}
