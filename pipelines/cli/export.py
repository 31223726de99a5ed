"""`cprfl export`: a model for where this package is not."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Form(StrEnum):
    """Formats of an exported model."""

    onnx = "onnx"
    torchscript = "torchscript"


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint folder, models:/NAME@champion, or an experiment.")
    ],
    form: Annotated[Form, typer.Option("--format", help="Of the graph.")] = Form.onnx,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write to.")] = None,
    output_dir: Annotated[str, typer.Option(help="Where experiments and the MLflow store are.")] = "outputs",
) -> None:
    """Write encoder, head, calibration and thresholds as one graph, with an example and a model card."""
    from pipelines.stages.export import export as stage

    written = stage(model, form.value, output, Path(output_dir).absolute())
    print(f"agrees with PyTorch on {written.images} images to {written.difference:.1e}")
    for name in written.files:
        print(written.folder / name)
