"""From logits to what people act on: for each class a probability that is as often right as it says, a threshold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from cprfl.data.files import write_json
from cprfl.errors import CheckpointError

DECISIONS = "decisions.json"
_VERSION = 1


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
    """

    class_names: tuple[str, ...]
    slope_C: np.ndarray
    intercept_C: np.ndarray
    threshold_C: np.ndarray
    source: str = ""

    @classmethod
    def unfitted(cls, class_names: Sequence[str]) -> Decisions:
        """The sigmoid of the logit as it is, and one half for every class."""
        count = len(class_names)
        return cls(tuple(class_names), np.ones(count), np.zeros(count), np.full(count, 0.5))

    def probabilities(self, logits_NC: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [N, C]; within a class they rank images as the logits do."""
        return np.asarray(expit(self.slope_C * logits_NC + self.intercept_C), dtype=np.float32)

    def found(self, logits_NC: np.ndarray) -> np.ndarray:
        """Whether an image counts as showing a class, bool [N, C]."""
        return self.probabilities(logits_NC) >= self.threshold_C.astype(np.float32)

    def write(self, checkpoint: Path) -> None:
        """Write into a checkpoint's folder."""
        values = zip(self.class_names, self.slope_C, self.intercept_C, self.threshold_C, strict=True)
        classes = {
            name: {"slope": float(slope), "intercept": float(intercept), "threshold": float(threshold)}
            for name, slope, intercept, threshold in values
        }
        write_json(checkpoint / DECISIONS, {"version": _VERSION, "source": self.source, "classes": classes})

    @classmethod
    def read(cls, checkpoint: Path, class_names: Sequence[str]) -> Decisions:
        """What `write` wrote; the unfitted ones where a checkpoint has none.

        Raises:
            CheckpointError: where the file is damaged, of another version or of other classes.
        """
        path = checkpoint / DECISIONS
        if not path.exists():
            return cls.unfitted(class_names)
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            rows = [values["classes"][name] for name in class_names]
            slope_C, intercept_C, threshold_C = (
                np.array([row[key] for row in rows], dtype=float) for key in ("slope", "intercept", "threshold")
            )
            version, source = values["version"], str(values["source"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged, or of other classes ({error}); train again") from None
        if version != _VERSION:
            raise CheckpointError(f"{path}: of another version than {_VERSION}; train again")
        return cls(tuple(class_names), slope_C, intercept_C, threshold_C, source)
