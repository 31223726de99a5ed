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
    caption = "OF1, CF1: of logits above 0; at the fitted thresholds in the report"
    table = Table(title=f"{experiment.name} ({protocol})", caption=caption)
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
        _print_worst_classes(experiment)
    print(f"outputs  {_short(experiment.folder)}")
    if (report := experiment.folder / "report.html").exists():
        print(f"report   {_short(report)}")
    print_link(experiment)


def print_link(experiment: Experiment) -> None:
    """Where a browser finds the experiment's runs, and what serves them."""
    from pipelines.tracking.runs import experiment_url
    from pipelines.tracking.store import open_store

    store = open_store(experiment.output_dir)
    same = Path(experiment.output_dir) == Path("outputs").absolute()
    where = "" if same else f" --output-dir {experiment.output_dir}"
    served = f"cprfl ui{where}, then " if store.artifact_root is not None else ""
    print(f"MLflow   {served}{experiment_url(store, experiment.name)}")


def print_versions() -> None:
    """Of cprfl and of what it stands on."""
    from importlib.metadata import version

    print(f"cprfl {version('cprfl')}")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "mlflow")))


def _short(path: Path) -> Path:
    """The path from the present folder, where it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_worst_classes(experiment: Experiment) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cprfl.report.model.worst import worst_classes
    from cprfl.report.results import Results
    from cprfl.words import counted

    results = Results.read(experiment.folder)
    worst = worst_classes(results, _WORST)
    every = len(results.manifest.class_names)
    chosen = counted(every, "class") if len(worst) == every else f"the worst {len(worst)} of {every} classes"
    title, at = f"{experiment.name}: {chosen}", "the fitted thresholds" if results.decisions.source else "0.5"
    caption = f"false, missed: at {at}; confused with: what its first false images show"
    table = Table(title=title, caption=caption, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("class", "group"):
        table.add_column(heading)
    for heading in ("training", "test", "AP", "false", "missed"):
        table.add_column(heading, justify="right")
    table.add_column("confused with")
    for found in worst:
        numbers = (found.training_images, found.test_images, f"{found.ap:.1f}", found.false_positives, found.misses)
        table.add_row(escape(found.name), found.group, *map(str, numbers), escape(found.mistake))
    Console().print(table)
