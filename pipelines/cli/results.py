"""What `cprfl run` and its like print in the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cprfl.evaluation import Evaluation
    from cprfl.experiment import Experiment

_WORST = 5  # classes that are shown


def print_results(experiment: Experiment, results: dict[str, Evaluation]) -> None:
    """A table of test metrics, and the classes that fail in the experiment itself."""
    from rich.console import Console
    from rich.table import Table

    protocol = "test mAP, %" if experiment.protocol == "honest" else "test mAP, %, epoch chosen on the test images"
    table = Table(title=f"{experiment.name} ({protocol})")
    table.add_column("experiment", no_wrap=True)
    columns = {
        "total": "mAP",
        "head": "mAP_head",
        "medium": "mAP_medium",
        "tail": "mAP_tail",
        "OF1": "OF1",
        "CF1": "CF1",
    }
    for heading in columns:
        table.add_column(heading, justify="right")
    for name, evaluation in reversed(results.items()):
        values = [evaluation.metrics.get(metric) for metric in columns.values()]
        table.add_row(name, *("-" if value is None else f"{value:.1f}" for value in values))
    Console().print(table)
    for name, evaluation in results.items():
        absent = evaluation.classes_without_positives
        if absent:
            print(f"{name}: no test image shows {', '.join(absent)}; left out of the means")
    if experiment.name in results:
        _print_worst_classes(experiment, results[experiment.name])
    print(f"outputs in {experiment.folder}")
    where = (
        "" if Path(experiment.output_dir) == Path("outputs").absolute() else f" --output-dir {experiment.output_dir}"
    )
    print(f"MLflow's UI: cprfl ui{where}, then http://127.0.0.1:5000")


def _print_worst_classes(experiment: Experiment, evaluation: Evaluation) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cprfl.data.manifest import Manifest
    from cprfl.evaluation.worst import worst_classes
    from cprfl.preparation import MANIFEST

    manifest = Manifest.read(experiment.folder / MANIFEST)
    worst = worst_classes(manifest, evaluation, _WORST)
    table = Table(title=f"{experiment.name}: the {len(worst)} worst of {len(manifest.class_names)} classes")
    for heading in ("class", "group", "training images", "test images", "AP"):
        table.add_column(heading, justify="left" if heading in ("class", "group") else "right")
    for found in worst:
        table.add_row(
            escape(found.name), found.group, str(found.training_images), str(found.test_images), f"{found.ap:.1f}"
        )
    Console().print(table)
