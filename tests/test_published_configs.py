"""The configurations of published rows: what they say of the figure, and that each trains and is evaluated."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from cprfl.experiment import Experiment, load
from cprfl.inference.scoring import evaluate_checkpoint
from cprfl.preparation import prepare
from cprfl.recipe import train

FIGURES = {
    "voc_lt": "86.28 / 81.84 / 90.51 / 86.43",
    "voc_lt_capnet": "87.46 / - / - / -",
    "voc_lt_clip": "none",
    "voc_lt_coop": "86.02 / 67.71 / 88.79 / 97.67",
    "voc_lt_cprfl_tables": "85.14 / 82.50 / 90.42 / 83.17",
    "voc_lt_db": "78.94 / 73.22 / 84.18 / 79.30",
    "voc_lt_hp_dval": "93.06 / 86.36 / 92.83 / 98.58",
    "voc_lt_hp_dval_released": "93.06 / 86.36 / 94.13 / 97.28",
    "voc_lt_label_free": "92.5 / - / - / -",
    "voc_lt_lmpt": "87.88 / 72.10 / 89.26 / 98.49",
    "voc_lt_ml_gcn": "68.92 / 70.14 / 76.41 / 62.39",
    "voc_lt_zero_shot": "85.05 / 66.48 / 87.08 / 97.46",
    "coco_lt": "66.69 / 66.35 / 70.99 / 61.33",
    "coco_lt_capnet": "none",
    "coco_lt_clip": "none",
    "coco_lt_coop": "60.68 / 41.97 / 63.18 / 73.85",
    "coco_lt_cprfl_tables": "65.18 / 65.12 / 69.97 / 58.91",
    "coco_lt_db": "53.55 / 51.13 / 57.05 / 51.06",
    "coco_lt_hp_dval": "76.19 / 72.05 / 75.98 / 79.12",
    "coco_lt_hp_dval_released": "76.19 / 72.05 / 79.12 / 75.96",
    "coco_lt_label_free": "none",
    "coco_lt_lmpt": "66.19 / 44.89 / 69.80 / 79.08",
    "coco_lt_ml_gcn": "44.24 / 44.04 / 48.36 / 38.96",
    "coco_lt_zero_shot": "60.17 / 38.52 / 65.06 / 72.28",
}
CONFIGS = Path(__file__).parent.parent / "configs"
CONSTANTS = {"voc": {"neg_scale": 5, "map_gamma": 0.3}, "coco": {"neg_scale": 2, "map_gamma": 0.2}}


@pytest.fixture(params=FIGURES)
def path(request: pytest.FixtureRequest) -> Path:
    return CONFIGS / f"{request.param}.yaml"


@functools.cache
def loaded(path: Path) -> Experiment:
    return load(path)


def all_of(experiment: Experiment) -> list[Experiment]:
    """The experiment, its variants, and what comes before each of them."""
    found = [experiment, *(experiment.variant(key) for key in experiment.variants)]
    return found + [before for each in found if (before := each.first_experiment) is not None]


def test_every_file_is_here() -> None:
    assert {path.stem for path in CONFIGS.glob("*_lt*.yaml")} == FIGURES.keys()


def test_the_header_has_the_published_figure_and_what_a_run_needs(path: Path) -> None:
    comment = path.read_text().partition("\nname:")[0]
    figure = r"[\d.]+(?: / [\d.-]+){3}(?= mAP \(total / head / medium / tail)"
    assert re.findall(rf"^# Published: (none|{figure})", comment, re.M) == [FIGURES[path.stem]]
    assert re.search(r"^# Needs the images", comment, re.M)
    assert re.search(r"^# Not run here", comment, re.M)


def test_nothing_that_trains_leans_on_a_default_rate_decay_average_or_width(path: Path) -> None:
    experiment = loaded(path)
    if not experiment.model.by_gradients:
        return
    assert {"epochs", "batch_size", "lr", "weight_decay", "ema_decay"} <= experiment.train.model_fields_set
    if experiment.model.name == "cprfl":
        assert {"dim", "num_heads", "head_dim", "mlp_dim"} <= experiment.model.model_fields_set


def test_losses_have_the_constants_of_the_data_set(path: Path) -> None:
    wanted = CONSTANTS[path.stem.partition("_")[0]]
    for experiment in all_of(loaded(path)):
        if experiment.loss.name in ("distribution_balanced", "db_star"):
            assert {name: getattr(experiment.loss, name) for name in wanted} == wanted


def test_variants_of_the_released_hp_dval_start_from_the_experiment_itself() -> None:
    for name in ("voc_lt_hp_dval_released", "coco_lt_hp_dval_released"):
        experiment = loaded(CONFIGS / f"{name}.yaml")
        before = experiment.variant("second-stage").first_experiment
        assert before is not None
        assert before.training_fingerprint == experiment.training_fingerprint


def miniature(path: Path, photos: Path, tmp_path: Path) -> Experiment:
    """The experiment on the photos, with small towers of random weights, for one epoch."""
    experiment = loaded(path)
    image, text, model = experiment.encoder.name, experiment.text_encoder.name, experiment.model.model_dump()
    overrides = [
        f"data_root={photos}", f"output_dir={tmp_path}", "dataset.name=csv",
        "dataset.splits={train: train.csv, test: test.csv}", "dataset.groups={head: 10, tail: 8}",
        "encoder.pretrained=random", "encoder.image_size=64",
    ]  # fmt: skip
    if image == "torchvision":  # a ResNet's checkpoint would be most of the test
        overrides.append("encoder.model=squeezenet1_1")
    else:
        overrides.append("encoder.model=cprfl-embedded")
    if text == "open_clip":
        overrides += ["text_encoder.model=cprfl-embedded", "text_encoder.pretrained=random"]
    elif text == "glove":
        overrides.append("text_encoder.name=random")
    if getattr(experiment.encoder, "attention", "own") == "similarity":  # which is for vision transformers
        overrides.append("encoder.attention=own")
    if model.get("num_context", 0) > 4:  # the embedded text tower has 16 tokens
        overrides.append("model.num_context=4")
    smaller = {"dim": 32, "num_heads": 2, "head_dim": 16, "mlp_dim": 32, "hidden": 32, "hidden_dim": 32}
    overrides += [f"model.{name}={value}" for name, value in smaller.items() if name in model]
    if experiment.encoder.views > 1:
        overrides.append("encoder.views=2")
    if experiment.model.by_gradients:
        overrides += ["train.epochs=1", "train.finetune.num_processes=0"]
    if experiment.first is not None:
        overrides.append("first.train.epochs=1")
    return load(path, overrides)


@pytest.mark.slow
def test_it_trains_and_is_evaluated_in_miniature(path: Path, photos: Path, tmp_path: Path) -> None:
    experiment = miniature(path, photos, tmp_path)
    for each in (experiment.first_experiment, experiment):
        if each is None:
            continue
        prepared = prepare(each, needs=["test"])
        checkpoint = train(each, prepared)
        result = evaluate_checkpoint(each, prepared, checkpoint)
        assert np.isfinite(result.metrics["mAP"])
        assert (each.folder / "evaluation.json").exists()
