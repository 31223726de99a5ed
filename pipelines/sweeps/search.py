"""A sweep in Ray Tune's words: what it asks for the next trial, and what stops or changes trials."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining
from ray.tune.search import Searcher

from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.proposals import Proposals
from pipelines.sweeps.record import Report, Trial, Trials

NUMBER = "trial"
"""Entry of a trial's settings at Tune that holds its number; at its start, since a population copies settings."""
MISTAKE = "mistake"
"""Entry of a result by which a trial says why it failed: Tune would start it again, and pickle the exception."""

CHECKPOINT = "saved_in"
"""Entry of a result that names the folder from which the trial can go on."""


class Asked(Searcher):
    """Gives Tune the trials that are to go on, then new ones, which are written down first."""

    def __init__(self, sweep: SweepConfig, trials: Trials, proposals: Proposals) -> None:
        super().__init__(metric=sweep.metric, mode="max")
        self.sweep, self.trials, self.proposals = sweep, trials, proposals
        self.again = [trial for trial in trials if trial.status == "running"]
        self.numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """The settings of the next trial, with its number."""
        if not self.again and len(self.trials) >= self.sweep.trials:
            return Searcher.FINISHED
        trial = self.again.pop(0) if self.again else begin_next(self.trials, self.proposals)
        self.numbers[trial_id] = trial.number
        return {NUMBER: trial.number, **trial.settings}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in how a trial ended."""
        found = None if error or result is None else finite(result).get(self.sweep.metric)
        self.proposals.tell(self.numbers.pop(trial_id), found)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune would pickle this, and what it saves is never read."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored from what Tune saves."""
        raise AssertionError(checkpoint_path)


def begin_next(trials: Trials, proposals: Proposals) -> Trial:
    """Write down the next new trial."""
    number = len(trials) + 1
    return trials.begin(number, proposals.ask(number))


def proposals_after(sweep: SweepConfig, trials: Trials) -> Proposals:
    """What proposes settings, after the trials that are known; those whose files are lost are asked for again."""
    proposals = Proposals(sweep)
    for number in range(1, max(trials.known, default=0) + 1):
        if number not in trials.known:
            trials.begin(number, proposals.ask(number))
            continue
        trial = trials.known[number]
        proposals.known(trial)
        if trial.status != "running":
            proposals.tell(number, trial.last(sweep.metric) if trial.succeeded else None)
    return proposals


def finite(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result of Tune's; one that is not a number is none."""
    found = {name: float(value) for name, value in result.items() if name.startswith(("train/", "val/"))}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def number_of(trial: Any) -> int:
    """The number of a trial of Tune's (`name_of`)."""
    return int(trial.custom_trial_name)


def name_of(trial: Any) -> str:
    """The name that a trial of Tune's gets: its number."""
    return str(trial.config[NUMBER])


def settings_of(trial: Any) -> dict[str, Any]:
    """The present settings of a trial of Tune's."""
    return {name: value for name, value in trial.config.items() if name != NUMBER}


def space(sweep: SweepConfig) -> dict[str, Any]:
    """Ray Tune's distributions of a sweep's settings, from which a population changes them."""

    def sampled(name: str) -> Any:
        found = sweep.space[name]
        if found.uniform:
            return ray_tune.uniform(*found.uniform)
        if found.log:
            return ray_tune.loguniform(*found.log)
        if found.integer:
            return ray_tune.randint(found.integer[0], found.integer[1] + 1)
        return ray_tune.choice(found.choice)

    return {name: sampled(name) for name in sweep.space}


class Asha(ASHAScheduler):
    """Tune's ASHA, which knows what the trials of an earlier process told.

    It stops no trial that is about to end: Ray Train would be killed while it gives back its workers' CPUs.

    Args:
        sweep: how is searched.
        epochs: length of a whole training.
    """

    def __init__(self, sweep: SweepConfig, epochs: int) -> None:
        self.last = epochs * (sweep.folds or 1)
        grace = min(sweep.grace_epochs, epochs) if sweep.folds is None else epochs
        super().__init__(
            time_attr="epoch", metric=sweep.metric, mode="max", max_t=self.last, grace_period=grace,
            reduction_factor=sweep.reduction_factor,
        )  # fmt: skip

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Know a trial by its number, whichever process it runs in."""
        super().on_trial_add(tune_controller, _numbered(number_of(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether the trial goes on."""
        decision: str = super().on_trial_result(tune_controller, _numbered(number_of(trial)), result)
        return self.CONTINUE if result["epoch"] >= self.last else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Note its last result."""
        super().on_trial_complete(tune_controller, _numbered(number_of(trial)), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Forget it."""
        super().on_trial_remove(tune_controller, _numbered(number_of(trial)))

    def rebuild(self, trials: Trials) -> None:
        """Fill the rungs with what is known, in the order in which it was told.

        A trial that was to be stopped when its process ended is stopped now.
        """
        told: list[tuple[Report, Trial]] = [(report, trial) for trial in trials for report in trial.reports]
        for trial in trials:
            super().on_trial_add(None, _numbered(trial.number))
        for report, trial in sorted(told, key=lambda pair: pair[0].time):
            result = {"epoch": report.epoch, **report.metrics}
            decision = super().on_trial_result(None, _numbered(trial.number), result)
            stops = decision == self.STOP and report.epoch < self.last and report is trial.reports[-1]
            if stops and trial.status == "running":
                trials.end(trial.number, "stopped")
            if trial.succeeded and report is trial.reports[-1]:
                super().on_trial_complete(None, _numbered(trial.number), result)


def _numbered(number: int) -> Any:
    """What ASHA needs of a trial: an id."""
    return SimpleNamespace(trial_id=str(number))


def scheduler(sweep: SweepConfig, epochs: int, trials: Trials) -> Any:
    """What stops trials early, or changes them; ``epochs`` is the length of a whole training."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    if sweep.scheduler == "pbt":
        return PopulationBasedTraining(
            time_attr="epoch", metric=sweep.metric, mode="max", perturbation_interval=sweep.perturb_epochs,
            hyperparam_mutations=space(sweep), require_attrs=False,  # which a trial that failed does not have
            custom_explore_fn=lambda config: {
                name: sweep.space[name].clipped(v) if name in sweep.space else v for name, v in config.items()
            },
        )  # fmt: skip
    asha = Asha(sweep, epochs)
    asha.rebuild(trials)
    return asha
