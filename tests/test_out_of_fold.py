"""What folds of the training images choose: epochs and shares; and what is said of a training that overfits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load
from cprfl.out_of_fold import Findings, candidates, in_words
from cprfl.preparation import prepare
from cprfl.recipe import Epoch, overfitting, remove_resumable, resumable_folder, train
from cprfl.training.checkpoint import load_info, load_weights

CPRFL = "{name: cprfl, standardize: true, dim: 32, num_heads: 2, head_dim: 16, mlp_dim: 32}"
FITTED = f"model={{name: ensemble, weights: fitted, num_folds: 2, members: [{CPRFL}, {{name: gaussian_discriminant}}]}}"


def test_epochs_are_compared_evenly_and_the_last_always(small_config: Path) -> None:
    for epochs, expected in ((4, [1, 2, 3, 4]), (16, [2, 4, 6, 8, 10, 12, 14, 16]), (1, [1])):
        assert candidates(load(small_config, [f"train.epochs={epochs}", "train.select=folds"])) == expected
    assert candidates(load(small_config)) == [4]
    assert candidates(load(small_config, ["model={name: logistic_regression}"])) == [0]


@pytest.mark.parametrize("overrides", [["train.select=folds"], [FITTED]], ids=["one method", "members"])
def test_all_images_are_trained_on_for_as_many_epochs_as_the_folds_chose(
    small_config: Path, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load(small_config, [*overrides, "train.epochs=6", "train.lr=0.01"])
    prepared = prepare(experiment)
    told: list[int] = []
    info = load_info(train(experiment, prepared, lambda epoch: told.append(epoch.number)))
    assert told == list(range(1, info.epoch + 1))
    assert info.epoch == info.metrics["folds/epochs"]
    assert info.metrics["folds/mAP"] >= info.metrics["folds/mAP_last_epoch"]
    assert f"after {info.epoch} epochs" in capsys.readouterr().err
    shares = [value for name, value in info.metrics.items() if "/share/" in name]
    assert not shares or sum(shares) == pytest.approx(1)


def test_an_interrupted_training_goes_on_with_what_the_folds_chose(small_config: Path) -> None:
    experiment = load(small_config, [FITTED, "train.epochs=6", "train.lr=0.01", "seed=3"])  # its folds choose several
    prepared = prepare(experiment)
    whole = load_weights(train(experiment, prepared))
    remove_resumable(experiment, prepared)

    def interrupt(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(experiment, prepared, interrupt)
    assert list(resumable_folder(experiment, prepared).glob("epoch-*"))
    resumed = load_weights(train(experiment, prepared))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_auto_runs_on_a_handful_of_images(small_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load(small_config, ["model={name: auto, num_folds: 2}", "train.epochs=2"])
    info = load_info(train(experiment, prepare(experiment)))
    said = capsys.readouterr().err
    assert "small: " in said
    assert "gaussian_discriminant" in said
    assert {f"folds/share/{name}" for name in ("cprfl", "cprfl 2", "logistic_regression")} <= info.metrics.keys()


def test_what_was_found_is_said_in_a_sentence() -> None:
    metrics = {
        "folds/mAP": 32.44, "folds/mAP_last_epoch": 31.0, "folds/epochs": 12.0,
        "folds/mAP/cprfl": 28.0, "folds/share/cprfl": 0.4, "folds/mAP/zero_shot": 5.0, "folds/share/zero_shot": 0.0,
    }  # fmt: skip
    assert in_words(Findings(12, metrics)) == (
        "32.4 mAP on held-out folds; of cprfl 0.40 (28.0 alone), zero_shot 0.00 (5.0 alone); after 12 epochs, 1.4 more "
        "than after all"
    )


def test_folds_and_what_they_cannot_go_with(small_config: Path) -> None:
    for override, message in (
        ("protocol=published", "never looks at the test images"),
        ("train.backbone=finetune", "folds scores cached features"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(small_config, ["train.select=folds", "model.standardize=false", override])


def test_a_training_that_overfits_says_so() -> None:
    def epoch(number: int, loss: float, value: float) -> dict[str, float]:
        return {"epoch": number, "train/loss": loss, "val/mAP": value}

    falling = [epoch(1, 0.5, 20.0), epoch(2, 0.1, 30.0), epoch(3, 0.01, 27.5)]
    assert (
        "overfitting: val/mAP fell from 30.0 after epoch 2 to 27.5, the training loss fell from 0.1000 to 0.0100"
        in (overfitting(falling, "val/mAP") or "")
    )
    assert overfitting(falling[:2], "val/mAP") is None
    assert overfitting([*falling, epoch(4, 0.005, 29.5)], "val/mAP") is None
    assert overfitting([epoch(1, 0.1, 30.0), epoch(2, 0.5, 20.0)], "val/mAP") is None  # it diverged
    assert overfitting(falling, "test/mAP") is None


def test_correlation_is_a_part_of_the_loss(small_config: Path) -> None:
    experiment: Experiment = load(small_config, ["train.correlation=0.5", "train.epochs=1"])
    info = load_info(train(experiment, prepare(experiment)))
    parts = info.metrics
    assert parts["train/loss"] == pytest.approx(parts["train/criterion"] + parts["train/correlation"], rel=1e-5)
    assert parts["train/correlation"] > 0
