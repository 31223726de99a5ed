"""`cprfl check`: what may be wrong with a trained model's results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import ConfigArgument, SetOption, load

if TYPE_CHECKING:
    from cprfl.report.checks.base import Check

_MARKS = {
    "issue": ("✗", "bold red"), "tip": ("!", "yellow"), "skipped": ("?", "magenta"), "passed": ("✓", "green"),
    "not applicable": ("-", "dim"),
}  # fmt: skip


def check(
    config: ConfigArgument,
    overrides: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 where there is an issue.")] = False,
) -> None:
    """Look for what spoils a model's results: baselines, leaks, calibration, thresholds, classes too few to compare."""

    experiment = load(config, overrides)
    from pipelines.stages.check import check as stage

    found = stage(experiment)
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(one) for one in found], indent=2, ensure_ascii=False))
    else:
        _print(experiment.name, found)
    if strict and any(one.status == "issue" for one in found):
        raise typer.Exit(1)


def _print(name: str, found: tuple[Check, ...]) -> None:
    """Each with its code; what is to be done where there is something to do."""
    import textwrap

    from rich.console import Console
    from rich.text import Text

    from cprfl.words import counted

    console = Console(highlight=False)
    counts = {status: sum(one.status == status for one in found) for status in _MARKS}
    said = [
        counted(count, status) if status in ("issue", "tip") else f"{count} {status}"
        for status, count in counts.items()
        if count
    ]
    console.print(Text(f"{name}: {', '.join(said)}", "bold"))
    for one in found:
        mark, style = _MARKS[one.status]
        title = (one.title, "bold" if one.status == "issue" else "")
        console.print(Text.assemble((mark, style), " ", title, "  ", (one.code, "dim")), soft_wrap=True)
        if one.status in ("issue", "tip", "skipped"):
            width = console.width - 2 if console.is_terminal else len(one.explanation)  # a pipe wants lines whole
            for line in textwrap.wrap(one.explanation, width):
                console.print(Text(f"  {line}"), soft_wrap=True)
