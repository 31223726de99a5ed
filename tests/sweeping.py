"""Commands of `cprfl` at the same time, whose sweeps train their trials in the process that drives them.

A Ray for each would take a minute to start. All else is the command's own: the lock, the search, the runs in MLflow,
the winner, its registration. Run as a program it imports everything once and forks for each command.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow.pyfunc

from cprfl.experiment import Experiment
from cprfl.preparation import Prepared
from cprfl.recipe import Epoch, train_in
from pipelines.cli.app import main
from pipelines.sweeps import tune, tuner
from pipelines.sweeps.config import SweepConfig, trial_experiment
from pipelines.sweeps.record import Trials
from pipelines.tracking.sweeps import TrialRuns
from tests.sweep_driver import Driver, Told


def run_trials(
    experiment: Experiment, sweep: SweepConfig, parts: list[Prepared], folder: Path, trials: Trials, runs: TrialRuns
) -> None:
    """Stands in for `pipelines.sweeps.tuner.run_trials`."""

    def train(number: int, tried: dict[str, Any], after: int) -> Told:
        epochs: list[dict[str, Any]] = []

        def tell(epoch: Epoch) -> None:
            epochs.append({**epoch.metrics, "epoch": epoch.number})

        train_in(folder / "trials" / str(number), trial_experiment(experiment, sweep, tried), parts[0], tell)
        yield from epochs

    Driver(train).run_trials(experiment, sweep, parts, folder, trials, runs)


def start(line: str) -> int:
    """Start a command in a fork of this process, and give the process's number."""
    child = os.fork()
    if child == 0:
        sys.argv = ["cprfl", *shlex.split(line)]
        main()  # which ends the fork
    return child


if __name__ == "__main__":
    tune, mlflow.pyfunc  # noqa: B018  (looked up, which imports the latter)
    tuner.run_trials = run_trials
    assert threading.active_count() == 1
    children = [start(line) for line in sys.argv[1:]]
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))
