"""Labels that look like mistakes, by what a plain classifier thinks of images that it has not seen.

Shapes: N training images, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, log_expit
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from cprfl.data.feature_store import FeatureStore
from cprfl.data.manifest import TRAIN, Manifest
from cprfl.evaluation.blocks import row_blocks
from cprfl.evaluation.decisions import Decisions
from cprfl.models.logistic_regression import solve
from cprfl.models.pooled import fold_of_each, pooled
from cprfl.progress import progress

FOLDS = 5  # as many images must show a class, and not show it, for anything to be said of it
_COMPONENTS = 256  # of the features; what is left out is noise to a classifier of so few positives
_STRENGTH = 0.02  # scikit-learn's C
_ENOUGH = 3000  # images that show a class, and as many that do not, to fit it to
_BATCH = 256


@dataclass(frozen=True)
class Suspect:
    """A label of a training image that may be wrong.

    Attributes:
        image_id: of the image.
        uri: of the image.
        class_name: the class in question.
        labelled: whether the label says that the image shows it.
        score: how far the classifier takes it to show the class, from 0 to 1.
        usual: the mean of that over the images that are labelled with the class.
        margin: how sure the disagreement is, see `confident_disagreement`.
        calibrated: whether the score is a probability; else it is the sigmoid of a logit.
    """

    image_id: str
    uri: str
    class_name: str
    labelled: bool
    score: float
    usual: float
    margin: float
    calibrated: bool = False


class _Place(NamedTuple):
    """Where a label looks wrong, and how sure that is."""

    margin: float
    row: int
    label: int


def suspects(manifest: Manifest, store: FeatureStore, count: int) -> tuple[Suspect, ...]:
    """The least credible labels of the training images: half of them given and half missing, if there are so many.

    Args:
        manifest: the images.
        store: features of its training images; those without any are passed over.
        count: how many to name.
    """
    training = manifest.split(TRAIN)
    bad = {image.image_id for image in store.bad_images}
    training = training.select([row for row, image_id in enumerate(training.image_ids) if image_id not in bad])
    logits_NC = out_of_fold_logits(pooled_features(store, training), training.targets())
    return least_credible(training, logits_NC, count)


def least_credible(
    images: Manifest, logits_NC: np.ndarray, count: int, decisions: Decisions | None = None
) -> tuple[Suspect, ...]:
    """The least credible labels of these images, the worst first; half of them given and half missing ones.

    Where there are too few of one kind, there are more of the other. Which they are is told by the logits alone.

    Args:
        images: with their labels.
        logits_NC: of a classifier that has not seen them; NaN where it says nothing.
        count: how many to name.
        decisions: a calibration of these logits, where there is one.
    """

    def targets_of(rows: slice) -> np.ndarray:
        return images.targets(range(len(images))[rows])

    usual_2C = _mean_probabilities(logits_NC, targets_of)
    given, missing = list[_Place](), list[_Place]()
    for rows in row_blocks(logits_NC.shape):
        targets_BC = targets_of(rows)
        margin_BC = _margins(logits_NC[rows], targets_BC, usual_2C)
        given = _largest(given, np.where(targets_BC == 1, margin_BC, -np.inf), rows.start, count)
        missing = _largest(missing, np.where(targets_BC == 0, margin_BC, -np.inf), rows.start, count)
    num_given = max(min(len(given), count - count // 2), count - len(missing))
    read = Decisions.unfitted(images.class_names) if decisions is None else decisions
    shown_C = usual_2C[0] if decisions is None else _mean_probabilities(logits_NC, targets_of, read.probabilities)[0]
    kept = [(place, True) for place in given[:num_given]] + [(place, False) for place in missing[: count - num_given]]
    return tuple(
        Suspect(
            images.image_ids[row],
            images.uris[row],
            images.class_names[label],
            labelled=labelled,
            score=float(read.of_class(label, logits_NC[[row], label])[0]),
            usual=float(shown_C[label]),
            margin=margin,
            calibrated=decisions is not None,
        )
        for (margin, row, label), labelled in sorted(kept, key=lambda one: -one[0].margin)
    )


def pooled_features(store: FeatureStore, images: Manifest) -> np.ndarray:
    """Mean and maximum over the cells of each image, standardised and reduced to their principal components [N, F]."""
    row_of = {image_id: row for row, image_id in enumerate(images.image_ids)}
    result_NF = np.empty((len(images), 2 * store.grid_shape[1]), dtype=np.float32)
    batches = store.subset(images.image_ids).iter_batches(_BATCH, views="plain")
    for batch in progress(batches, len(images), "reading features", size=lambda batch: len(batch.image_ids)):
        result_NF[[row_of[image_id] for image_id in batch.image_ids]] = pooled(batch.grid_BVD.float()).numpy()
    scaled_NF = StandardScaler(copy=False).fit_transform(result_NF)
    return np.asarray(
        PCA(min(_COMPONENTS, *scaled_NF.shape), random_state=0).fit_transform(scaled_NF), dtype=np.float64
    )


def out_of_fold_logits(features_NF: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """Logits [N, C] of logistic regressions, each image's by those that were fitted without its fold.

    NaN for a class that fewer than `FOLDS` images show, or do not show. Images of which nobody knows whether they show
    a class are not fitted to.
    """
    fold_N = fold_of_each(targets_NC, FOLDS)
    logits_NC = np.full(targets_NC.shape, np.nan)
    enough = np.flatnonzero(np.minimum((targets_NC == 1).sum(axis=0), (targets_NC == 0).sum(axis=0)) >= FOLDS)
    for label in progress(enough.tolist(), len(enough), "looking for label noise, by class"):
        for fold in range(FOLDS):
            held_out_N = fold_N == fold
            weight_F, bias = _fitted(features_NF[~held_out_N], targets_NC[~held_out_N, label])
            logits_NC[held_out_N, label] = features_NF[held_out_N] @ weight_F + bias
    return logits_NC


def _fitted(features_NF: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights [F] and bias of one class's logistic regression.

    Where more images than are needed show the class, or do not show it, it is fitted to some of them, and the bias
    corrected for their share.
    """
    rows, correction = [], 0.0
    for value, sign in ((1, 1), (0, -1)):
        there = np.flatnonzero(targets_N == value)
        rows.append(np.random.default_rng(0).permutation(there)[:_ENOUGH])
        correction += sign * float(np.log(max(1.0, len(there) / _ENOUGH)))
    chosen = np.sort(np.concatenate(rows))
    weight_1F, bias_1 = solve(features_NF[chosen], targets_N[chosen, None], _STRENGTH)
    return weight_1F[0], float(bias_1[0]) + correction


