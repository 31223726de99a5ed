"""`cprfl init`: from a folder to a configuration that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import SetOption


def init(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a data set, or its file of annotations.")],
    output: Annotated[Path | None, typer.Option(help="The YAML file to write; after the folder unless given.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Weights of a ResNet or SqueezeNet, to encode with.")] = None,
    overrides: SetOption = None,
) -> None:
    """Look at a data set and write an experiment that runs on it."""
    from cprfl.data.files import write_text
    from cprfl.errors import ConfigError
    from cprfl.starting.document import document, in_words, name_of
    from cprfl.starting.machine import encoders_at_hand, encoders_of
    from cprfl.starting.reading import read_what_is_there

    output = output or Path(f"{name_of(path)}.yaml")
    if output.exists():
        raise ConfigError(f"{output}: is there already; give another name with --output, or remove it")
    reading = read_what_is_there(path, overrides or [])
    encoders = encoders_of(weights) if weights else encoders_at_hand()
    write_text(output, document(path, output, reading, encoders))
    for line in in_words(reading, encoders):
        print(line)
    print(f"wrote     {output}; next: cprfl data {output}, cprfl run {output}")
