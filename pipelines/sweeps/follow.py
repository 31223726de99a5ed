"""What the driver of a sweep does when Tune tells of a trial: write it down, mirror it in MLflow, say it on stderr."""

from __future__ import annotations

import time
from typing import Any

from cprfl.progress import say, span, stand
from cprfl.words import counted
from pipelines.sweeps.beside import TuneBeside, heard
from pipelines.sweeps.config import SweepConfig
from pipelines.sweeps.record import Trials
from pipelines.sweeps.search import CHECKPOINT, MISTAKE, finite, number_of, settings_of
from pipelines.tracking.sweeps import TrialRuns
from pipelines.tracking.titles import in_short

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_FOR_NEWS = 2.0  # in which it is known that Ray is lost, where its processes die


class FollowTrials(TuneBeside):
    """Writes down what Tune tells of a sweep's trials, and says it.

    Args:
        sweep: how is searched.
        trials: what is known of them.
        runs: theirs in MLflow.
        epochs: of a whole training.
    """

    def __init__(self, sweep: SweepConfig, trials: Trials, runs: TrialRuns, epochs: int) -> None:
        super().__init__()
        self.sweep, self.trials, self.runs, self.epochs = sweep, trials, runs, epochs
        self.said = time.monotonic()
        self.part = {trial.number: 1.0 for trial in trials if trial.status != "running"}  # how much of each is done
        self.first: tuple[float, float] | None = None  # when was heard of an epoch first, and what was done by then
        self.begun = {trial.number for trial in trials}
        self.deaths: dict[int, int] = {}
        self._stand()

    @heard
    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Open the trial's run and say what it tries."""
        number = number_of(trial)
        self._mirror(number)
        if number not in self.begun:
            self.begun.add(number)
            self._say(number, in_short(settings_of(trial)))

    @heard
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Log an epoch's metrics, and say now and then how far the trial is."""
        if MISTAKE in result:
            return
        number, epoch, metrics = number_of(trial), int(result["epoch"]), finite(result)
        self.trials.report(number, epoch, metrics, settings_of(trial), result.get(CHECKPOINT))
        self._mirror(number)
        self.part[number] = min(epoch / self._whole(trial), 0.999)
        if self.first is None:
            self.first = time.monotonic(), sum(self.part.values())
        if time.monotonic() - self.said > _SECONDS_BETWEEN_LINES:
            found = metrics.get(self.sweep.metric)
            reached = f", {self._metric(found)}" if found is not None else ""
            self._say(number, f"epoch {epoch} of {self._whole(trial)}{reached}{self._standing()}")

    @heard
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the trial's run and say what came of it."""
        number, last = number_of(trial), trial.last_result
        if MISTAKE in last:
            self._failed(trial, last[MISTAKE])
            return
        value = finite(last).get(self.sweep.metric)
        if value is None:
            self._failed(trial, f"it told no {self.sweep.metric}: does the validation split show such classes?")
            return
        epoch = int(last["epoch"])
        stopped = epoch < self._whole(trial)
        self.trials.end(number, "stopped" if stopped else "finished")
        self._ended(number)
        where = f", stopped after epoch {epoch} of {self._whole(trial)}" if stopped else ""
        self._say(number, f"{self._metric(value)}{where}{self._standing()}")

    @heard
    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial's process died."""
        number = number_of(trial)
        self.deaths[number] = self.deaths.get(number, 0) + 1
        self._say(number, "its process died; it is started again")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Close the run of a trial whose process died too often; if Ray is lost, it is known by then."""
        if not self.left.wait(_SECONDS_FOR_NEWS):
            self._died(trial)

    @heard
    def _died(self, trial: Any) -> None:
        times = self.deaths.get(number_of(trial), 0) + 1
        self._failed(trial, f"its process died {counted(times, 'time')} (killed, or out of memory?)")

    def _failed(self, trial: Any, error: str) -> None:
        number = number_of(trial)
        self.trials.end(number, "failed", error)
        self._ended(number)
        self._say(number, f"failed ({error.splitlines()[0]}); {in_short(settings_of(trial))}")

    def _mirror(self, number: int) -> None:
        self.runs.write(self.trials.known[number].state(self.sweep.scheduler == "pbt"))

    def _ended(self, number: int) -> None:
        self.part[number] = 1.0
        self._mirror(number)
        self._stand()

    def _stand(self) -> None:
        done = sum(part == 1.0 for part in self.part.values())
        stand(f"after {done} of {counted(self.sweep.trials, 'trial')}")

    def _whole(self, trial: Any) -> int:
        """Epochs of a trial that nothing stops."""
        return int(trial.config.get("train.epochs", self.epochs)) * (self.sweep.folds or 1)

    def _metric(self, value: float) -> str:
        """``val mAP 61.2``."""
        return f"{self.sweep.metric.replace('/', ' ')} {value:.1f}"

    def _standing(self) -> str:
        """The best trial so far, and the time that is left."""
        best = self.trials.best(self.sweep.metric)
        found = f"; best {best.last(self.sweep.metric):.1f} (trial {best.number})" if best else ""
        return found + self._left()

    def _left(self) -> str:
        """Time that what is left of the trials will take, at the rate since the first epoch: Ray's start is none."""
        if self.first is None:
            return ""
        begun, before = self.first
        done = sum(self.part.values())
        since, left = done - before, self.sweep.trials - done
        return f"; {span((time.monotonic() - begun) / since * left)} left" if left > 0 and since > 0 else ""

    def _say(self, number: int, what: str) -> None:
        self.said = time.monotonic()
        say(f"trial {number} of {self.sweep.trials}: {what}")
