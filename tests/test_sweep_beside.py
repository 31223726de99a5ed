"""Tune in a thread beside the driver's: what it tells after the driver has left changes nothing."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cprfl.errors import TrackingError
from pipelines.sweeps.beside import TuneBeside, heard
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.follow import FollowTrials
from pipelines.sweeps.record import Trials


class Follow(TuneBeside):
    """Counts what it is told; the failing one breaks at the third."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.told, self.error = 0, error

    @heard
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Count it."""
        self.told += 1
        if self.error is not None and self.told == 3:
            raise self.error


def tune(follow: Follow, last: int | None = None) -> Callable[[], None]:
    """Steps as Tune's own, up to the last one if there is any."""

    def fit() -> None:
        for step in itertools.count(1):
            follow.on_step_begin(step, [])
            follow.on_trial_start(step, [], trial=step)
            if step == last:
                return
            time.sleep(0.01)

    return fit


def test_ctrl_c_is_raised_at_once_and_ends_tune() -> None:
    follow = Follow()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        follow.run(tune(follow))
    assert follow.out.is_set()
    told = follow.told
    assert told > 0
    follow.on_trial_start(0, [], trial=0)
    assert follow.told == told


@pytest.mark.parametrize("last", [None, 3])
def test_what_a_callback_raises_ends_the_sweep(last: int | None) -> None:
    """Also where it is the last one; Tune would have taken it for a failure of the trial."""
    follow = Follow(TrackingError("the run was deleted"))
    with pytest.raises(TrackingError, match="the run was deleted"):
        follow.run(tune(follow, last))
    assert follow.told == 3


def test_a_sweep_that_nothing_disturbs_ends_with_its_last_step() -> None:
    follow = Follow()
    follow.run(tune(follow, 5))
    assert follow.told == 5


@pytest.mark.parametrize("lost", [True, False])
def test_a_trial_that_dies_with_ray_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    monkeypatch.setattr("pipelines.sweeps.follow._SECONDS_FOR_NEWS", 0.05)
    sweep = SweepConfig.model_validate({"space": {"train.lr": {"log": [1e-4, 1e-1]}}, "trials": 1})
    trials = Trials(tmp_path)
    trials.begin(1, {"train.lr": 0.1})
    follow = FollowTrials(sweep, trials, SimpleNamespace(write=lambda state: None), 4)  # type: ignore[arg-type]
    if lost:
        follow.left.set()
    follow.on_trial_error(0, [], SimpleNamespace(custom_trial_name="1", config={"trial": 1, "train.lr": 0.1}))
    (found,) = Trials(tmp_path)
    assert found.status == ("running" if lost else "failed")
