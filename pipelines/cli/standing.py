"""What `cprfl retrain` and `cprfl tune` print of a model beside the champion."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.stages.champion import Standing

_CLASSES = 3  # that are named on either side


def print_standing(standing: Standing) -> None:
    """A table of total and groups, the sentence, and the classes that gained and lost most."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="test mAP, %")
    for heading in ("", f"champion, version {standing.champion}", "this model", "points"):
        table.add_column(heading, justify="right" if heading else "left")
    for group, (old, new) in standing.groups.items():
        table.add_row(group, f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}")
    Console().print(table)
    print(standing.sentence)
    for what, classes in (("gained", standing.gained(_CLASSES)), ("lost", standing.lost(_CLASSES))):
        print(f"{what} most: {', '.join(map(str, classes)) or 'no class'}")
