"""`cprfl serve`: a trained model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint folder, models:/NAME@champion, or an experiment.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's are told.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    batch: Annotated[int, typer.Option(help="Images scored at once, at most.", min=1)] = 16,
    wait: Annotated[float, typer.Option(metavar="MS", help="How long an image waits for others.", min=0)] = 5,
    limit_mb: Annotated[float, typer.Option(help="Of a request.", min=0.001)] = 20,
    output_dir: Annotated[str, typer.Option(help="Where experiments and the MLflow store are.")] = "outputs",
) -> None:
    """Serve a model over HTTP, with a page to drop an image on; it keeps up with the champion."""
    from pipelines.serving.limits import Limits
    from pipelines.serving.server import serve as run

    limits = Limits(batch=batch, wait=wait / 1000, body=int(limit_mb * 1e6))
    run(model, Path(output_dir).absolute(), host, port, limits)
