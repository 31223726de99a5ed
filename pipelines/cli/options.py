"""Arguments and options that several commands of `cprfl` have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cprfl.experiment import Experiment

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of an experiment.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a setting; may be repeated.")
]


def load(config: Path, overrides: list[str] | None) -> Experiment:
    """The experiment of a file with overrides; a file that is not there is told before PyTorch is imported.

    Raises:
        ConfigError: with every mistake in one list.
    """
    if not config.is_file():
        from cprfl.errors import ConfigError

        raise ConfigError(f"{config}: configuration file not found")
    from cprfl.experiment import load as read

    return read(config, overrides or [])
