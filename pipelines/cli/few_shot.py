"""`cprfl few-shot`: what a few images of each novel class are worth."""

from __future__ import annotations

import csv
from typing import Annotated

import typer

from pipelines.cli.options import ConfigArgument, SetOption, load


def few_shot(
    config: ConfigArgument,
    novel: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help="Novel classes, a name with a comma in double quotes; all others are base classes.",
        ),
    ],
    shots: Annotated[str, typer.Option(metavar="K,K,...", help="Training images of each novel class.")] = "1,5",
    episodes: Annotated[int, typer.Option(help="Draws of training images for each K.", min=1)] = 10,
    overrides: SetOption = None,
) -> None:
    """Train on a few images of each novel class, again and again, and test on all that show one."""

    counts = _counts(shots)
    experiment = load(config, overrides)
    from pipelines.stages.few_shot import few_shot as stage

    names = [name.strip() for name in next(csv.reader([novel], skipinitialspace=True)) if name.strip()]
    result = stage(experiment, names, counts, episodes)
    from rich.console import Console
    from rich.table import Table

    chosen = "" if experiment.protocol == "honest" else ", epoch chosen on the test images"
    table = Table(title=f"{experiment.name}: few-shot mAP, %, of {len(result.novel)} novel classes{chosen}")
    for heading in ("shots", "episodes", "training images", "mAP", "95 % interval"):
        table.add_column(heading, justify="right")
    for row in result.results:
        sizes = [len(episode.support) for episode in row.episodes]
        half = row.half_width
        interval = "-" if half is None else f"± {half:.1f}"
        images = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{min(sizes)}"
        table.add_row(f"{row.shots}", f"{len(row.episodes)}", images, f"{row.mean:.1f}", interval)
    Console().print(table)
    print(f"novel: {', '.join(result.novel)}; {result.test_images} test images show one")
    if result.without_test_images:
        print(f"no test image shows {', '.join(result.without_test_images)}; left out of the means")
    if experiment.first is None:
        print(f"nothing was trained on the base classes ({len(result.base)}): the experiment has no `first`")
    elif result.base_map is not None:
        print(f"the tower was trained on the base classes ({len(result.base)}): {result.base_map:.1f} mAP over them")
    print(f"{result.path}; MLflow experiment {experiment.name}")


def _counts(text: str) -> list[int]:
    """The numbers of ``1,5``.

    Raises:
        ConfigError: where they are none.
    """
    from cprfl.errors import ConfigError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--shots {text}: expected whole numbers from 1 up, separated by commas, such as 1,5")
    return list(dict.fromkeys(map(int, words)))