def confident_disagreement(logits_NC: np.ndarray, targets_NC: np.ndarray) -> np.ndarray:
    """How much less credible a label is than those of its kind, [N, C]; -inf where the classifier does not disagree.

    A label's credibility is the probability that the classifier gives to what it says: p where the image is labelled
    with the class, 1 - p where it is not. Its margin is

        log(mean credibility of the labels of this class that say the same) - log(its credibility),

    so that a rare class, all of whose images get low probabilities, is measured by its own. The classifier disagrees
    where p is nearer to its mean over the images that are labelled the other way, a threshold of each class's own as in
    confident learning (Northcutt et al., JAIR 70, 2021).
    """
    return _margins(logits_NC, targets_NC, _mean_probabilities(logits_NC, targets_NC.__getitem__))


def _margins(logits_NC: np.ndarray, targets_NC: np.ndarray, usual_2C: np.ndarray) -> np.ndarray:
    """`confident_disagreement`, given the mean probability of each class where it is shown and where it is not."""
    log_p_NC, log_q_NC = log_expit(logits_NC), log_expit(-logits_NC)
    with_it_C, without_C = usual_2C
    middle_C = (with_it_C + without_C) / 2
    given_NC = (targets_NC == 1) & (np.exp(log_p_NC) < middle_C)
    missing_NC = (targets_NC == 0) & (np.exp(log_p_NC) > middle_C)
    with np.errstate(divide="ignore"):  # of a class that no image shows, or all do, where no label is looked at
        usual_log_2C = np.stack([np.log(with_it_C), np.log1p(-without_C)])
    margin_NC = np.where(given_NC, usual_log_2C[0] - log_p_NC, usual_log_2C[1] - log_q_NC)
    return np.where(given_NC | missing_NC, margin_NC, -np.inf)


def _mean_probabilities(
    logits_NC: np.ndarray,
    targets_of: Callable[[slice], np.ndarray],
    probabilities: Callable[[np.ndarray], np.ndarray] = expit,
) -> np.ndarray:
    """Mean probability of each class over the images with the label, and over those without, [2, C].

    Args:
        logits_NC: of the images.
        targets_of: targets of some of them.
        probabilities: of logits.
    """
    sums_2C = np.zeros((2, logits_NC.shape[1]), dtype=logits_NC.dtype)
    counts_2C = np.zeros(sums_2C.shape, dtype=int)
    for rows in row_blocks(logits_NC.shape):
        targets_BC = targets_of(rows)
        of_2BC = np.stack([targets_BC == 1, targets_BC == 0])
        p_2BC = probabilities(logits_NC[rows]) * of_2BC
        sums_2C = np.concatenate([sums_2C[:, None], p_2BC], axis=1).sum(axis=1)  # image by image, as if all at once
        counts_2C += of_2BC.sum(axis=1)
    return sums_2C / np.maximum(counts_2C, 1)


def _largest(found: list[_Place], margin_BC: np.ndarray, first_row: int, count: int) -> list[_Place]:
    """The largest finite margins, those found before among them, the largest first."""
    rows, labels = np.nonzero(np.isfinite(margin_BC))
    margin_P = margin_BC[rows, labels]
    best = np.argsort(-margin_P, kind="stable")[:count]
    more = zip(margin_P[best].tolist(), (rows[best] + first_row).tolist(), labels[best].tolist(), strict=True)
    return sorted([*found, *map(_Place._make, more)], key=lambda place: -place.margin)[:count]
