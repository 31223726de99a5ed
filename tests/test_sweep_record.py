"""What a sweep keeps of its trials: killed at any moment it ends as an undisturbed one, and no damage is used."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.proposals import Proposals
from pipelines.sweeps.record import Trials
from tests.sweep_driver import Driver, Killed, Told

METRIC, EPOCHS = "val/mAP", 9
SPACE: dict[str, Any] = {
    "train.lr": {"log": [1e-4, 1e-1]}, "model.dropout": {"uniform": [0.0, 0.5]},
    "train.batch_size": {"integer": [4, 32]}, "train.augment": {"choice": [[], ["flip"], None]},
}  # fmt: skip


def sweep_of(**values: Any) -> SweepConfig:
    """A sweep that TPE has learnt something in before its end: it draws its first ten at random."""
    return SweepConfig.model_validate({"space": SPACE, "trials": 16, "grace_epochs": 1} | values)


def quality(tried: dict[str, Any]) -> float:
    """The best that a training with these settings could reach."""
    return 80 - 10 * abs(math.log10(tried["train.lr"]) + 2) - 20 * tried["model.dropout"]


def train(number: int, tried: dict[str, Any], after: int) -> Told:
    """A training without images, whose every seventh fails."""
    if number % 7 == 0:
        yield {"mistake": "NonFiniteError: the loss", "epoch": 0}
        return
    for epoch in range(min(after + 1, EPOCHS), EPOCHS + 1):  # the last one again where nobody may have heard of it
        yield {METRIC: quality(tried) * epoch / EPOCHS, "epoch": epoch}


class NoRuns:
    """No MLflow."""

    def write(self, state: Any) -> None:
        """Nothing is kept."""


def outcome(trials: Trials) -> list[Any]:
    """All that is known, but the times."""
    return [
        (trial.number, trial.first_settings, trial.status, [(told.epoch, told.metrics) for told in trial.reports])
        for trial in trials
    ]


def killer(moment: int) -> Callable[[], None]:
    """Lets so many steps pass."""
    left = iter(range(moment))

    def step() -> None:
        if next(left, None) is None:
            raise Killed

    return step


@pytest.mark.parametrize("scheduler", ["asha", "none"])
def test_a_sweep_killed_at_any_moment_ends_as_an_undisturbed_one(scheduler: str, tmp_path: Path) -> None:
    sweep = sweep_of(scheduler=scheduler, start={"train.lr": 0.5, "train.augment": ["flip"]})  # outside the range
    Driver(train).search(sweep, EPOCHS, Trials(tmp_path / "whole"), NoRuns())
    whole = outcome(Trials(tmp_path / "whole"))
    assert len(whole) == 16
    assert whole[0][1]["train.lr"] == 0.5
    assert {entry[2] for entry in whole} == {"finished", "failed"} | ({"stopped"} if scheduler == "asha" else set())

    @settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(0, 60), max_size=6))
    def killed(moments: list[int]) -> None:
        folder = tmp_path / "-".join(["killed", *map(str, moments)])
        for moment in moments:
            with contextlib.suppress(Killed):
                Driver(train, killer(moment)).search(sweep, EPOCHS, Trials(folder), NoRuns())
        Driver(train).search(sweep, EPOCHS, Trials(folder), NoRuns())
        assert outcome(Trials(folder)) == whole

    killed()


def test_random_search_does_not_learn_and_seeds_differ() -> None:
    proposed = []
    for search, seed in [("random", 0), ("random", 0), ("random", 1), ("optuna", 0)]:
        proposals = Proposals(sweep_of(search=search, seed=seed))
        tried = []
        for number in range(1, 15):
            tried.append(proposals.ask(number))
            proposals.tell(number, quality(tried[-1]))
        assert len({entry["train.lr"] for entry in tried}) == 14
        assert all(1e-4 <= entry["train.lr"] <= 1e-1 and 4 <= entry["train.batch_size"] <= 32 for entry in tried)
        assert all(entry["train.augment"] in ([], ["flip"], None) for entry in tried)
        proposed.append(tried)
    assert proposed[0] == proposed[1] != proposed[2]
    assert proposed[0] != proposed[3]


def test_a_damaged_record_is_put_aside_and_its_trial_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of(trials=5)
    Driver(train).search(sweep, EPOCHS, Trials(tmp_path), NoRuns())
    whole, path = outcome(Trials(tmp_path)), tmp_path / "00003.json"
    sound = path.read_bytes()
    for position in range(0, len(sound), 41):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        found = Trials(tmp_path)
        if len(found) == 5:  # white space, which says nothing
            assert outcome(found) == whole
            continue
        assert "00003.json" in capsys.readouterr().err
        assert not path.exists()
    path.write_bytes(sound[:100])
    Driver(train).search(sweep, EPOCHS, Trials(tmp_path), NoRuns())
    assert outcome(Trials(tmp_path)) == whole


def test_a_trial_without_the_metric_fails(tmp_path: Path) -> None:
    def untold(number: int, tried: dict[str, Any], after: int) -> Told:
        yield {"val/mAP_head": 3.0, METRIC: float("nan"), "epoch": EPOCHS}

    Driver(untold).search(sweep_of(trials=2), EPOCHS, Trials(tmp_path), NoRuns())
    assert [trial.status for trial in Trials(tmp_path)] == ["failed", "failed"]
    assert METRIC in next(iter(Trials(tmp_path))).error


def test_an_epoch_told_twice_counts_once_and_a_population_may_be_put_back(tmp_path: Path) -> None:
    trials = Trials(tmp_path)
    trials.begin(1, {"train.lr": 0.1})
    for epoch in (5, 10, 10):
        trials.report(1, epoch, {METRIC: float(epoch)}, {"train.lr": 0.1}, f"/there/{epoch}")
    assert [told.epoch for told in Trials(tmp_path).known[1].reports] == [5, 10]
    trials.report(1, 10, {METRIC: 99.0}, {"train.lr": 0.12}, "/there/b")  # another's weights, and changed settings
    found = Trials(tmp_path).known[1]
    assert [told.epoch for told in found.reports] == [5, 10]
    assert (found.settings, found.last(METRIC), found.reports[-1].checkpoint) == ({"train.lr": 0.12}, 99.0, "/there/b")
