"""`cprfl data`: the data set as a person wants to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import ConfigArgument, SetOption, load


def data(
    config: ConfigArgument,
    overrides: SetOption = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with plots and pictures too.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Open every image: finds bad ones and near duplicates.")
    ] = True,
) -> None:
    """Show counts, the long tail, duplicates, leaks, bad images and labels that look wrong, before any encoding."""

    experiment = load(config, overrides)
    from pipelines.stages.data import data as stage

    report = stage(experiment, open_images=images)
    from rich.console import Console

    from cprfl.report.data_set.text import in_words

    console = Console(soft_wrap=True, highlight=False)
    for line in in_words(report):
        console.print(line)
    if html is not None:
        from cprfl.report.data_set.page import write_page

        write_page(report, html, experiment.encoder.reading)
        console.print(f"\npage  {html}", markup=False)
