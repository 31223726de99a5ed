"""`cprfl findings`: labels that look wrong, and pictures that are nearly the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import ConfigArgument, SetOption, load

if TYPE_CHECKING:
    from cprfl.report.findings.label_noise import Suspect
    from cprfl.report.findings.near_duplicates import NearDuplicate

_SHOWN = 10  # of each that are printed


def findings(
    config: ConfigArgument,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A model's folder; the experiment's own unless given.")
    ] = None,
    count: Annotated[int, typer.Option(help="Suspected labels to name.", min=1)] = 50,
    label_studio: Annotated[
        Path | None, typer.Option("--label-studio", metavar="FILE", help="Write corrections for Label Studio.")
    ] = None,
    fiftyone: Annotated[
        Path | None, typer.Option("--fiftyone", metavar="FILE", help="Write corrections for FiftyOne.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Find labels that look wrong to the trained model, and near duplicates within and across splits."""

    experiment = load(config, overrides)
    from pipelines.stages.findings import LABEL_MISTAKES, NEAR_DUPLICATES
    from pipelines.stages.findings import findings as stage

    folder = folder or experiment.folder
    found = stage(folder, count)
    _print_mistakes(found.mistakes)
    print(f"{folder / LABEL_MISTAKES}\n")
    if found.duplicates is None:
        print("near duplicates: not looked for, a model whose image tower moved keeps no features")
    else:
        if found.duplicates:
            _print_duplicates(found.duplicates)
        else:
            print("no near duplicates")
        print(f"{folder / NEAR_DUPLICATES}")
    from cprfl.report.findings.label_mistakes import corrections
    from pipelines.cli.annotation_files import write_annotation_files

    manifest = found.results.manifest
    write_annotation_files(
        corrections(found.mistakes, manifest), manifest.class_names, experiment.name, label_studio, fiftyone
    )


def _print_mistakes(mistakes: tuple[Suspect, ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{len(mistakes)} labels that look wrong{_first(len(mistakes))}", title_justify="left")
    score = "probability" if mistakes and mistakes[0].calibrated else "score"
    for heading in ("image", "label says", score, "usual"):
        table.add_column(heading, justify="right" if heading in (score, "usual") else "left", overflow="fold")
    for suspect in mistakes[:_SHOWN]:
        said = suspect.class_name if suspect.labelled else f"no {suspect.class_name}"
        table.add_row(escape(suspect.image_id), escape(said), f"{suspect.score:.3f}", f"{suspect.usual:.3f}")
    Console().print(table)


def _print_duplicates(duplicates: tuple[NearDuplicate, ...]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    leaks = sum(pair.leaks for pair in duplicates)
    title = f"{len(duplicates)} near duplicates, {leaks} of them across splits{_first(len(duplicates))}"
    table = Table(title=title, title_justify="left")
    for heading in ("first", "second", "correlation"):
        table.add_column(heading, justify="right" if heading == "correlation" else "left", overflow="fold")
    for pair in duplicates[:_SHOWN]:
        sides = [f"{image_id} ({split})" for image_id, split in zip(pair.image_ids, pair.splits, strict=True)]
        shown = "unreadable" if pair.correlation is None else f"{pair.correlation:.2f}"
        table.add_row(*map(escape, sides), shown)
    Console().print(table)


def _first(number: int) -> str:
    """That a table has the first rows alone."""
    return f"; the first {_SHOWN} here, all in the file" if number > _SHOWN else ""
