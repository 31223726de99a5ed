"""`cprfl compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cprfl.evaluation.intervals import Interval
    from cprfl.report.comparing.compare import Compared, Gain

_SHOWN = 5  # classes, the most gained and the most lost


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN RUN...", help="Folders of results, configuration files or MLflow run ids."),
    ],
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="The page to write.")] = Path(
        "outputs/compare.html"
    ),
    output_dir: Annotated[str, typer.Option(help="Where the MLflow store is, for run ids.")] = "outputs",
) -> None:
    """Compare runs with the first one: groups and classes with paired intervals, images on which they disagree."""
    from pipelines.stages.compare import compare as stage

    compared = stage(runs, html, Path(output_dir).absolute())
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for name in compared.names[1:]:
        _print_groups(console, compared, name)
        _print_classes(console, compared, name)
    for sentence in compared.left_out:
        console.print(Text(sentence), soft_wrap=True)
    console.print(Text(f"page  {html}"), soft_wrap=True)


def _table(words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print_groups(console: Console, compared: Compared, name: str) -> None:
    """The means of a model and of the first."""
    from rich.markup import escape
    from rich.text import Text

    from cprfl.words import counted

    first, images = compared.names[0], counted(len(compared.images), "test image")
    console.print(Text(f"{name} against {first}: mAP, %, {images}", "bold"), soft_wrap=True)
    table = _table(("",), ("before", "after", "difference"))
    for group in compared.precision.groups:
        before, after = (compared.precision.mean(each, group) for each in (first, name))
        gain = compared.precision.gain(name, first, group)
        if before is not None and after is not None and gain is not None:
            row = (f"{before.value:.1f}", f"{after.value:.1f}", escape(gain.signed))
            table.add_row(group, *row, style=_style(gain))
    console.print(table)


def _print_classes(console: Console, compared: Compared, name: str) -> None:
    """The classes on which a model gained and lost most."""
    from rich.text import Text

    gains = compared.class_gains(name)
    gained = [one for one in gains if one.gain.value > 0][:_SHOWN]
    lost = [one for one in gains if one.gain.value < 0][-_SHOWN:]
    console.print(Text("Most gained and most lost classes: AP, %", "bold"))
    table = _table(("class", "group"), ("training", "test", "before", "after", "difference"))
    for one in gained:
        _add(table, one)
    table.add_section()
    for one in lost:
        _add(table, one)
    console.print(table)


def _add(table: Table, one: Gain) -> None:
    from rich.markup import escape

    numbers = (one.training_images, one.test_images, f"{one.before:.1f}", f"{one.after:.1f}")
    gain = escape(one.gain.signed)
    table.add_row(escape(one.class_name), one.group, *map(str, numbers), gain, style=_style(one.gain))


def _style(gain: Interval) -> str:
    return "green" if gain.above_zero else "red" if gain.below_zero else ""
