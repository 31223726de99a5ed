"""What is known of a sweep's trials: a file for each, in JSON, from which an interrupted sweep goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from cprfl.data.files import read_record, write_record
from cprfl.errors import SweepError
from cprfl.progress import say
from pipelines.tracking.sweeps import TrialState

Status = Literal["running", "finished", "stopped", "failed"]  # stopped: by the scheduler, before its end


@dataclass(frozen=True)
class Report:
    """What a trial told after an epoch.

    Attributes:
        epoch: counted over the folds.
        time: milliseconds since 1970.
        metrics: ``train/...`` and ``val/...``.
        settings: that it had then; a population's change.
        checkpoint: to go on from, where the training does not find it by itself; below the sweep's folder.
    """

    epoch: int
    time: int
    metrics: dict[str, float]
    settings: dict[str, Any]
    checkpoint: str | None = None


@dataclass
class Trial:
    """One trial.

    Attributes:
        number: counted from 1.
        first_settings: that it began with.
        status: ``running`` also where its process is gone: it goes on then.
        reports: in the order of their epochs.
        error: why it failed.
    """

    number: int
    first_settings: dict[str, Any]
    status: Status = "running"
    reports: list[Report] = field(default_factory=list)
    error: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings now."""
        return self.reports[-1].settings if self.reports else self.first_settings

    @property
    def succeeded(self) -> bool:
        """Whether its last result counts."""
        return self.status in ("finished", "stopped")

    def last(self, metric: str) -> float:
        """The metric when it was last told."""
        return self.reports[-1].metrics[metric]

    def state(self, population: bool) -> TrialState:
        """What MLflow is to know of it; of a population's, also how its settings changed."""
        points = []
        for report in self.reports:
            numbers = {name: float(v) for name, v in report.settings.items() if isinstance(v, int | float)}
            changed = {f"settings/{name}": value for name, value in numbers.items()} if population else {}
            points.append((report.epoch, report.time, report.metrics | changed))
        if self.status == "running":
            return TrialState(self.number, self.first_settings, points, "RUNNING")
        if self.status == "failed":
            return TrialState(self.number, self.first_settings, points, "FAILED", {"error": self.error})
        pruned = str(self.status == "stopped").lower()
        return TrialState(self.number, self.first_settings, points, "FINISHED", {"pruned": pruned})


class Trials:
    """The trials of one sweep, in memory and in a folder; only the process that drives the sweep writes them.

    A file that is damaged is put aside, saying so: its trial is asked for anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[int, Trial] = {}
        for path in sorted(folder.glob("[0-9]*.json")):
            try:
                trial = _parsed(read_record(path, SweepError, "its trial starts anew"))
            except SweepError as error:
                say(str(error))
                path.replace(path.with_suffix(".damaged"))
            else:
                self.known[trial.number] = trial

    def __iter__(self) -> Iterator[Trial]:
        return iter(sorted(self.known.values(), key=lambda trial: trial.number))

    def __len__(self) -> int:
        return len(self.known)

    def ended(self, number: int) -> bool:
        """Whether so many trials are known, and none of them goes on."""
        return len(self) >= number and not any(trial.status == "running" for trial in self)

    def begin(self, number: int, settings: dict[str, Any]) -> Trial:
        """Write down a new trial, before it starts."""
        trial = self.known[number] = Trial(number, settings)
        self._write(trial)
        return trial

    def report(
        self, number: int, epoch: int, metrics: dict[str, float], settings: dict[str, Any], checkpoint: str | None
    ) -> Trial:
        """Write down what a trial told.

        A trial that was killed tells an epoch again, which changes nothing. One that goes on from another's weights may
        be put back: what it told of later epochs is no longer of its weights.
        """
        trial = self.known[number]
        if trial.reports and epoch <= trial.reports[-1].epoch and settings == trial.settings:
            return trial
        told = Report(epoch, int(time.time() * 1000), metrics, settings, checkpoint)
        trial.reports = [*(report for report in trial.reports if report.epoch < epoch), told]
        self._write(trial)
        return trial

    def end(self, number: int, status: Status, error: str = "") -> Trial:
        """Write down how a trial ended."""
        trial = self.known[number]
        trial.status, trial.error = status, error
        self._write(trial)
        return trial

    def best(self, metric: str) -> Trial | None:
        """The trial whose last result is the best; the earlier one of two."""
        return max((trial for trial in self if trial.succeeded), key=lambda trial: trial.last(metric), default=None)

    def _write(self, trial: Trial) -> None:
        write_record(self.folder / f"{trial.number:05d}.json", asdict(trial))


def _parsed(values: dict[str, Any]) -> Trial:
    return Trial(
        int(values["number"]), values["first_settings"], cast(Status, values["status"]),
        [Report(**report) for report in values["reports"]], values["error"],
    )  # fmt: skip
