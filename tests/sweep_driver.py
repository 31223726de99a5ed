"""What Ray Tune does with a sweep, one trial after the other in this process: its own takes seconds to start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from cprfl.experiment import Experiment
from cprfl.preparation import Prepared
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.follow import FollowTrials
from pipelines.sweeps.record import Trials
from pipelines.sweeps.search import Asked, name_of, proposals_after, scheduler, settings_of
from pipelines.tracking.sweeps import TrialRuns

Told = Iterator[dict[str, Any]]


class Killed(BaseException):
    """The process that drives a sweep ends here, without a word."""


class Driver:
    """Stands in for `pipelines.sweeps.tuner.run_trials`.

    Args:
        train: gives what a trial tells, from its number, settings and the epoch after which it goes on.
        step: is called before each thing that the driver does; what it raises ends the driver there.
    """

    def __init__(
        self, train: Callable[[int, dict[str, Any], int], Told], step: Callable[[], None] = lambda: None
    ) -> None:
        self.train, self.step = train, step

    def run_trials(
        self, experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, trials: Trials,
        runs: TrialRuns,
    ) -> None:  # fmt: skip
        """Run the trials that are left."""
        self.search(sweep, experiment.train.epochs, trials, runs)

    def search(self, sweep: SweepConfig, epochs: int, trials: Trials, runs: Any) -> None:
        """What Tune does, without an experiment."""
        stops = scheduler(sweep, epochs, trials)
        proposals = proposals_after(sweep, trials)
        asked, follow = Asked(sweep, trials, proposals), FollowTrials(sweep, trials, runs, epochs)
        follow.run(lambda: self._all(stops, asked, follow, trials))

    def _all(self, stops: Any, asked: Asked, follow: FollowTrials, trials: Trials) -> None:
        while True:
            follow.on_step_begin(0, [])
            self.step()
            config = asked.suggest(str(len(asked.numbers)))
            if config == Searcher.FINISHED:
                return
            trial_id = next(reversed(asked.numbers))
            trial = SimpleNamespace(config=config, trial_id=trial_id, last_result={})
            trial.custom_trial_name = name_of(trial)
            self._one(trial, stops, asked, follow, trials)

    def _one(self, trial: Any, stops: Any, asked: Asked, follow: FollowTrials, trials: Trials) -> None:
        stops.on_trial_add(None, trial)
        self.step()
        follow.on_trial_start(0, [], trial)
        number = int(trial.custom_trial_name)
        reports = trials.known[number].reports
        for result in self.train(number, settings_of(trial), reports[-1].epoch if reports else 0):
            trial.last_result = result
            self.step()
            decision = stops.on_trial_result(None, trial, result)
            follow.on_trial_result(0, [], trial, result)
            if decision == TrialScheduler.STOP:
                break
        self.step()
        stops.on_trial_complete(None, trial, trial.last_result)
        asked.on_trial_complete(trial.trial_id, trial.last_result)
        self.step()
        follow.on_trial_complete(0, [], trial)
