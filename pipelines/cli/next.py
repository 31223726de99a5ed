"""`cprfl next`: which images to label next."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import ConfigArgument, SetOption, load

if TYPE_CHECKING:
    from pipelines.stages.next import FoundNext

_SHOWN = 10  # images that are printed
_DOUBTS = 3  # classes of each


def next_(
    config: ConfigArgument,
    pool: Annotated[list[str], typer.Option("--pool", metavar="FOLDER", help="Unlabelled images; may be repeated.")],
    count: Annotated[int, typer.Option(help="Images to choose.", min=1)] = 100,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a table.")] = None,
    label_studio: Annotated[
        Path | None, typer.Option("--label-studio", metavar="FILE", help="Write tasks for Label Studio.")
    ] = None,
    fiftyone: Annotated[
        Path | None, typer.Option("--fiftyone", metavar="FILE", help="Write a labels.json for FiftyOne.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Choose the images of a pool that are worth labelling next: unclear to the model, rare, unlike each other."""

    experiment = load(config, overrides)
    from pipelines.stages.next import next_images

    result = next_images(experiment, pool, count)
    _print(result)
    from cprfl.plain import printable
    from cprfl.report.findings.label_next import questions, write_next
    from pipelines.cli.annotation_files import write_annotation_files

    if csv is not None:
        write_next(csv, result.found)
        print(f"table         {csv}")
    write_annotation_files(questions(result.found), result.found.class_names, experiment.name, label_studio, fiftyone)
    if result.bad:
        for image in result.bad[:_SHOWN]:
            print(printable(f"cprfl: {image.uri}: {image.reason}"), file=sys.stderr)
        print(f"cprfl: {len(result.bad)} of {result.num_pool} images cannot be read", file=sys.stderr)
        raise typer.Exit(2)


def _print(result: FoundNext) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cprfl.plain import printable

    found, known = result.found, f", {result.num_known} others are in the data set already" if result.num_known else ""
    table = Table(title=f"{len(found.uris)} of {result.num_pool} images to label next{known}", title_justify="left")
    for heading in ("image", "least sure of", "score"):
        table.add_column(heading, justify="right" if heading == "score" else "left", overflow="fold")
    for number, (uri, chosen) in enumerate(zip(found.uris[:_SHOWN], found.chosen, strict=False)):
        table.add_row(escape(printable(uri)), escape(", ".join(found.doubts(number, _DOUBTS))), f"{chosen.score:.3g}")
    Console().print(table)
    if len(found.uris) > _SHOWN:
        print(f"and {len(found.uris) - _SHOWN} more; --csv FILE writes all of them")
