"""A trial's training that goes on after its process was lost: each epoch is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprfl.experiment import load
from cprfl.preparation import prepare
from cprfl.recipe import Epoch, train_in
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.trials import _train

EPOCHS = 4
SWEEP = SweepConfig.model_validate({"space": {"train.lr": {"log": [1e-4, 1e-1]}}, "trials": 1})


class LostError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("saved", [1, 2, EPOCHS])
def test_what_was_saved_when_nobody_listened_any_more_is_told(small_config: Path, tmp_path: Path, saved: int) -> None:
    settings = [f"train.epochs={EPOCHS}", "train.validation=0.3", "decisions.folds=0"]
    experiment = load(small_config, settings)
    prepared = prepare(experiment, needs={"test"})
    undisturbed: list[dict[str, Any]] = []
    _train(experiment, prepared, SWEEP, tmp_path / "undisturbed", undisturbed.append)
    assert [told["epoch"] for told in undisturbed] == [*range(1, EPOCHS + 1)]

    def lost(epoch: Epoch) -> None:
        if epoch.number > saved:
            raise LostError

    if saved < EPOCHS:
        with pytest.raises(LostError):
            train_in(tmp_path / "lost", experiment, prepared, lost)
    else:
        train_in(tmp_path / "lost", experiment, prepared, lost)
    told: list[dict[str, Any]] = []
    metrics = _train(experiment, prepared, SWEEP, tmp_path / "lost", told.append)
    assert told == undisturbed[saved - 1 :]
    assert metrics == {name: value for name, value in undisturbed[-1].items() if name != "epoch"}
