"""Labels of which nobody knows, against deleting them by hand: metrics, counts, closed forms, a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression as ScikitLogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from cprfl.data.few_shot import episode_of, only_classes
from cprfl.data.long_tail import ParetoConfig, class_counts, hold_out, make_long_tailed
from cprfl.data.manifest import TEST, TRAIN, Groups, Manifest
from cprfl.encoders.base import Encoded
from cprfl.errors import DatasetError
from cprfl.evaluation import average_precision, evaluate, f1_scores
from cprfl.evaluation.comparison import bootstrap_gains
from cprfl.evaluation.intervals import drawn as drawn_images
from cprfl.evaluation.metrics import mean_precision
from cprfl.experiment import load
from cprfl.inference.scoring import evaluate_checkpoint, score_test_images
from cprfl.losses import AsymmetricLoss
from cprfl.models import MethodConfig
from cprfl.models.base import Facts
from cprfl.models.ensemble import fit_weights
from cprfl.models.gaussian_discriminant import discriminants
from cprfl.models.logistic_regression import solve
from cprfl.preparation import prepare
from cprfl.recipe import remove_resumable, train
from cprfl.training.checkpoint import load_weights
from cprfl.training.config import TrainConfig
from cprfl.training.objective import Objective
from cprfl.training.sampling import class_aware_rows
from tests.every_loss import CLASSES, COUNTS, drawn
from tests.every_method import METHODS, Images, facts, text_tower
from tests.helpers import manifest_of

IMAGES = 5
NAMES = tuple(f"class {number}" for number in range(CLASSES))


def unknown_in(manifest: Manifest, targets: np.ndarray, say: float) -> Manifest:
    """The manifest of these targets, whose labels say this or that of the classes of which nobody knows."""
    labels = tuple(tuple(np.flatnonzero(row).tolist()) for row in np.nan_to_num(targets, nan=say))
    return replace(
        manifest, labels=labels, unknown=tuple(tuple(np.flatnonzero(row).tolist()) for row in np.isnan(targets))
    )


# Metrics, against scikit-learn on what is left.


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(2, 30), tied=st.booleans())
def test_metrics_are_scikit_learns_of_what_is_left(seed: int, images: int, tied: bool) -> None:
    rng, targets = np.random.default_rng(seed), drawn(seed, images)
    scores = rng.integers(-2, 3, targets.shape).astype(float) if tied else rng.normal(size=targets.shape)
    known, shown = ~np.isnan(targets), [label for label in range(CLASSES) if (targets[:, label] == 1).any()]
    left = [known[:, label] for label in range(CLASSES)]
    expected = {c: average_precision_score(targets[left[c], c], scores[left[c], c]) for c in shown}
    found = average_precision(scores, targets)
    assert np.isnan(found).tolist() == [label not in shown for label in range(CLASSES)]
    assert found[shown] == pytest.approx(list(expected.values()))
    result = evaluate(scores, targets, NAMES, COUNTS, Groups(20, 5))
    assert {f"AP/{NAMES[c]}": pytest.approx(100 * value) for c, value in expected.items()}.items() <= (
        result.metrics.items()
    )
    if shown:
        assert result.metrics["mAP"] == mean_precision(scores, targets)
        assert result.metrics["mAP"] == pytest.approx(100 * np.mean(list(expected.values())))
    top3 = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1) < 3
    for suffix, predicted in (("", scores > 0), ("_top3", top3)):
        counted = {"zero_division": 0.0, "average": "binary"}
        overall = precision_recall_fscore_support(targets[known], predicted[known], **counted)[:3]
        each = [precision_recall_fscore_support(targets[left[c], c], predicted[left[c], c], **counted) for c in shown]
        names = [f"{name}{suffix}" for name in ("OP", "OR", "OF1", "CP", "CR")]
        means = [np.mean([one[place] for one in each]) if each else 0.0 for place in (0, 1)]
        assert [result.metrics[name] for name in names] == pytest.approx([100 * v for v in (*overall, *means)])
        assert f1_scores(predicted, targets)["OF1"] == result.metrics[f"OF1{suffix}"]


def test_the_bootstrap_takes_a_class_on_the_images_of_which_it_is_known() -> None:
    targets, rng = drawn(3, 40), np.random.default_rng(3)
    both = [np.nan_to_num(targets) + rng.normal(size=targets.shape) for _ in range(2)]
    found = bootstrap_gains(both[0], both[1], targets, 20, seed=1)
    weights = np.concatenate(list(drawn_images(40, 20, seed=1)), axis=1).T
    for gain, weight in zip(found, weights, strict=True):
        means = []
        for scores in both:
            known = [~np.isnan(targets[:, c]) & (weight > 0) for c in range(CLASSES)]
            means.append(np.mean([
                average_precision_score(targets[rows, c], scores[rows, c], sample_weight=weight[rows])
                for c, rows in enumerate(known) if (targets[rows, c] == 1).any()
            ]))  # fmt: skip
        assert gain == pytest.approx(100 * (means[0] - means[1]))


# Counts, and what is drawn by them.


@pytest.mark.parametrize("say", [0.0, 1.0])
def test_counts_are_of_the_images_known_to_show_a_class(say: float) -> None:
    targets = drawn(4, 60)
    manifest = unknown_in(manifest_of(np.zeros_like(targets)), targets, say)
    expected = [(targets[:, label] == 1).sum() for label in range(CLASSES)]
    assert class_counts(manifest).tolist() == expected
    assert class_counts(hold_out(manifest, np.arange(60) < 20)).tolist() == expected
    made = Facts.of_data(manifest, torch.eye(CLASSES), 8, 8)
    assert made.class_counts_C.tolist() == expected
    for label in range(CLASSES):
        both = [((targets[:, label] == 1) & (targets[:, other] == 1)).sum() for other in range(CLASSES)]
        assert made.co_occurrence_CC[label].tolist() == both


@pytest.mark.parametrize("say", [0.0, 1.0])
def test_what_is_unknown_is_drawn_as_what_is_not_shown(say: float) -> None:
    targets = drawn(4, 60)
    manifest = unknown_in(manifest_of(np.zeros_like(targets)), targets, say).with_classes(NAMES[:-1])
    plain = manifest_of(np.nan_to_num(targets)).with_classes(NAMES[:-1])
    tail = ParetoConfig(max_count=9, min_count=2)
    assert make_long_tailed(manifest, tail).image_ids == make_long_tailed(plain, tail).image_ids
    assert episode_of(manifest, 3, 0, 0).image_ids == episode_of(plain, 3, 0, 0).image_ids
    with pytest.raises(DatasetError, match=f"{(targets[:, 0] == 1).sum()} images show 'class 0', and"):
        episode_of(manifest, 50, 0, 0)
    if say == 0.0:  # as readers leave it: nothing is both shown and unknown
        assert only_classes(manifest, NAMES[:2]).image_ids == only_classes(plain, NAMES[:2]).image_ids
        assert (targets[class_aware_rows(manifest.labels, 0)] == 1).any(axis=1).all()


# What is fitted in closed form.


def test_each_class_of_a_regression_is_fitted_on_the_images_of_which_it_is_known() -> None:
    targets, features = drawn(5, 60), np.random.default_rng(5).normal(size=(60, 7))
    weights, biases = solve(features, targets, 0.3)
    for label in range(CLASSES - 1):
        rows = ~np.isnan(targets[:, label])
        reference = ScikitLogisticRegression(C=0.3, max_iter=1000).fit(features[rows], targets[rows, label])
        assert np.array_equal(weights[label], reference.coef_[0])
        assert biases[label] == reference.intercept_[0]
    assert not weights[-1].any()
    assert biases[-1] == 0


def test_means_and_frequencies_of_a_discriminant_are_those_of_the_known_images() -> None:
    targets, values = drawn(6, 60), np.random.default_rng(6).normal(size=(60, 7))
    values -= values.mean(axis=0)
    (weights,), (biases,) = discriminants(values, targets, [0.3])
    covariance = np.cov(values.T, bias=True)
    inverse = np.linalg.inv(0.7 * covariance + 0.3 * np.trace(covariance) / 7 * np.eye(7))
    for label in range(CLASSES - 1):
        shown, other = values[targets[:, label] == 1], values[targets[:, label] == 0]
        weight = inverse @ (shown.mean(axis=0) - other.mean(axis=0))
        odds = np.log((len(shown) + 0.5) / (len(other) + 0.5))
        assert np.allclose(weights[label], weight)
        assert biases[label] == pytest.approx(odds - weight @ (shown.mean(axis=0) + other.mean(axis=0)) / 2)
    assert not weights[-1].any()
    assert biases[-1] == 0


def test_fitted_members_are_weighed_on_known_entries() -> None:
    targets, rng = drawn(7, 60), np.random.default_rng(7)
    logits = np.nan_to_num(targets, nan=9.0) + rng.normal(size=targets.shape)
    (weight,), offset = fit_weights(logits[None], targets)
    known = ~np.isnan(targets)
    scale = logits.std()
    reference = ScikitLogisticRegression(C=np.inf).fit(logits[known][:, None] / scale, targets[known])
    assert weight == pytest.approx(reference.coef_[0, 0] / scale)
    assert offset == pytest.approx(reference.intercept_[0])


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_every_method_learns_from_what_is_known(config: MethodConfig) -> None:
    images = Images()
    truth = images.targets.clone()
    images.targets[torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.2] = torch.nan
    images.targets[0] = torch.nan
    torch.manual_seed(0)
    tower = text_tower() if config.needs_text_tower else None
    objective = Objective(config.build(facts(), tower), AsymmetricLoss(), TrainConfig())
    if config.folds:
        with torch.no_grad():
            logits = objective.method.eval().member_logits(images.grid.float(), images.summary.float())
        metrics = objective.method.weigh_members(torch.randn_like(logits) + truth, images.targets)
        assert np.isfinite(list(metrics.values())).all()
    objective.method.fit(images)
    assert torch.isfinite(images.scores_of(objective.method)).all()
    parameters = list(objective.trained_parameters().values())
    if parameters:
        parts = objective.train()(Encoded(images.grid, images.summary), images.targets)
        for gradient in torch.autograd.grad(sum(parts.values()), parameters):
            assert torch.isfinite(gradient).all()
            assert gradient.abs().max() > 0


SMALL = "{name: cprfl, standardize: true, dim: 32, num_heads: 2, head_dim: 16, mlp_dim: 32}"
MEMBERS = f"[{SMALL}, {{name: logistic_regression, num_folds: 2}}, {{name: gaussian_discriminant, num_folds: 2}}]"


def test_a_whole_training_does_not_see_what_is_under_the_mask(small_config: Path) -> None:
    fitted = f"model={{name: ensemble, weights: fitted, num_folds: 2, members: {MEMBERS}}}"
    chosen = ["train.epochs=3", "loss={name: distribution_balanced}", "train.validation=0.2", "train.select=best"]
    experiment = load(small_config, [fitted, *chosen])
    read = experiment.dataset.read()
    targets = read.targets()
    targets[np.random.default_rng(0).random(targets.shape) < 0.2] = np.nan
    results = []
    for say in (0.0, 1.0):
        prepared = prepare(experiment, manifest=unknown_in(read, targets, say), needs=[TEST])
        checkpoint = train(experiment, prepared)
        remove_resumable(experiment, prepared)
        scores = score_test_images(experiment, prepared, checkpoint)
        results.append((load_weights(checkpoint), scores, evaluate_checkpoint(experiment, prepared, checkpoint)))
    (weights, logits, result), (others, same_logits, same_result) = results
    assert np.array_equal(logits, same_logits)
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert result == same_result
    left = ~np.isnan(prepared.manifest.split(TEST).targets())
    assert 0 < left.mean() < 1
    assert np.isnan(prepared.manifest.split(TRAIN).targets()).any()
    known = prepare(experiment, manifest=unknown_in(read, np.nan_to_num(targets), 0.0))
    assert not np.array_equal(score_test_images(experiment, known, train(experiment, known)), logits)
