"""`cprfl report`: the page of a trained model, at the end of every run and whenever somebody asks for it."""

from __future__ import annotations

from pathlib import Path

from cprfl.errors import CheckpointError
from cprfl.experiment import Experiment
from cprfl.inference.scoring import EVALUATION
from cprfl.preparation import CHECKPOINT, Prepared
from cprfl.report.baselines import write_baselines
from cprfl.report.model.long_tail_picture import write_picture
from cprfl.report.model.page import write_page
from cprfl.report.model.report import model_report
from cprfl.report.results import Results
from pipelines.stages.places import folder_of_results
from pipelines.tracking.artifacts import download_artifact
from pipelines.tracking.results import local_results
from pipelines.tracking.runs import Run
from pipelines.tracking.store import open_existing_store

REPORT, LONG_TAIL = "report.html", "long_tail.png"


def write_report(experiment: Experiment, prepared: Prepared, run: Run | None = None) -> Path:
    """Write the report of what lies in an experiment's folder, with baselines on the same features beside it.

    Args:
        experiment: trained and evaluated.
        prepared: its data.
        run: open, to which the page is logged.

    Returns:
        The page: ``report.html`` in the experiment's folder.

    Raises:
        CheckpointError: where nothing is trained or evaluated there.
    """
    write_baselines(experiment, prepared)
    path = write_page_of(experiment.folder)
    if run is not None:
        run.log_results({}, path, path.with_name(LONG_TAIL))
    return path


def write_page_of(folder: Path) -> Path:
    """Write the page of the results in a folder, and its plot of the long tail as a picture.

    Raises:
        CheckpointError: where nothing is trained or evaluated there.
    """
    report, path = model_report(Results.read(folder)), folder / REPORT
    write_page(report, path)
    write_picture(report, folder / LONG_TAIL)
    return path


def report_of(target: str | None = None, output_dir: Path = Path("outputs")) -> Path:
    """Write the report of a model.

    Args:
        target: a folder of results, an experiment's file or name, or an MLflow run, whose page is downloaded where its
            results are not on this machine; the newest results where it is left out.
        output_dir: where results are, and the MLflow store.

    Returns:
        The page.

    Raises:
        CheckpointError: where there is nothing to report on.
        TrackingError: where the run has no report.
    """
    if target is None:
        return write_page_of(_newest(output_dir))
    if (here := folder_of_results(target, output_dir) or local_results(target, output_dir)) is not None:
        return write_page_of(here)
    return download_artifact(
        open_existing_store(str(output_dir)), target, REPORT, output_dir / "cache" / "reports" / target
    )


def _newest(output_dir: Path) -> Path:
    """The folder of the newest evaluation below a folder.

    Raises:
        CheckpointError: where there is none.
    """
    found = [path for path in output_dir.glob(f"**/{EVALUATION}") if (path.parent / CHECKPOINT).exists()]
    if not found:
        raise CheckpointError(f"{output_dir}: no evaluated model here; `cprfl run CONFIG` makes one")
    return max(found, key=lambda path: path.stat().st_mtime).parent
