"""What a sweep file says: which settings are searched, how, and for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from cprfl.config import Config, read_yaml, validate
from cprfl.errors import ConfigError
from cprfl.experiment import Experiment, load

_ANY_TIME = ("model.dropout", "train.lr", "train.weight_decay", "train.clip_norm")  # may change in mid-training


class Distribution(Config):
    """Where values of one setting come from: exactly one of these.

    ``uniform`` and ``log`` draw from [low, high], the latter evenly on a logarithmic scale; ``integer`` from low to
    high, both included; ``choice`` from a list.
    """

    uniform: tuple[float, float] | None = None
    log: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    choice: list[Any] | None = Field(default=None, min_length=1)
    factor: float | None = Field(default=None, gt=1)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of uniform, log, integer, choice and factor, not {given or 'none'}")
        low, high = (self.uniform or self.log or self.integer or (0, 1))[:2]
        if low >= high or (self.log is not None and low <= 0):
            raise ValueError("low must be below high, and above 0 for log")
        return self

    def clipped(self, value: Any) -> Any:
        """The value, or the end of the range beyond which it lies."""
        if self.choice is not None:
            return value
        low, high = self.uniform or self.log or self.integer or (value, value)
        return min(max(value, low), high)

    def extremes(self) -> list[Any]:
        """Values that the configuration must accept for all others to be acceptable: the ends, and one between them.

        (A setting that takes whole numbers takes 2.0 as well, but not 2.5.)
        """
        if self.choice is not None:
            return self.choice
        if self.integer is not None:
            return list(self.integer)
        low, high = self.uniform or self.log or (0.0, 0.0)
        return [low, high, low + (high - low) / math.pi]


class SweepConfig(Config):
    """How to search.

    Attributes:
        space: distribution of each setting, by its path in the configuration.
        metric: of the validation images, the higher the better.
        validation: share of the training images held out for it; the test images are not looked at.
        folds: in place of that share: each trial trains once for each of so many folds and is judged by the mean over
            the folds it has finished; one that lags behind is stopped after a fold.
        start: settings of the first trial.
        trials: how many.
        search: ``optuna`` (TPE) learns from the trials before, ``random`` does not.
        scheduler: ``asha`` stops what lags behind, ``none`` trains every trial to its end. ``pbt`` (population-based
            training) trains all trials at once: one that lags behind goes on from the weights of a leading one, with
            that one's settings varied; what it starts from is drawn at random, and the winner's settings are its last.
        grace_epochs: no trial is stopped before.
        perturb_epochs: that a population trains between two comparisons.
        reduction_factor: of the trials that reach a rung, one in so many goes on.
        max_concurrent: trials at the same time; they share the cluster's CPUs evenly.
        seed: of the search.
    """

    space: dict[str, Distribution] = Field(min_length=1)
    metric: str = Field(default="val/mAP", pattern=r"^val/(mAP(_head|_medium|_tail)?|[OC]F1(_top3)?)$")
    validation: float = Field(default=0.2, gt=0, lt=1)
    folds: int | None = Field(default=None, ge=2)
    start: dict[str, Any] = {}
    trials: PositiveInt = 16
    search: Literal["optuna", "random"] = "optuna"
    scheduler: Literal["asha", "none", "pbt"] = "asha"
    perturb_epochs: PositiveInt = 5
    grace_epochs: PositiveInt = 3
    reduction_factor: int = Field(default=3, ge=2)
    max_concurrent: PositiveInt = 1
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _a_population_shares_weights(self) -> Self:
        if self.scheduler == "pbt":
            other = [path for path in self.space if not path.startswith("loss.") and path not in _ANY_TIME]
            if other or self.folds:
                what = f"space.{other[0]} cannot" if other else "folds do not let them"
                raise ValueError(f"pbt changes settings while weights stay: {what} change then (loss.*, "
                                 f"{', '.join(_ANY_TIME)} can)")  # fmt: skip
        return self

    def around(self, experiment: Experiment) -> SweepConfig:
        """This sweep with every ``factor`` made a range around the experiment's value, which is the first trial's."""
        relative = {path: found.factor for path, found in self.space.items() if found.factor is not None}
        present = experiment.settings(relative)
        absent = sorted(
            path for path in relative if not isinstance(present.get(path), float | int) or not present[path]
        )
        if absent:
            raise ConfigError(f"space.{absent[0]}: factor needs a number above 0 in the configuration to start from")
        ranges = {path: Distribution(log=(present[path] / f, present[path] * f)) for path, f in relative.items()}
        return self.model_copy(update={"space": {**self.space, **ranges}, "start": {**present, **self.start}})


def load_sweep(path: Path, config: Path, overrides: Sequence[str]) -> SweepConfig:
    """Read a sweep file, and try the ends of every distribution on the experiment's configuration.

    Raises:
        ConfigError: listing each path that the configuration does not have and each value that it rejects.
    """
    sweep = validate(SweepConfig, read_yaml(path, "sweep"), source=str(path))
    experiment = load(config, overrides)
    searched = sweep.around(experiment)
    shared = [setting for setting in sweep.space if setting.startswith(("dataset.", "encoder.", "first."))]
    mistakes = [
        f"space.{setting}: trials share one data set and its features; compare with variants" for setting in shared
    ]
    if sweep.folds and experiment.first is not None:
        mistakes.append("folds: the tower of `first` has seen all of them; give validation instead")
    tried = {f"space.{setting}": (setting, found.extremes()) for setting, found in searched.space.items()}
    tried |= {f"start.{setting}": (setting, [value]) for setting, value in sweep.start.items()}
    for where, (setting, values) in tried.items():
        for value in values:
            try:
                experiment.changed({setting: value})
            except ConfigError as error:
                mistakes.append(f"{where}, value {value}: {error}")
                break
    mistakes += [f"start.{setting}: the space does not have it" for setting in sweep.start.keys() - sweep.space.keys()]
    for setting, value in sweep.start.items():
        choice = sweep.space[setting].choice if setting in sweep.space else None
        if choice is not None and value not in choice:
            mistakes.append(f"start.{setting}: {value} is not among its choices")
    if mistakes:
        raise ConfigError("\n".join([f"{path}: the experiment does not take what the sweep would try", *mistakes]))
    return sweep


def trial_experiment(experiment: Experiment, sweep: SweepConfig, settings: dict[str, Any]) -> Experiment:
    """The experiment of one trial: judged on held-out training images after every epoch."""
    held_out = sweep.validation if sweep.folds is None else 0.0  # folds are cut by the sweep
    return experiment.changed({**settings, "train.validation": held_out, "protocol": "honest", "train.select": "last"})
