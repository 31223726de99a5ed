"""Which experiments a benchmark consists of: one for each method, as equal as their needs let them be."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from cprfl.errors import ConfigError
from cprfl.experiment import Experiment
from cprfl.models import AnyMethod, MethodConfig

ALL, VARIANTS, REFERENCE = "all", "variants", "logistic_regression"
CONFIGS: dict[str, type[MethodConfig]] = {
    config.model_fields["name"].default: config for config in get_args(get_args(AnyMethod)[0])
}
_BY_HAND = "ensemble"  # whose members somebody has to name


@dataclass(frozen=True)
class Entry:
    """A method of a benchmark.

    Attributes:
        name: of its row.
        experiment: how it is trained; none where the data or the encoder does not let it.
        reason: why not.
    """

    name: str
    experiment: Experiment | None
    reason: str = ""

    @property
    def seeds_matter(self) -> bool:
        """Whether trainings with other seeds give other models."""
        assert self.experiment is not None
        experiment = self.experiment
        return experiment.model.by_gradients or experiment.first is not None or experiment.train.validation > 0

    def changed(self, settings: dict[str, Any]) -> Entry:
        """The entry with other settings."""
        assert self.experiment is not None
        return replace(self, experiment=self.experiment.changed(settings))


def plan(experiment: Experiment, methods: Sequence[str]) -> list[Entry]:
    """The entries of a benchmark, the logistic regression among them: all others are compared with it.

    A name stands for the experiment itself, by its method's name; for a variant, by its key; or for a method with what
    suits it, on the experiment's data and encoder. `VARIANTS` is the experiment with its variants, `ALL` these and
    every method that none of them has.

    Raises:
        ConfigError: for a name that is none of them.
    """
    known = _known(experiment)
    if VARIANTS in methods:
        names = list(known)
    elif ALL in methods:
        given = {entry.experiment.model.name for entry in known.values() if entry.experiment is not None}
        names = [*known, *(name for name in CONFIGS if name not in given | {_BY_HAND})]
    else:
        names = [_key(name) for name in methods]
        for name in names:
            if name not in known and name not in CONFIGS:
                choices = sorted({*known, *CONFIGS} - {_BY_HAND})
                close = difflib.get_close_matches(name, choices, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ConfigError(f"--methods {name}: no such method or variant{hint} (choices: {', '.join(choices)})")
    if REFERENCE not in names:
        names.append(REFERENCE)
    return [known.get(name) or _by_name(experiment, name) for name in dict.fromkeys(names)]


def _known(experiment: Experiment) -> dict[str, Entry]:
    """The experiment itself, and its variants."""
    own = experiment.model_copy(update={"variants": {}})
    found: dict[str, Entry] = {experiment.model.name: Entry(experiment.model.name, own)}
    for key in experiment.variants:
        found[_key(key)] = Entry(_key(key), experiment.variant(key))
    return found


def _by_name(experiment: Experiment, name: str) -> Entry:
    """A method with its own settings and what it brings; the learning rate suits another one, and is left to it."""
    config = CONFIGS[name]
    changes: dict[str, Any] = {**config.brings, "model": {**config.brings.get("model", {}), "name": name}}
    changes["train"] = {"lr": None, **config.brings.get("train", {})}
    known = type(experiment.encoder).model_fields  # what another kind of encoder lacks, the experiment says better
    encoder = {key: value for key, value in changes.pop("encoder", {}).items() if key in known}
    if encoder:
        changes["encoder"] = encoder
    if "first" in changes:
        changes["first"] = {**changes["first"], "train": {"lr": None, **changes["first"].get("train", {})}}
    with_it = experiment.model_copy(update={"variants": {name: changes}})
    try:
        return Entry(name, with_it.variant(name))
    except ConfigError as error:
        return Entry(name, None, str(error).splitlines()[-1].strip().removeprefix("the experiment: "))


def _key(name: str) -> str:
    return name.strip().replace("-", "_")
