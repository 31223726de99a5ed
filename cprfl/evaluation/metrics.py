"""Average precision, head/medium/tail means, and overall and per-class F1 (as in the COCO multi-label literature)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cprfl.data.files import read_record, write_record
from cprfl.data.long_tail import groups
from cprfl.data.manifest import Groups
from cprfl.data.table_files import open_table, write_parts
from cprfl.errors import CheckpointError, NonFiniteError, ShapeError
from cprfl.evaluation.blocks import columns, row_blocks

EVALUATE_AGAIN = "`cprfl evaluate CONFIG` writes it anew"
_MADE_AGAIN = "`cprfl run CONFIG --again` makes it anew"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of scores against targets.

    Attributes:
        metrics: percent, under the names used everywhere (``mAP``, ``mAP_tail``, ``AP/<class>``, ``OF1``, ...); a
            group or class without positives has no entry.
        classes_without_positives: names of the classes that the images do not show, left out of every mean.
    """

    metrics: dict[str, float]
    classes_without_positives: list[str]

    def prefixed(self, split: str) -> dict[str, float]:
        """The metrics as ``split/name``."""
        return {f"{split}/{name}": value for name, value in self.metrics.items()}

    def write(self, path: Path, **more: Any) -> None:
        """Write ``evaluation.json``; ``more`` are further entries (protocol, checkpoint, ...)."""
        write_record(path, {**self.metrics, "classes_without_positives": self.classes_without_positives, **more})

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what `write` wrote; numbers with a fraction are metrics, counts are not.

        Raises:
            CheckpointError: where the file is missing or damaged.
        """
        values = read_record(path, CheckpointError, EVALUATE_AGAIN)
        metrics = {name: value for name, value in values.items() if isinstance(value, float)}
        return cls(metrics, values["classes_without_positives"])


def mean_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean average precision, percent, over the classes that the images show, as `average_precision` takes them."""
    return float(100 * np.nanmean(average_precision(scores, targets)))


def evaluate(
    scores: np.ndarray, targets: np.ndarray, class_names: tuple[str, ...], counts: np.ndarray, thresholds: Groups
) -> Evaluation:
    """All metrics of ``scores`` (logits [n, c]) against multi-hot ``targets`` [n, c], of which NaN ones are left out.

    Args:
        scores: logits; F1s are taken at sigmoid > 0.5, which is logit > 0, and for the three highest.
        targets: multi-hot, NaN where nobody knows.
        class_names: of the c columns.
        counts: training images per class, which make the groups.
        thresholds: of head and tail.

    Raises:
        ShapeError: where the shapes differ.
        NonFiniteError: where a score is NaN or infinite.
    """
    precision = average_precision(scores, targets)
    defined = ~np.isnan(precision)
    metrics = {"mAP": float(100 * precision[defined].mean())} if defined.any() else {}
    for name, classes in groups(counts, thresholds.head, thresholds.tail).items():
        members = classes[defined[classes]]
        if len(members):
            metrics[f"mAP_{name}"] = float(100 * precision[members].mean())
    for suffix, predict in (("", _above_zero), ("_top3", _top3)):
        parts = [count_hits(predict(scores[rows]), targets[rows]) for rows in row_blocks(scores.shape)]
        metrics |= {name + suffix: value for name, value in f1_of_counts(np.sum(parts, axis=0)).items()}
    metrics |= {f"AP/{class_names[i]}": float(100 * precision[i]) for i in np.flatnonzero(defined)}
    return Evaluation(metrics, [class_names[i] for i in np.flatnonzero(~defined)])


