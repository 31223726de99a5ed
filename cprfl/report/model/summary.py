"""What was run and what came of it, in two sentences."""

from __future__ import annotations

from cprfl.data.long_tail import num_training_images
from cprfl.evaluation.intervals import Interval
from cprfl.report.checks.base import MODEL
from cprfl.report.model.report import ModelReport
from cprfl.words import counted

NAMES = {"logistic_regression": "logistic regression", "zero_shot": "zero-shot", "champion": "champion"}
"""How models that others are compared with are called in prose."""


def in_words(name: str) -> str:
    """A baseline's name."""
    return NAMES.get(name, name.replace("_", " "))


def what_was_run(report: ModelReport) -> str:
    """The method, what it looks at, and what it was trained on."""
    experiment, manifest = report.results.experiment, report.results.manifest
    tower = experiment.tower_training
    encoder = f"{experiment.encoder.name} {experiment.encoder.model}"
    on = f"cached features of {encoder}"
    if tower is not None:
        on = f"{encoder}, whose image tower was trained ({tower.backbone})"
    epochs = f" for {counted(report.results.info.epoch, 'epoch')}" if report.results.info.epoch else ""
    return (
        f"{experiment.model.name} on {on}, fitted{epochs} to {counted(num_training_images(manifest), 'image')} of "
        f"{counted(len(manifest.class_names), 'class')}."
    )


def what_came_of_it(report: ModelReport) -> str:
    """Its mAP on the test images, beside the first of the models that it is compared with."""
    images = counted(len(report.results.test), "test image")
    reached = report.intervals.mean(MODEL)
    if reached is None:
        return f"None of the {images} shows a class, so nothing can be said of it."
    said = f"On {images} it reaches {reached.value:.1f} % mAP"
    for name in report.baselines[:1] if "logistic_regression" not in report.baselines else ["logistic_regression"]:
        gain = report.intervals.gain(MODEL, name)
        if gain is not None:
            said += f", {beside(gain)} {'a ' if name == 'logistic_regression' else ''}{in_words(name)}"
    tail = report.intervals.mean(MODEL, "tail") if "tail" in report.intervals.groups else None
    return said + (f"; on the tail alone, {tail.value:.1f} %." if tail is not None else ".")


def beside(gain: Interval) -> str:
    """A difference in words; one whose interval has zero in it is not told from none."""
    points = f"{abs(gain.value):.1f} points"
    if gain.above_zero:
        return f"{points} above"
    return f"{points} below" if gain.below_zero else "not to be told from"
