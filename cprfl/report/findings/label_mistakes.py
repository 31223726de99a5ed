"""Labels that look like mistakes to a trained model: by its logits of images that it was not trained on.

docs/findings.md has the comparison with cleanlab's rankings that `confident_disagreement` was kept for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cprfl.data.manifest import TEST, Manifest
from cprfl.errors import FeatureStoreError
from cprfl.evaluation.decisions import HELD_OUT, Decisions
from cprfl.evaluation.metrics import predicted_images, read_predictions
from cprfl.report.findings.exports import Question, Value, write_csv
from cprfl.report.findings.label_noise import Suspect, least_credible, out_of_fold_logits, pooled_features, suspects
from cprfl.report.results import Results

COUNT = 50  # labels that are named unless another number is asked for
COLUMNS = ("image_id", "uri", "class", "labelled", "score", "usual", "margin", "calibrated")


def label_mistakes(results: Results, count: int = COUNT, *, second_opinion: bool = False) -> tuple[Suspect, ...]:
    """The least credible labels of the images that were held out of the model's training, the worst first.

    Without such logits (``held_out.parquet``) it is a logistic regression's out-of-fold opinion of the training images.

    Args:
        results: of the model.
        count: how many to name.
        second_opinion: average the model's logits with the regression's, where there are features. It finds more, and
            takes a minute for some thousand images of many classes.

    Raises:
        FeatureStoreError: where there are neither held-out logits nor features, as of a model whose image tower moved.
    """
    path = results.checkpoint / HELD_OUT
    if path.exists():
        images = _listed(results.manifest, predicted_images(path))
        logits_NC = read_predictions(path, images.image_ids)
        decisions = _calibration(results)
        if second_opinion and results.store is not None:
            other_NC = out_of_fold_logits(pooled_features(results.store, images), images.targets())
            logits_NC = np.where(np.isnan(other_NC), logits_NC, (logits_NC + other_NC) / 2)  # NaN: too few to fit to
            decisions = None  # which are of the model's own logits
        return least_credible(images, logits_NC, count, decisions)
    if results.store is None:
        raise FeatureStoreError(
            f"{results.folder}: no held-out logits and no features to tell label mistakes by; set "
            "train.validation: 0.2 and train again"
        )
    return suspects(results.manifest, results.store, count)


def _calibration(results: Results) -> Decisions | None:
    """What makes probabilities of the model's logits; none where nothing was fitted."""
    found = Decisions.read(results.checkpoint, results.manifest.class_names)
    plain = (found.slope_C == 1).all() and (found.intercept_C == 0).all()
    return None if plain else found


def _listed(manifest: Manifest, image_ids: Sequence[str]) -> Manifest:
    """The rows of these images, but for those that are tested on: what was scored twice is no longer held out."""
    wanted = set(image_ids)
    rows = [
        row
        for row, (image_id, split) in enumerate(zip(manifest.image_ids, manifest.splits, strict=True))
        if image_id in wanted and split != TEST
    ]
    return manifest.select(rows)


def write_label_mistakes(path: Path, found: Sequence[Suspect]) -> None:
    """Write ``label_mistakes.csv``, a row for each suspected label."""
    write_csv(path, COLUMNS, map(_row, found))


def _row(suspect: Suspect) -> tuple[Value, ...]:
    named = suspect.image_id, suspect.uri, suspect.class_name, int(suspect.labelled)
    return *named, suspect.score, suspect.usual, suspect.margin, int(suspect.calibrated)


def corrections(found: Sequence[Suspect], manifest: Manifest) -> list[Question]:
    """A question for each image with suspected labels, proposing its labels with these corrected, the worst first.

    Args:
        found: suspected labels.
        manifest: that has the images, with their labels.
    """
    row_of = {image_id: row for row, image_id in enumerate(manifest.image_ids)}
    of_image: dict[str, list[Suspect]] = {}
    for suspect in found:
        of_image.setdefault(suspect.image_id, []).append(suspect)
    return [_correction(own, manifest, row_of[image_id]) for image_id, own in of_image.items()]


def _correction(own: Sequence[Suspect], manifest: Manifest, row: int) -> Question:
    labels = [manifest.class_names[label] for label in manifest.labels[row]]
    wrong = {suspect.class_name for suspect in own if suspect.labelled}
    proposed = {name: 1.0 for name in labels if name not in wrong}
    proposed |= {suspect.class_name: suspect.score for suspect in own if not suspect.labelled}
    facts: dict[str, Value] = {
        "labels_now": ", ".join(labels),
        "doubtful": ", ".join(("not " if s.labelled else "also ") + s.class_name for s in own),
    }
    return Question(own[0].image_id, own[0].uri, proposed, float(np.max([s.margin for s in own])), facts)
