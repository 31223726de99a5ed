"""What `configs/schedules.yaml` says: which experiments are retrained when, and what stops a retraining."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field

from cprfl.config import Config, read_yaml, validate
from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load
from pipelines.sweeps.config import SweepConfig, load_sweep

SCHEDULES = "CPRFL_SCHEDULES"  # names the file to the processes that Dagster starts


class ChecksConfig(Config):
    """What a retraining must pass; it stops at the first that it does not.

    Attributes:
        max_label_change: percent by which the training images of a class may grow or shrink since the last decision;
            classes with fewer than ten images then are not looked at.
        max_bad_images: percent of the images that may be missing or not decode.
        min_mAP: of the challenger on the test images, before it is compared with the champion.
    """

    max_label_change: float = Field(default=50.0, gt=0)
    max_bad_images: float = Field(default=1.0, ge=0, le=100)
    min_mAP: float = Field(default=0.0, ge=0, le=100)


class ScheduleConfig(Config):
    """One experiment's retraining.

    Attributes:
        config: YAML file of the experiment.
        set: overrides, ``a.b=value``.
        sweep: YAML file of a sweep around the champion's settings.
        cron: when, as in a crontab.
        timezone: of ``cron``.
        running: whether the schedule runs as soon as it is served, or has to be switched on in the UI.
        retries: of a stage that fails for another reason than the user's mistake.
        retry_seconds: before the first retry; each further one waits twice as long.
        checks: what it must pass.
    """

    config: str
    set: list[str] = []
    sweep: str | None = None
    cron: str
    timezone: str = "UTC"
    running: bool = True
    retries: int = Field(default=2, ge=0)
    retry_seconds: float = Field(default=60.0, gt=0)
    checks: ChecksConfig = ChecksConfig()

    def experiment(self) -> Experiment:
        """The experiment as its file and the overrides are now."""
        return load(self.config, self.set)

    def search(self) -> SweepConfig | None:
        """The sweep as its file is now."""
        return load_sweep(Path(self.sweep), Path(self.config), self.set) if self.sweep else None


class _Schedules(Config):
    schedules: list[ScheduleConfig] = Field(min_length=1)


def load_schedules(path: Path) -> dict[str, ScheduleConfig]:
    """The schedules by the name that Dagster knows them by: the experiment's, with ``_`` for ``.`` and ``-``.

    Raises:
        ConfigError: for mistakes in the file, in an experiment's, and for two schedules of one experiment.
    """
    found: dict[str, ScheduleConfig] = {}
    for entry in validate(_Schedules, read_yaml(path, "schedules"), source=str(path)).schedules:
        name = re.sub(r"[^A-Za-z0-9_]", "_", entry.experiment().name)
        entry.search()
        if name in found:
            raise ConfigError(f"{path}: {entry.config} and {found[name].config} are both named {name}; give one a name")
        found[name] = entry
    return found
