"""What `configs/schedules.yaml` says: which experiments are retrained when, and what stops a retraining."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, PrivateAttr, field_validator

from cprfl.config import Config, read_yaml, validate
from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load
from cprfl.report.checks.base import CODES
from cprfl.settings import read
from pipelines.sweeps.config import SweepConfig, load_sweep

SCHEDULES = "CPRFL_SCHEDULES"  # names the file to the processes that Dagster starts
UI_PORT = "CPRFL_UI_PORT"  # and the port of `cprfl ui`, to which links to MLflow lead


class ChecksConfig(Config):
    """What a retraining must pass; it stops at the first that it does not.

    Attributes:
        max_label_change: percent by which the training images of a class may grow or shrink since the last decision;
            classes with fewer than ten images then are not looked at.
        max_bad_images: percent of the images that may be missing or not decode.
        min_mAP: of the challenger on the test images, before it is compared with the champion.
        blocking: codes of `cprfl check` (``leak``, ``below-linear-baseline``) that the challenger must pass; the other
            ones warn.
    """

    max_label_change: float = Field(default=50.0, gt=0)
    max_bad_images: float = Field(default=1.0, ge=0, le=100)
    min_mAP: float = Field(default=0.0, ge=0, le=100)
    blocking: list[str] = []

    @field_validator("blocking")
    @classmethod
    def _known(cls, codes: list[str]) -> list[str]:
        unknown = sorted(set(codes) - set(CODES))
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: no such check; there are {', '.join(CODES)}")
        return codes


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
    _named_as: str = PrivateAttr("")  # config of an experiment that is listed before, and has the same name

    def experiment(self) -> Experiment:
        """The experiment as its file and the overrides are now.

        Raises:
            ConfigError: for mistakes in them, and where an experiment that is listed before has the same name.
        """
        found = load(self.config, self.set)
        if self._named_as:
            raise ConfigError(f"{self.config} and {self._named_as} are both named {found.name}; give one another name")
        return found

    def search(self) -> SweepConfig | None:
        """The sweep as its file is now."""
        return load_sweep(Path(self.sweep), Path(self.config), self.set) if self.sweep else None

    @property
    def name(self) -> str:
        """The experiment's name, or its file's where that does not tell one; with ``_`` for all but letters and digits.

        It is what Dagster knows the schedule by, so that the history stays together while a mistake is mended.
        """
        try:
            given = read(Experiment, self.config, self.set).get("name")
        except ConfigError:
            given = None
        return re.sub(r"[^A-Za-z0-9_]", "_", given if isinstance(given, str) and given else Path(self.config).stem)

    @property
    def mistake(self) -> str | None:
        """What is wrong with the experiment or its sweep now, if anything is."""
        try:
            self.experiment()
            self.search()
        except ConfigError as error:
            return str(error)
        return None


class _Schedules(Config):
    schedules: list[ScheduleConfig] = Field(min_length=1)


def load_schedules(path: Path) -> dict[str, ScheduleConfig]:
    """The schedules by the names that Dagster knows them by.

    A mistake in an experiment is none here: it makes the first stage of that experiment's retraining fail, and stops
    no other.

    Raises:
        ConfigError: for mistakes in the file itself, and where it lists an experiment twice.
    """
    found: dict[str, ScheduleConfig] = {}
    for entry in validate(_Schedules, read_yaml(path, "schedules"), source=str(path)).schedules:
        name = entry.name
        if (other := found.get(name)) is not None:
            if (other.config, other.set) == (entry.config, entry.set):
                raise ConfigError(f"{path}: {entry.config} is listed twice; give each experiment one schedule")
            entry._named_as = other.config
            name = f"{name}_{len(found) + 1}"
        found[name] = entry
    return found
