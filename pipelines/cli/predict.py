"""`cprfl predict`: images in, classes out."""

from __future__ import annotations

import functools
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from cprfl.inference.predictor import Predictor

_OWN = "own"  # thresholds of the model


class Command(TyperCommand):
    """Takes ``--threshold`` with a number or alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer keeps its Context's base to itself
        """A word behind ``--threshold`` that is no number is an image."""
        followed = zip(args, [*args[1:], ""], strict=True)
        said = [f"{word}={_OWN}" if word == "--threshold" and not _is_number(then) else word for word, then in followed]
        return super().parse_args(ctx, said)


def predict(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint folder, models:/NAME@champion, or an experiment.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files, folders, patterns, CSV files with a column of images."),
    ],
    top: Annotated[
        int | None, typer.Option(help="Classes to show per image; 5 in the table, all in JSON.", min=1)
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="[NUMBER]",
            help="Show only classes at or above it; without a number, at or above the model's own of each class.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all probabilities as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all probabilities as Parquet.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Draw where the model looks for the classes it finds.")
    ] = None,
    output_dir: Annotated[str, typer.Option(help="Where the MLflow store is, for models:/ names.")] = "outputs",
) -> None:
    """Score images with a trained model: probabilities, and * where a class's threshold is reached.

    An image that cannot be read is named, and the others are scored; the exit status is then 2.
    """
    from pipelines.stages.predict import Counts, Wanted
    from pipelines.stages.predict import predict as stage

    number = None if threshold in (None, _OWN) else _probability(str(threshold))
    wanted = Wanted(top, threshold is not None, number, as_json, csv, parquet, overlay)
    counts = Counts()
    try:
        stage(functools.partial(_open, model, output_dir), images, wanted, counts)
    except KeyboardInterrupt:
        print(f"cprfl: interrupted; {counts.scored} images are scored, and written as far as they are", file=sys.stderr)
        raise typer.Exit(130) from None
    _say_what_is_where({"csv": csv, "parquet": parquet, "overlays": overlay}, counts.scored)


def _open(model: str, output_dir: str) -> AbstractContextManager[Predictor]:
    from cprfl.inference.predictor import Predictor as Loaded
    from cprfl.training.checkpoint import is_checkpoint

    folder = Path(model)
    if not is_checkpoint(folder):  # or it needs no MLflow, which takes seconds to import
        from pipelines.stages.model_names import find_model
        from pipelines.tracking.models import SCHEME, opened_predictor

        found = find_model(model, Path(output_dir).absolute())
        if found.startswith(SCHEME):
            return opened_predictor(found, Path(output_dir).absolute())
        folder = Path(found)
    return nullcontext(Loaded.load(folder))


def _say_what_is_where(places: dict[str, Path | None], scored: int) -> None:
    for what, path in places.items():
        if path is not None:
            print(f"{what}  {path}: {scored} images", file=sys.stderr)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _probability(word: str) -> float:
    if not _is_number(word) or not 0 <= float(word) <= 1:
        raise typer.BadParameter(f"{word!r} is no probability between 0 and 1", param_hint="--threshold")
    return float(word)
