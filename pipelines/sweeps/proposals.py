"""Which settings are tried next: Optuna's samplers, asked so that an interrupted sweep asks as an undisturbed one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.record import Trial


class Proposals:
    """The settings of one trial after the other.

    Each trial's sampler has a seed of its own, from the sweep's and the trial's number. What is proposed so depends on
    that number and on the trials before it that have ended, and not on how often the sweep was interrupted.
    """

    def __init__(self, sweep: SweepConfig) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        self.study = optuna.create_study(direction="maximize")
        self.distributions = {name: _distribution(sweep, name) for name in sweep.space}

    def ask(self, number: int) -> dict[str, Any]:
        """Propose the settings of a trial; numbers come one after the other, from 1."""
        return self._next(number, self.sweep.start if number == 1 else {})

    def known(self, trial: Trial) -> None:
        """Take in a trial of an earlier process, in place of asking for it."""
        self._next(trial.number, trial.first_settings)

    def tell(self, number: int, value: float | None) -> None:
        """Take in the result of a trial; none where it failed."""
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        self.study.tell(number - 1, value, state=state)

    def _next(self, number: int, settings: dict[str, Any]) -> dict[str, Any]:
        assert number == len(self.study.get_trials(deepcopy=False)) + 1
        self.study.sampler = _sampler(self.sweep, number)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Fixed parameter.*out of range", UserWarning)  # start may lie outside
            if settings:
                self.study.enqueue_trial({name: self._internal(name, value) for name, value in settings.items()})
            asked = self.study.ask(self.distributions).params
        return {name: self._external(name, value) for name, value in asked.items()}

    def _internal(self, name: str, value: Any) -> Any:
        choice = self.sweep.space[name].choice
        return value if choice is None else choice.index(value)

    def _external(self, name: str, value: Any) -> Any:
        choice = self.sweep.space[name].choice
        return value if choice is None else choice[value]


def _sampler(sweep: SweepConfig, number: int) -> BaseSampler:
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    drawn = sweep.search == "random" or sweep.scheduler == "pbt"  # a population begins all at once
    return RandomSampler(seed) if drawn else TPESampler(seed=seed)


def _distribution(sweep: SweepConfig, name: str) -> BaseDistribution:
    found = sweep.space[name]
    if found.uniform:
        return FloatDistribution(*found.uniform)
    if found.log:
        return FloatDistribution(*found.log, log=True)
    if found.integer:
        return IntDistribution(*found.integer)
    assert found.choice is not None
    return CategoricalDistribution(range(len(found.choice)))  # Optuna takes no lists and no mappings
