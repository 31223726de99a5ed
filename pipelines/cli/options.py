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
    from cprfl.settings import check_there

    check_there(config)
    from cprfl.experiment import load as read

    return read(config, overrides or [])
