"""Metrics against scikit-learn and the reference values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from cprfl.data.manifest import Groups
from cprfl.errors import NonFiniteError, ShapeError
from cprfl.evaluation import Evaluation, average_precision, evaluate, f1_scores
from cprfl.evaluation.metrics import predicted_images, read_predictions, write_predictions


def test_metrics_are_the_reference_ones(shared: Path) -> None:
    golden = np.load(shared / "golden" / "metrics.npz")
    scores, targets = golden["scores"], golden["targets"]
    assert np.allclose(average_precision(scores, targets), golden["average_precision"], rtol=0, atol=1e-12)
    names = tuple(f"c{i}" for i in range(20))
    metrics = evaluate(scores, targets, names, np.arange(20) * 10, Groups()).metrics
    keys = ["OP", "OR", "OF1", "CP", "CR", "CF1"]
    at_half = golden["overall_precision_recall_f1_perclass_precision_recall_f1_at_0_5"]
    assert [metrics[key] for key in keys] == pytest.approx(100 * at_half)
    assert [metrics[f"{key}_top3"] for key in keys] == pytest.approx(100 * golden["same_top3"])


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 10_000))
def test_average_precision_is_scikit_learn_s_with_ties_and_absent_classes(n: int, c: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, targets = rng.integers(0, 4, size=(n, c)).astype(float), rng.random((n, c)) < 0.3
    ours = average_precision(scores, targets)
    for label in range(c):
        if targets[:, label].any():
            theirs = average_precision_score(targets[:, label], scores[:, label])
            assert ours[label] == pytest.approx(theirs, rel=0, abs=1e-12)
        else:
            assert np.isnan(ours[label])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.sampled_from(["float32", "float64", "int64"]), st.integers(0, 10_000))
def test_average_precision_leaves_out_what_nobody_knows(n: int, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = (5 * rng.normal(size=(n, 2))).astype(kind)
    targets = np.where(rng.random((n, 2)) < 0.3, np.nan, rng.random((n, 2)) < 0.2)
    ours = average_precision(scores, targets)
    for label in range(2):
        known = ~np.isnan(targets[:, label])
        if (targets[known, label] > 0).any():
            theirs = average_precision_score(targets[known, label], scores[known, label])
            assert ours[label] == pytest.approx(theirs, rel=0, abs=1e-12)
        else:
            assert np.isnan(ours[label])


def test_probabilities_stand_beside_the_logits(tmp_path: Path) -> None:
    scores = np.array([[0.0, 1.0], [2.0, 3.0]])
    write_predictions(tmp_path / "p.parquet", ["a", "b"], scores, ("x", "y"), lambda logits: logits / 4)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["image_id", "scores", "probabilities"]
    assert table["probabilities"].to_pylist() == (scores / 4).tolist()
    assert (read_predictions(tmp_path / "p.parquet", ["b"]) == scores[1:]).all()
    assert predicted_images(tmp_path / "p.parquet") == ["a", "b"]


def test_a_class_without_positives_is_reported_and_left_out(tmp_path: Path) -> None:
    scores = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]])
    targets = np.array([[1, 0, 0], [0, 0, 1]])
    result = evaluate(scores, targets, ("a", "b", "c"), np.array([200, 50, 3]), Groups())
    assert result.classes_without_positives == ["b"]
    assert result.metrics["mAP"] == pytest.approx(100 * (1.0 + 0.5) / 2)
    assert "mAP_medium" not in result.metrics
    assert "AP/b" not in result.metrics
    result.write(tmp_path / "evaluation.json", protocol="honest")
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["classes_without_positives"] == ["b"]
    assert written["mAP_tail"] == pytest.approx(50)


def test_overall_f1_is_the_micro_average() -> None:
    rng = np.random.default_rng(0)
    predicted, targets = rng.random((40, 6)) < 0.4, rng.random((40, 6)) < 0.3
    ours = f1_scores(predicted, targets)
    precision, recall, f1, _ = precision_recall_fscore_support(targets, predicted, average="micro")
    assert [ours["OP"], ours["OR"], ours["OF1"]] == pytest.approx([100 * precision, 100 * recall, 100 * f1])


def test_scores_that_do_not_fit_or_are_not_finite_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\).*\(2, 4\)"):
        average_precision(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(NonFiniteError, match=r"scores\[1, 0\] is nan"):
        average_precision(np.array([[0.0], [np.nan]]), np.ones((2, 1)))


def test_scores_are_joined_by_id_and_never_by_position(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [f"image {number}" for number in range(7)]
    scores = rng.normal(size=(7, 3)).astype(np.float32)
    write_predictions(tmp_path / "p.parquet", ids, scores, ("a", "b", "c"))
    order = rng.permutation(7)[:5]
    assert np.array_equal(read_predictions(tmp_path / "p.parquet", [ids[row] for row in order]), scores[order])
    with pytest.raises(ShapeError, match="no scores of image 'another' and 0 others"):
        read_predictions(tmp_path / "p.parquet", [ids[0], "another"])


def test_an_evaluation_is_read_back(tmp_path: Path) -> None:
    targets = np.array([[1, 0], [0, 1], [1, 0]])
    result = evaluate(np.eye(3, 2), targets, ("a", "b"), np.array([9, 1]), Groups())
    result.write(tmp_path / "evaluation.json", images=3, epoch=4)
    assert Evaluation.read(tmp_path / "evaluation.json") == result
