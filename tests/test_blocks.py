"""Matrices that are looked at a part at a time: the same results wherever parts end, and little memory beside them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.data.manifest import Groups, Manifest
from cprfl.errors import NonFiniteError
from cprfl.evaluation import blocks
from cprfl.evaluation.calibration import calibrate
from cprfl.evaluation.confusion import confusions
from cprfl.evaluation.decisions import Decisions
from cprfl.evaluation.intervals import bootstrap
from cprfl.evaluation.metrics import average_precision, evaluate, predicted_images, read_predictions, write_predictions
from cprfl.evaluation.reliability import decided_metrics
from cprfl.evaluation.thresholds import choose_thresholds
from cprfl.report.findings.label_noise import least_credible

GROUPS = {"head": np.array([0, 3]), "tail": np.array([1, 2, 4])}


def names_of(times: int) -> tuple[str, ...]:
    return tuple(map(str, range(5 * times)))


def images(count: int, times: int = 1) -> tuple[np.ndarray, Manifest]:
    """Logits, with ties, and labels of which some are unknown, of so many times five classes."""
    rng, names = np.random.default_rng(0), names_of(times)
    logits_NC = rng.normal(-1, 2, (count, len(names))).round(1).astype(np.float32)
    state_NC = np.where(
        rng.random(logits_NC.shape) < 0.1, 2, rng.random(logits_NC.shape) < 1 / (1 + np.exp(-logits_NC))
    )
    labels, unknown = (
        tuple(tuple(np.flatnonzero(row == value).tolist()) for row in state_NC) for value in (1, 2)
    )  # fmt: skip
    ids = tuple(map(str, range(count)))
    return logits_NC, Manifest(names, ids, ids, ("train",) * count, labels, unknown)


def decisions(z: np.ndarray) -> Decisions:
    count = z.shape[1]
    slope_C, offset_C, threshold_C = (np.linspace(low, high, count) for low, high in ((0.5, 1.5), (-1, 1), (0.2, 0.7)))
    return Decisions(names_of(count // 5), slope_C, offset_C, threshold_C)


def chosen(probabilities_NC: np.ndarray, targets_NC: np.ndarray) -> list[float]:
    return choose_thresholds(probabilities_NC, targets_NC, GROUPS.values(), "f1", None, 9)[0].tolist()


RESULTS: dict[str, Callable[[np.ndarray, np.ndarray, Manifest], object]] = {
    "metrics": lambda z, t, _: evaluate(z, t, names_of(z.shape[1] // 5), np.arange(z.shape[1]), Groups(3, 1)),
    "decided": lambda z, t, _: decided_metrics(decisions(z), z, t, GROUPS),
    "probabilities": lambda z, t, _: decisions(z).probabilities(z).tobytes(),
    "intervals": lambda z, t, _: bootstrap({"a": z, "b": -z}, t, GROUPS, resamples=9).resampled_MSC.tobytes(),
    "confusions": lambda z, t, _: confusions(range(5), z, decisions(z).found(z), t, names_of(1)),
    "thresholds": lambda z, t, _: chosen(decisions(z).probabilities(z), t),
    "mistakes": lambda z, _, manifest: least_credible(manifest, z, 12),
}  # fmt: skip


@given(count=st.integers(0, 40), classes=st.integers(1, 9), values=st.integers(1, 50))
def test_parts_are_the_whole(count: int, classes: int, values: int) -> None:
    matrix_NC = np.arange(count * classes).reshape(count, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_VALUES", values)
        parts = [matrix_NC[rows] for rows in blocks.row_blocks(matrix_NC.shape)]
        assert (np.concatenate(parts) == matrix_NC).all()
        assert all(part.size <= max(values, classes) for part in parts)
        columns = list(blocks.columns(matrix_NC, -matrix_NC))
    assert len(columns) == classes
    for label, (one_N, other_N) in enumerate(columns):
        assert (one_N == matrix_NC[:, label]).all()
        assert (other_N == -matrix_NC[:, label]).all()


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])  # of targets: half precision has 0, 1 and NaN
def test_results_do_not_depend_on_where_parts_end(name: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NC, manifest = images(301)
    targets_NC = manifest.targets()
    whole = RESULTS[name](logits_NC, targets_NC, manifest)
    monkeypatch.setattr(blocks, "_VALUES", 64)
    assert RESULTS[name](logits_NC, targets_NC.astype(dtype), manifest) == whole


@pytest.mark.parametrize("kind", ["platt", "temperature"])
def test_calibration_in_parts_differs_by_rounding_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NC, manifest = images(1000)

    def found() -> np.ndarray:
        return np.stack(calibrate(logits_NC, manifest.targets(), GROUPS.values(), kind, 10.0))  # type: ignore[arg-type]

    whole_2C = found()
    monkeypatch.setattr(blocks, "_VALUES", 64)
    assert found() == pytest.approx(whole_2C, rel=1e-4, abs=1e-5)
    assert np.ptp(whole_2C[0]) > 0


def test_a_score_that_is_no_number_is_named_in_any_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_VALUES", 10)
    logits_NC, manifest = images(50)
    logits_NC[33, 2] = np.inf
    with pytest.raises(NonFiniteError, match=r"scores\[33, 2\]"):
        average_precision(logits_NC, manifest.targets())


@pytest.mark.parametrize("name", ["metrics", "decided", "mistakes"])
def test_memory_beside_scores_and_labels_does_not_grow_with_the_images(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_VALUES", 4096)
    peaks = []
    for count in (1_000, 8_000):
        logits_NC, manifest = images(count, times=16)
        targets_NC = manifest.targets()
        tracemalloc.start()
        RESULTS[name](logits_NC, targets_NC, manifest)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + logits_NC.nbytes / 4


def test_predictions_in_parts_are_read_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits_NC, manifest = images(50)
    monkeypatch.setattr(blocks, "_VALUES", 35)  # seven images
    path, order = tmp_path / "p.parquet", np.random.default_rng(0).permutation(50)[:40]
    write_predictions(path, manifest.image_ids, logits_NC, manifest.class_names, decisions(logits_NC).probabilities)
    assert predicted_images(path) == list(manifest.image_ids)
    assert (read_predictions(path, [manifest.image_ids[row] for row in order]) == logits_NC[order]).all()
    written = pq.ParquetFile(path)
    assert written.num_row_groups == 8
    probabilities = np.array(written.read()["probabilities"].to_pylist(), dtype=np.float32)
    assert (probabilities == decisions(logits_NC).probabilities(logits_NC)).all()
    write_predictions(path, [], logits_NC[:0], manifest.class_names)
    assert read_predictions(path, []).shape == (0, 5)