def average_precision(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of each class over the images of which it is known, a fraction, float64 [c].

    It is scikit-learn's (no interpolation; tied scores count as one threshold); NaN for a class without positives.

    Args:
        scores: of n images, [n, c].
        targets: multi-hot [n, c], NaN where nobody knows.

    Raises:
        ShapeError: where the shapes differ.
        NonFiniteError: where a score is NaN or infinite.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.shape != targets.shape or scores.ndim != 2:
        raise ShapeError(f"scores have shape {scores.shape}, targets {targets.shape}; both must be [images, classes]")
    for rows in row_blocks(scores.shape):
        if not (finite := np.isfinite(scores[rows])).all():
            image, label = np.argwhere(~finite)[0] + (rows.start, 0)
            raise NonFiniteError(f"scores[{image}, {label}] is {scores[image, label]}; nothing can be ranked by it")
    return np.array([_precision(scores_N, targets_N) for scores_N, targets_N in columns(scores, targets)])


def _precision(scores_N: np.ndarray, targets_N: np.ndarray) -> float:
    """Average precision of one class: the mean, over its positives, of the precision among all that score as high.

    Only the number of images above each positive is asked for, so values are sorted and not their places.
    """
    shown_P = np.sort(scores_N[targets_N > 0])
    if not len(shown_P):
        return float("nan")
    known_N = np.sort(scores_N[~np.isnan(targets_N)])
    hits_P = len(shown_P) - np.searchsorted(shown_P, shown_P)
    found_P = len(known_N) - np.searchsorted(known_N, shown_P)
    return float(np.mean(hits_P / found_P))


def _above_zero(scores: np.ndarray) -> np.ndarray:
    return scores > 0


def _top3(scores: np.ndarray) -> np.ndarray:
    """Whether a class is among the three that score highest in the image."""
    top3 = np.zeros_like(scores, dtype=bool)
    np.put_along_axis(top3, np.argsort(-scores, axis=1, kind="stable")[:, :3], True, axis=1)
    return top3


def f1_scores(predicted: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Overall and per-class precision, recall and F1 of boolean predictions, percent: OP, OR, OF1, CP, CR, CF1.

    Per-class precision and recall are averaged over the classes that have positives, and CF1 is the harmonic mean of
    the two averages; a class that is never predicted has precision 0. A prediction where the target is NaN, of which
    nobody knows, is neither right nor wrong.
    """
    return f1_of_counts(count_hits(predicted, targets))


def count_hits(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What `f1_of_counts` takes, int64 [3, c]: of each class the predictions that hit, all of them, the positives.

    Those of some images and those of the others add up to those of all.
    """
    predicted, wanted = predicted & ~np.isnan(targets), targets > 0
    return np.stack([chosen.sum(axis=0) for chosen in (predicted & wanted, predicted, wanted)])


def f1_of_counts(counts_3C: np.ndarray) -> dict[str, float]:
    """`f1_scores` of predictions that were counted (`count_hits`)."""
    hits, named, positives = counts_3C.astype(float)
    present = positives > 0
    overall = hits.sum() / max(named.sum(), 1), hits.sum() / max(positives.sum(), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean over no class at all
        per_class = (
            np.nan_to_num((hits / np.maximum(named, 1))[present].mean()),
            np.nan_to_num((hits / np.maximum(positives, 1))[present].mean()),
        )
    result: dict[str, float] = {}
    for letter, (precision, recall) in (("O", overall), ("C", per_class)):
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        result |= {f"{letter}P": precision, f"{letter}R": recall, f"{letter}F1": f1}
    return {name: float(100 * value) for name, value in result.items()}


def write_predictions(
    path: Path,
    image_ids: Sequence[str],
    scores: np.ndarray,
    class_names: tuple[str, ...],
    probabilities_of: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """``predictions.parquet``: image_id and scores float32 [c] (logits); class names in the schema's metadata.

    Calibrated probabilities float32 [c] stand beside them, where something makes them of logits.
    """
    lists = pa.list_(pa.float32(), scores.shape[1])
    fields = {"image_id": pa.string(), "scores": lists} | ({"probabilities": lists} if probabilities_of else {})
    schema = pa.schema(fields, metadata={"class_names": json.dumps(class_names)})

    def cells(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32, copy=False).ravel()), type=lists)

    def part(rows: slice) -> pa.Table:
        found = [pa.array(image_ids[rows], pa.string()), cells(scores[rows])]
        if probabilities_of:
            found.append(cells(probabilities_of(scores[rows])))
        return pa.table(found, schema=schema)

    write_parts(path, schema, map(part, row_blocks(scores.shape)))


def read_predictions(path: Path, image_ids: Sequence[str]) -> np.ndarray:
    """Logits float32 [n, c] of these images, from what `write_predictions` wrote.

    Raises:
        CheckpointError: where the file is missing or damaged.
        ShapeError: naming an image that has none.
    """
    with open_table(path, CheckpointError, _MADE_AGAIN) as table:
        row = {image_id: number for number, image_id in enumerate(_images(table))}
        absent = [image_id for image_id in image_ids if image_id not in row]
        if absent:
            raise ShapeError(f"{path}: no scores of image {absent[0]!r} and {len(absent) - 1} others; evaluate again")
        row_N = np.array([row[image_id] for image_id in image_ids], dtype=int)
        scores = np.empty((len(row_N), table.schema_arrow.field("scores").type.list_size), dtype=np.float32)
        start = 0
        for number in range(table.num_row_groups):
            part = table.read_row_group(number, columns=["scores"])["scores"].combine_chunks()
            here = (start <= row_N) & (row_N < start + len(part))
            scores[here] = part.flatten().to_numpy().reshape(len(part), scores.shape[1])[row_N[here] - start]
            start += len(part)
    return scores


def predicted_images(path: Path) -> list[str]:
    """Ids of the images in what `write_predictions` wrote.

    Raises:
        CheckpointError: where the file is missing or damaged.
    """
    with open_table(path, CheckpointError, _MADE_AGAIN) as table:
        return _images(table)


def _images(table: pq.ParquetFile) -> list[str]:
    ids: list[str] = table.read(columns=["image_id"])["image_id"].to_pylist()
    return ids
