"""Numbers of a model that stand in several places are the same there, or say how they differ."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cprfl.evaluation import f1_scores
from cprfl.evaluation.decisions import Decisions
from cprfl.experiment import Experiment, load
from cprfl.inference.predictor import Predictor
from cprfl.report.findings.label_noise import Suspect
from cprfl.report.model.card import model_card
from cprfl.report.model.names_in_plot import GAP, LONGEST, named
from cprfl.report.model.report import model_report
from cprfl.report.results import Results
from pipelines.cli import findings
from tests.every_method import METHODS
from tests.made_results import images, made_results

JOINT = (
    "encoder={name: open_clip, model: cprfl-embedded, pretrained: random, project: true, layer: -1}",
    "text_encoder={name: open_clip, model: cprfl-embedded, pretrained: random}",
)
NAMES = ("cat", "dog", "yak", "emu")


def results_of(experiment: Experiment) -> Results:
    rng = np.random.default_rng(0)
    training, test = (rng.random((count, 4)) < (0.5, 0.3, 0.2, 0.1) for count in (60, 200))
    logits = 3 * test - 2 + rng.normal(size=test.shape)
    decisions = replace(
        Decisions.unfitted(NAMES), source="60 training images", threshold_C=np.array([0.5, 0.4, 0.3, 0.2])
    )
    return made_results(
        experiment, images(NAMES, training.astype(float), test.astype(float)), logits, decisions=decisions
    )


def card_of(results: Results) -> str:
    transform = SimpleNamespace(size=64, resize="squash")
    predictor = SimpleNamespace(
        class_names=NAMES, decisions=results.decisions, encoder=SimpleNamespace(transform=transform)
    )
    return model_card(cast(Predictor, predictor), results.checkpoint, results)


def test_the_f1_of_a_group_is_the_cf1_of_the_metrics(small_config: Path) -> None:
    results = results_of(load(small_config))
    report = model_report(results)
    total = next(group for group in report.groups if group.name == "total")
    targets = results.test.targets()
    at_thresholds = f1_scores(results.decisions.found(results.logits), targets)["CF1"]
    assert (total.f1, total.f1_half) == pytest.approx((at_thresholds, results.evaluation.metrics["CF1"]))
    group = next(group for group in report.groups if group.name != "total")
    members = [facts.label for facts in report.classes if facts.group == group.name]
    own = f1_scores(results.decisions.found(results.logits)[:, members], targets[:, members])["CF1"]
    assert group.f1 == pytest.approx(own)


def test_the_card_says_at_which_threshold_an_f1_is(small_config: Path) -> None:
    results = results_of(load(small_config))
    results.evaluation.metrics.update({"OF1_decided": 71.5, "CF1_decided": 62.5})
    table = [line.strip("| ").split(" | ") for line in card_of(results).splitlines() if line.startswith("|")]
    found = dict(zip(table[0][-4:], table[2][-4:], strict=True))
    assert found["CF1 at 0.5"] == f"{results.evaluation.metrics['CF1']:.1f}"
    assert (found["OF1 at thresholds"], found["CF1 at thresholds"]) == ("71.5", "62.5")


@pytest.mark.parametrize("method", METHODS)
def test_the_card_names_a_loss_where_one_trains_the_method(method: str, small_config: Path) -> None:
    config = METHODS[method]
    moved = ["train.backbone=adapter", "model.standardize=false"] if config.needs_moving_tower else []
    experiment = load(small_config, [*JOINT, *moved]).model_copy(update={"model": config})
    said = card_of(results_of(experiment))
    assert ("loss: `asymmetric`" in said) == experiment.model.by_gradients
    assert ("- Epochs: " in said) == experiment.model.by_gradients


def test_a_table_says_that_it_has_the_first_rows_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(number: int, **more: Any) -> str:
        findings._print_mistakes((Suspect("a.jpg", "a.jpg", "cat", True, 0.1, 0.8, 2.0, **more),) * number)
        return re.sub(r"\s+", " ", capsys.readouterr().out)

    assert "20 labels that look wrong; the first 10 here, all in the file" in printed(20)
    assert "first" not in printed(10)
    assert "probability" not in printed(3)
    assert "probability" in printed(3, calibrated=True)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100), st.text("ab", max_size=30)), min_size=1))
def test_no_name_in_the_long_tail_is_on_another(points: list[tuple[int, int, str]]) -> None:
    rows: list[dict[str, Any]] = [
        {"label": label, "images": images, "AP": float(ap), "class": name}
        for label, (images, ap, name) in enumerate(points)
    ]
    counts = [images for images, _, _ in points]
    low, high = min(counts) * 0.8, max(counts) * 1.2
    sides = named(rows, (low, high), 320, 4)
    assert len(sides) <= 4
    scale = np.log if low > 0 else np.log1p
    for width in (600, 1200):
        boxes = []
        for label, side in sides.items():
            row = rows[label]
            across = float(scale(high) - scale(low)) or 1.0
            x, y = width * float(scale(row["images"]) - scale(low)) / across, 3.2 * row["AP"]
            length = GAP + min(LONGEST, 6 * len(row["class"]))
            boxes.append((x, x + length, y) if side == "right" else (x - length, x, y))
        for number, (start, end, y) in enumerate(boxes):
            for other_start, other_end, other_y in boxes[:number]:
                assert start >= other_end or other_start >= end or abs(y - other_y) >= 11
    worst = min(rows, key=lambda row: row["AP"])
    assert worst["label"] in sides
