"""`cprfl report`: a trained model on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|FOLDER|CONFIG]", help="MLflow run, folder of results, or experiment; the newest otherwise."
        ),
    ] = None,
    output_dir: Annotated[str, typer.Option(help="Where results and the MLflow store are.")] = "outputs",
) -> None:
    """Write a trained model's report: which classes fail, on which images, and why, as one HTML file."""
    from pipelines.stages.report import report_of

    print(f"report  {report_of(target, Path(output_dir))}")
