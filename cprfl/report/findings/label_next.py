"""Which unlabelled images to label next: those that a model is unsure of, for rare classes, unlike each other.

Shapes: N images of the pool, M labelled ones, C classes, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import entr

from cprfl.report.findings.exports import Question, Value, write_csv

_AT_A_TIME = 1024  # labelled images that the pool is compared with


@dataclass(frozen=True)
class Chosen:
    """An image to label.

    Attributes:
        row: of the pool.
        score: what it was chosen by: falls from one to the next, but for what the choice of others changes.
        uncertainty: what the model's doubt about its rare classes is worth, before any image was chosen.
        distance: to the nearest image that is labelled, or was chosen before: 0 the same, 2 the opposite.
    """

    row: int
    score: float
    uncertainty: float
    distance: float


def label_next(
    probability_NC: np.ndarray, features_NF: np.ndarray, labelled_MF: np.ndarray, counts_C: np.ndarray, count: int
) -> list[Chosen]:
    """The images to label next, the best first.

    One after the other, the image with the largest

        sum over classes of H(p) / (1 + n)  times  sqrt(1 - cos)

    where H is the binary entropy of a class's probability (uncertainty sampling; Lewis & Gale, SIGIR 1994), n the
    images that show the class, labelled ones counted and those chosen so far expected, so that the rare class weighs
    more until it is no longer rare, and 1 - cos the distance to the nearest image that is labelled or chosen (the
    greedy k-centre of Sener & Savarese, ICLR 2018). docs/findings.md compares it with random and with its parts.

    Args:
        probability_NC: calibrated, of the pool's images.
        features_NF: of the pool's images.
        labelled_MF: of the labelled images; none where there are no features.
        counts_C: labelled images that show each class.
        count: how many to choose; all of the pool, if it has no more.
    """
    doubt_NC = (entr(probability_NC) + entr(1 - probability_NC)) / np.log(2)
    features_NF = _unit(features_NF)
    distance_N = _distance_to_nearest(features_NF, _unit(labelled_MF))
    expected_C, free_N = 1.0 + counts_C, np.ones(len(doubt_NC), dtype=bool)
    alone_N = doubt_NC @ (1 / expected_C)
    chosen: list[Chosen] = []
    for _ in range(min(count, len(doubt_NC))):
        score_N = np.where(free_N, doubt_NC @ (1 / expected_C) * np.sqrt(distance_N), -1.0)
        row = int(score_N.argmax())
        chosen.append(Chosen(row, float(score_N[row]), float(alone_N[row]), float(distance_N[row])))
        free_N[row] = False
        expected_C = expected_C + probability_NC[row]
        distance_N = np.minimum(distance_N, np.clip(1 - features_NF @ features_NF[row], 0, None))
    return chosen


def standardised(features_NF: np.ndarray, labelled_MF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the mean and deviation of all of them taken out: otherwise most of a cosine is what they share."""
    everything = np.concatenate([features_NF, labelled_MF]).astype(np.float32)
    mean_F, std_F = everything.mean(axis=0), everything.std(axis=0) + 1e-6
    return (features_NF - mean_F) / std_F, (labelled_MF - mean_F) / std_F


def _unit(features_NF: np.ndarray) -> np.ndarray:
    return features_NF / np.maximum(np.linalg.norm(features_NF, axis=1, keepdims=True), 1e-12)


def _distance_to_nearest(features_NF: np.ndarray, labelled_MF: np.ndarray) -> np.ndarray:
    """1 - cosine to the nearest labelled image, [N]; 1 where there is none."""
    distance_N = np.ones(len(features_NF), dtype=features_NF.dtype)
    for start in range(0, len(labelled_MF), _AT_A_TIME):
        nearest_N = 1 - (features_NF @ labelled_MF[start : start + _AT_A_TIME].T).max(axis=1)
        distance_N = np.clip(nearest_N if start == 0 else np.minimum(distance_N, nearest_N), 0, None)
    return distance_N


@dataclass(frozen=True)
class Next:
    """Images to label next, the best first.

    Attributes:
        uris: where they are.
        chosen: what each was chosen by.
        probability_NC: calibrated, of these images.
        found_NC: whether each reaches the threshold of the class.
        class_names: of the C classes.
    """

    uris: tuple[str, ...]
    chosen: tuple[Chosen, ...]
    probability_NC: np.ndarray
    found_NC: np.ndarray
    class_names: tuple[str, ...]

    def doubts(self, number: int, count: int) -> list[str]:
        """The classes that the model is least sure of in one of the images."""
        nearest = np.argsort(np.abs(self.probability_NC[number] - 0.5), kind="stable")[:count]
        return [self.class_names[label] for label in nearest]


def write_next(path: Path, found: Next) -> None:
    """Write a table of the images, the best first, with the probability of each class."""
    columns = ("image", "score", "uncertainty", "distance", "proposed", *found.class_names)
    write_csv(path, columns, [_row(found, number) for number in range(len(found.uris))])


def _row(found: Next, number: int) -> Sequence[Value]:
    chosen, proposed = found.chosen[number], ";".join(_proposed(found, number))
    scores = found.uris[number], chosen.score, chosen.uncertainty, chosen.distance
    return *scores, proposed, *found.probability_NC[number].tolist()


def _proposed(found: Next, number: int) -> dict[str, float]:
    labels = np.flatnonzero(found.found_NC[number]).tolist()
    return {found.class_names[label]: float(found.probability_NC[number, label]) for label in labels}


def questions(found: Next) -> list[Question]:
    """The images as files for annotation tools have them, with the labels that the model finds."""
    return [
        Question(uri, uri, _proposed(found, number), found.chosen[number].score)
        for number, uri in enumerate(found.uris)
    ]
