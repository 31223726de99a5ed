"""From logits to what people act on: for each class a probability that is as often right as it says, a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import Field, NonNegativeFloat, model_validator
from scipy.special import expit

from cprfl.config import Config
from cprfl.data.files import read_record, write_record
from cprfl.data.long_tail import class_counts, groups
from cprfl.data.manifest import TEST, VALIDATION, Manifest
from cprfl.errors import CheckpointError
from cprfl.evaluation.blocks import row_blocks
from cprfl.evaluation.calibration import Calibration, calibrate
from cprfl.evaluation.metrics import predicted_images, read_predictions
from cprfl.evaluation.thresholds import Goal, choose_one, choose_thresholds

DECISIONS, HELD_OUT = "decisions.json", "held_out.parquet"
_VERSION = 1


class DecisionsConfig(Config):
    """When an image counts as showing a class; fitted on training images that the model has not seen.

    Those are the validation split where there is one, and else folds of the training images, each scored by a training
    without it. No weight of the model depends on these settings: `cprfl evaluate` fits anew what they ask for.

    Attributes:
        threshold: what it is for: the best ``f1``, or a wanted ``precision`` or ``recall``.
        wanted: that precision or recall, a fraction.
        one_for_all: one threshold instead of one for each class.
        calibration: a slope and an intercept for each class (``platt``), a slope (``temperature``), or the sigmoid of
            the logit as it is (``none``).
        shrinkage: how many positives a class's group counts as beside its own images; 0 lets each class stand alone.
        folds: how many, where nothing else has held images out; 3 unless given, and none (0) where the image tower has
            been trained on these images, since that takes as many further trainings of it.
    """

    threshold: Goal = "f1"
    wanted: float | None = Field(default=None, gt=0, le=1)
    one_for_all: bool = False
    calibration: Calibration = "platt"
    shrinkage: NonNegativeFloat = 10.0
    folds: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _a_wanted_value_has_its_goal(self) -> Self:
        if (self.wanted is None) != (self.threshold == "f1"):
            raise ValueError("decisions.wanted is the precision or recall that decisions.threshold is for; give both")
        if self.folds == 1:
            raise ValueError("decisions.folds: one fold holds all images out; give 2 or more, or 0 for none")
        return self


@dataclass(frozen=True)
class Decisions:
    """How the logits of a model are read; fitted on training images that the scored model had not seen.

    Shapes: N images, C classes.

    Attributes:
        class_names: of the C classes.
        slope_C: what a logit is multiplied by, before
        intercept_C: which is added, so that the sigmoid of it is a probability.
        threshold_C: probability from which on an image counts as showing the class.
        source: on which images they were fitted, in words; empty where they were not.
        short: names of the classes that had the wanted precision at no threshold.
    """

    class_names: tuple[str, ...]
    slope_C: np.ndarray
    intercept_C: np.ndarray
    threshold_C: np.ndarray
    source: str = ""
    short: tuple[str, ...] = ()

    @classmethod
    def unfitted(cls, class_names: Sequence[str]) -> Decisions:
        """The sigmoid of the logit as it is, and one half for every class."""
        count = len(class_names)
        return cls(tuple(class_names), np.ones(count), np.zeros(count), np.full(count, 0.5))

    @classmethod
    def fit(
        cls,
        logits_NC: np.ndarray,
        targets_NC: np.ndarray,
        class_names: Sequence[str],
        groups: Sequence[np.ndarray],
        config: DecisionsConfig,
        source: str,
    ) -> Decisions:
        """Calibrate the logits, then choose thresholds of the probabilities.

        Args:
            logits_NC: of images that the model has not seen.
            targets_NC: multi-hot, NaN where nobody knows.
            class_names: of the C classes.
            groups: indices of classes that lean on each other where positives are few.
            config: what is wanted.
            source: which images these are, in words.
        """
        slope_C, intercept_C = calibrate(logits_NC, targets_NC, groups, config.calibration, config.shrinkage)
        calibrated = replace(cls.unfitted(class_names), slope_C=slope_C, intercept_C=intercept_C, source=source)
        probabilities_NC = calibrated.probabilities(logits_NC)
        if config.one_for_all:
            threshold_C, reached = choose_one(probabilities_NC, targets_NC, config.threshold, config.wanted)
            return replace(calibrated, threshold_C=threshold_C, short=() if reached else tuple(class_names))
        threshold_C, short = choose_thresholds(
            probabilities_NC, targets_NC, groups, config.threshold, config.wanted, config.shrinkage
        )
        return replace(calibrated, threshold_C=threshold_C, short=tuple(class_names[label] for label in short))

    def probabilities(self, logits_NC: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [N, C]; within a class they rank images as the logits do."""
        probability_NC = np.empty(logits_NC.shape, dtype=np.float32)
        for rows in row_blocks(logits_NC.shape):
            probability_NC[rows] = expit(self.slope_C * logits_NC[rows] + self.intercept_C)
        return probability_NC

    def found(self, logits_NC: np.ndarray) -> np.ndarray:
        """Whether an image counts as showing a class, bool [N, C]."""
        found_NC = np.empty(logits_NC.shape, dtype=bool)
        for rows in row_blocks(logits_NC.shape):
            found_NC[rows] = self.probabilities(logits_NC[rows]) >= self.threshold_C.astype(np.float32)
        return found_NC

    def of_class(self, label: int, logits_N: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [N], of one class: a column of `probabilities`."""
        probability_N: np.ndarray = expit(self.slope_C[label] * logits_N + self.intercept_C[label]).astype(np.float32)
        return probability_N

    def write(self, checkpoint: Path) -> None:
        """Write into a checkpoint's folder."""
        rows = zip(self.class_names, self.slope_C, self.intercept_C, self.threshold_C, strict=True)
        classes = {
            name: {"slope": float(slope), "intercept": float(intercept), "threshold": float(threshold)}
            for name, slope, intercept, threshold in rows
        }
        values = {"version": _VERSION, "source": self.source, "short": self.short, "classes": classes}
        write_record(checkpoint / DECISIONS, values)

    @classmethod
    def read(cls, checkpoint: Path, class_names: Sequence[str]) -> Decisions:
        """What `write` wrote; the unfitted ones where a checkpoint has none.

        Raises:
            CheckpointError: where the file is damaged, of another version or of other classes.
        """
        path = checkpoint / DECISIONS
        if not path.exists():
            return cls.unfitted(class_names)
        values = read_record(path, CheckpointError, "train again")
        if values.get("version") != _VERSION:
            raise CheckpointError(f"{path}: of another version than {_VERSION}; train again")
        if unknown := set(class_names) - set(values["classes"]):
            raise CheckpointError(f"{path}: of other classes (without {min(unknown)!r}); train again")
        rows = [values["classes"][name] for name in class_names]
        slope_C, intercept_C, threshold_C = (
            np.array([row[key] for row in rows], dtype=float) for key in ("slope", "intercept", "threshold")
        )
        return cls(tuple(class_names), slope_C, intercept_C, threshold_C, values["source"], tuple(values["short"]))


def fit_decisions(checkpoint: Path, manifest: Manifest, config: DecisionsConfig) -> Decisions:
    """Fit to the held-out logits of a checkpoint (``held_out.parquet``), and write what comes of it beside them.

    Images that are gone, or have become test images, are left out; where none is left the decisions are unfitted.
    """
    listed = dict(zip(manifest.image_ids, manifest.splits, strict=True))
    ids = [name for name in predicted_images(checkpoint / HELD_OUT) if listed.get(name, TEST) != TEST]
    if not ids:
        unfitted = Decisions.unfitted(manifest.class_names)
        unfitted.write(checkpoint)
        return unfitted
    row = {image_id: number for number, image_id in enumerate(manifest.image_ids)}
    targets_NC = manifest.select(np.array([row[name] for name in ids])).targets(dtype=np.float16)
    members = groups(class_counts(manifest), manifest.groups.head, manifest.groups.tail)
    validated = all(listed[name] == VALIDATION for name in ids)
    source = f"{len(ids)} validation images" if validated else f"{len(ids)} training images, held out fold by fold"
    logits_NC = read_predictions(checkpoint / HELD_OUT, ids)
    found = Decisions.fit(logits_NC, targets_NC, manifest.class_names, list(members.values()), config, source)
    found.write(checkpoint)
    return found
